"""PNG and JPEG files: what they say they are is judged before they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from pipeline.data.nifti import Reading, check_memory
from pipeline.errors import Fault, FaultError, InputError
from pipeline.volume import Volume, without_geometry

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MAX_PIXELS = 2**26
_MODES = "a picture is grey (8 or 16 bits) or RGB (8 bits per colour)"


def is_picture(path: Path) -> bool:
    """Whether the file's name is that of a PNG or JPEG file."""
    return path.suffix.lower() in _SUFFIXES


def read_picture(path: Path) -> Reading:
    """Reads a PNG or JPEG upright, as its EXIF orientation says.

    Returns:
        Volumes `(rows, columns, 1)` of uint8 or uint16, row 0 being the top and column 0 the left: one if the
        picture is grey, else red, green and blue. An alpha channel that hides nothing is dropped.

    Raises:
        InputError: If it is damaged, has more than 2**26 pixels, several frames, or transparent pixels, or is
            of another kind, such as CMYK or RGB of 16 bits.
        ResourceError: If it does not fit into memory.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            with _open(file) as image:
                _check_header(where, image)
                image.verify()  # a PNG's checksums; decoding alone does not look at them
            file.seek(0)
            with _open(file) as image:
                channels = _decode(where, image)
    except FaultError:
        raise
    except OSError as error:
        if error.errno is not None:
            message = f"the file cannot be read ({(error.strerror or 'error').lower()})"
            raise InputError(Fault(where, "unreadable", message)) from error
        raise InputError(_damaged(where)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(_too_large(where)) from error
    except Exception as error:  # a parser fed with damaged bytes may raise anything
        raise InputError(_damaged(where)) from error
    return Reading(tuple(map(without_geometry, channels)))


def match_channels(volumes: Sequence[Volume], num_channels: int) -> list[Volume]:
    """A picture's volumes as grey or in colour, where that loses nothing.

    Collections hold both kinds of grey pictures: with one channel, and with three that are equal.
    """
    if len(volumes) == 1 and num_channels == 3:
        return [*volumes] * 3
    is_grey = all(np.array_equal(volume.array, volumes[0].array) for volume in volumes[1:])
    if len(volumes) == 3 and num_channels == 1 and is_grey:
        return [volumes[0]]
    return [*volumes]


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    return Image.open(file, formats=("PNG", "JPEG"))


def _check_header(where: str, image: ImageFile.ImageFile) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise InputError(_too_large(where))
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(Fault(where, "frames", "the picture has several frames; save one of them"))
    raw_mode = image.tile[0].args if image.tile else None
    stored = raw_mode if isinstance(raw_mode, str) else str((raw_mode or ("",))[0])
    if image.mode not in ("1", "L", "I", "I;16", "P", "RGB", "LA", "RGBA", "PA") or (
        ";16" in stored and not image.mode.startswith("I")  # Pillow would cut these to 8 bits
    ):
        message = f"{_MODES}, not {stored or image.mode}; convert it"
        raise InputError(Fault(where, "picture-mode", message))
    check_memory(where, image.width * image.height * 8)


def _decode(where: str, image: Image.Image) -> Sequence[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("LA" if upright.mode in ("1", "L", "LA") else "RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            message = "some pixels are transparent, and what they should show is not known; remove the alpha"
            raise InputError(Fault(where, "transparency", message))
        upright = upright.convert(upright.mode[:-1])
    if upright.mode == "P":
        upright = upright.convert("RGB")
    if upright.mode == "1":
        upright = upright.convert("L")
    array = np.array(upright)
    if array.ndim == 3:
        return [np.ascontiguousarray(channel) for channel in np.moveaxis(array, 2, 0)]
    return [array if array.dtype == np.uint8 else array.astype(np.uint16)]


def _damaged(where: str) -> Fault:
    message = "it is no PNG or JPEG, damaged, or cut short; fetch it again from its source"
    return Fault(where, "picture-damaged", message)


def _too_large(where: str) -> Fault:
    return Fault(where, "too-large", f"a picture has at most {_MAX_PIXELS} pixels; crop it or scale it down")
