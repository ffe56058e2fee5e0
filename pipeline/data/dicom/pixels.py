"""Pixels of slices, decoded and rescaled; nothing is decoded that would be larger than its slice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, RLELossless

from pipeline.data.dicom.frames import Frame
from pipeline.errors import Fault, InputError

_PIXEL_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
# The most recent decoder of each; what is not named here goes to GDCM. pylibjpeg's for RLE is faster,
# but ends the process's thread with a panic on damaged runs, where pydicom's own raises.
_PLUGINS = {
    RLELossless: "pydicom",
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
}
_END_OF_IMAGE = b"\xff\xd9"
# SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS's SOF55.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_CODESTREAM_2000 = b"\xff\x4f\xff\x51"


def read_pixels(where: str, frames: Sequence[Frame]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yields every frame's index in `frames` and its rescaled pixels `(columns, rows)`, file by file.

    Raises:
        InputError: If a frame cannot be decoded, is cut short, or is not of its size.
    """
    order = sorted(range(len(frames)), key=lambda n: (str(frames[n].path), frames[n].index))
    for path, group in groupby(order, key=lambda n: frames[n].path):
        wanted = list(group)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom quotes the values it warns about
                decoded = zip(wanted, _decode(path, [frames[n].index for n in wanted]), strict=True)
                for number, pixels in decoded:
                    slope, intercept = frames[number].rescale
                    yield number, _rescaled(pixels, slope, intercept)
        except Exception as error:  # decoders fed with damaged bytes may raise anything
            message = "the pixel data cannot be decoded, or were cut short; fetch the file again"
            raise InputError(Fault(where, "pixel-data", f"{message} ({path.name})")) from error


def _rescaled(pixels: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    values: NDArray[np.float32] = pixels.T.astype(np.float32)
    if (slope, intercept) != (1.0, 0.0):
        # In double: PET's slopes times 32-bit counts do not fit into float32 before they are added.
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused once all is read
            values = (pixels.T * np.float64(slope) + intercept).astype(np.float32)
    return values


def _decode(path: Path, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    dataset = dcmread(path, specific_tags=list(_PIXEL_TAGS))
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_codestreams(dataset, syntax == RLELossless, set(indices))
    decoder = get_decoder(syntax)
    plugin = _PLUGINS.get(syntax, "")
    for pixels, _ in decoder.iter_array(dataset, indices=list(indices), decoding_plugin=plugin):
        if pixels.shape != (dataset.Rows, dataset.Columns):
            raise ValueError("the frame has another size than its header says")
        yield pixels


def _check_codestreams(dataset: Dataset, is_rle: bool, wanted: set[int]) -> None:
    """Refuses compressed frames that are cut short or claim to be larger than the image."""
    count = int(dataset.get("NumberOfFrames") or 1)
    offsets = _extended_offsets(dataset)
    streams = list(generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets))
    if len(streams) != count:
        raise ValueError("the pixel data hold another number of frames than the header says")
    if is_rle:
        return  # runs are counted against the size of the image
    for index in wanted:
        stream = streams[index]
        # All of JPEG's family end so; some writers pad with another byte than 0.
        if _END_OF_IMAGE not in stream.rstrip(b"\0")[-3:]:
            raise ValueError("the codestream is cut short")
        if _claimed_size(stream) != (dataset.Rows, dataset.Columns):
            raise ValueError("the codestream has another size than the image")


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    if "ExtendedOffsetTable" not in dataset:
        return None
    return dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths


def _claimed_size(stream: bytes) -> tuple[int, int]:
    """Rows and columns by the codestream's own header: of JPEG 2000 (SIZ), or of JPEG and JPEG-LS (SOF)."""
    if (start := stream.find(_CODESTREAM_2000, 0, 1024)) >= 0:
        right, bottom, left, top = (_number(stream[start + 8 + 4 * n :][:4]) for n in range(4))
        return bottom - top, right - left
    position = 2
    while position + 9 <= len(stream):
        marker, length = stream[position + 1], _number(stream[position + 2 : position + 4])
        if stream[position] != 0xFF:
            break
        if marker in _START_OF_FRAME:
            return _number(stream[position + 5 : position + 7]), _number(stream[position + 7 : position + 9])
        position += 2 + length if marker != 0xFF else 1
    raise ValueError("the codestream has no header")


def _number(content: bytes) -> int:
    return int.from_bytes(content, "big")
