"""A picture is read upright and as stored, or refused: nothing is cut to 8 bits or made up."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import DataSection
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.pictures import read_picture
from pipeline.data.prepared_cases import prepare_cases
from pipeline.errors import FaultError, InputError
from pipeline.labels import LabelContract
from transforms.preprocessing import Preprocessing

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None, **settings) -> Path:
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **settings)
    return path


def save_png(path: Path, width: int, height: int, bits: int, kind: int, rows: bytes) -> Path:
    """A PNG written by hand: its header can claim what Pillow would not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def arrays(path: Path) -> list[np.ndarray]:
    return [volume.array[..., 0] for volume in read_picture(path).volumes]


def rule_of(path: Path) -> str:
    with pytest.raises(FaultError) as caught:
        read_picture(path)
    (fault,) = caught.value.faults
    return fault.rule


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_is_one_channel_as_stored(dtype, tmp_path):
    stored = GREY.astype(dtype) * (1 if dtype == np.uint8 else 1000)
    (volume,) = read_picture(save(tmp_path / "a.png", stored)).volumes
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array, stored[..., None])
    assert np.array_equal(volume.grid.affine, np.eye(4))


def test_a_png_in_colour_is_three_channels(tmp_path):
    for channel, array in enumerate(arrays(save(tmp_path / "a.PNG", COLOUR))):
        assert np.array_equal(array, COLOUR[..., channel])


@pytest.mark.parametrize("mode, num_channels", [("1", 1), ("L", 1), ("P", 3)])
def test_pictures_of_few_colours_are_read_by_what_they_show(mode, num_channels, tmp_path):
    path = save(tmp_path / "a.png", GREY * 5, mode)
    shown = np.asarray(Image.open(path).convert("RGB"))
    found = arrays(path)
    assert len(found) == num_channels
    assert all(np.array_equal(array, shown[..., channel]) for channel, array in enumerate(found))


def test_a_jpeg_is_read_as_grey_or_in_colour(tmp_path):
    smooth = np.linspace(0, 200, 32 * 32).reshape(32, 32).astype(np.uint8)
    (array,) = arrays(save(tmp_path / "a.jpg", smooth))
    assert np.abs(array.astype(int) - smooth).max() < 8
    assert len(arrays(save(tmp_path / "b.jpeg", np.stack([smooth] * 3, -1)))) == 3


@pytest.mark.parametrize("orientation, turn", [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))])
def test_exif_orientation_is_honoured(orientation, turn, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    (array,) = arrays(save(tmp_path / "a.png", GREY, exif=exif))
    assert np.array_equal(array, turn(GREY))


def test_alpha_that_hides_nothing_is_dropped_and_other_is_refused(tmp_path):
    opaque = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 255, np.uint8)])
    assert np.array_equal(np.stack(arrays(save(tmp_path / "a.png", opaque)), -1), COLOUR)
    opaque[2, 3, 3] = 254
    assert rule_of(save(tmp_path / "b.png", opaque)) == "transparency"
    assert len(arrays(save(tmp_path / "c.png", GREY, "LA"))) == 1
    assert rule_of(save(tmp_path / "d.png", GREY, transparency=5)) == "transparency"


def test_what_pillow_would_cut_to_8_bits_is_refused(tmp_path):
    for kind, samples in ((2, 3), (4, 2), (6, 4)):
        path = save_png(tmp_path / f"{kind}.png", 4, 3, 16, kind, (b"\0" + bytes(8 * samples)) * 3)
        assert rule_of(path) == "picture-mode"


def test_other_kinds_are_refused(tmp_path):
    assert rule_of(save(tmp_path / "a.jpg", COLOUR, "CMYK")) == "picture-mode"
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    assert rule_of(tmp_path / "b.png") == "frames"
    save(tmp_path / "c.bmp", GREY).rename(tmp_path / "c.png")
    assert rule_of(tmp_path / "c.png") == "picture-damaged"
    assert rule_of(tmp_path) == "unreadable"


@pytest.mark.parametrize("side", [8_193, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side, tmp_path):
    assert rule_of(save_png(tmp_path / "a.png", side, side, 8, 0, b"\0" * 1000)) == "too-large"


def test_memory_is_asked_for_first(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setattr("pipeline.data.nifti.available_bytes", lambda: 100)
    assert rule_of(path) == "memory"


def test_a_png_that_was_cut_or_changed_is_refused(tmp_path):
    whole = save(tmp_path / "a.png", COLOUR).read_bytes()
    path = tmp_path / "b.png"
    for position in range(0, len(whole) - 12, 5):  # the last chunk says only that it is the end
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            assert rule_of(path) == "picture-damaged", position


def test_a_jpeg_that_was_cut_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", COLOUR)
    path.write_bytes(path.read_bytes()[:-40])
    assert rule_of(path) == "picture-damaged"


def test_grey_and_colour_serve_each_other_where_nothing_is_lost(tmp_path):
    """Real collections of X-rays hold grey pictures of both kinds."""
    grey = Case("a", "a", (save(tmp_path / "a.png", GREY),))
    doubled = Case("b", "b", (save(tmp_path / "b.png", np.stack([GREY] * 3, -1)),))
    colour = Case("c", "c", (save(tmp_path / "c.png", COLOUR),))
    for case in (grey, doubled):
        for num_channels in (1, 3):
            images = read_case_images(case, num_channels)
            assert len(images) == num_channels
            assert all(np.array_equal(image.array[..., 0], GREY) for image in images)
    with pytest.raises(InputError, match="num-channels"):
        read_case_images(colour, 1)
    with pytest.raises(InputError, match="num-channels"):
        read_case_images(grey, 2)


def test_a_grey_picture_is_prepared_for_one_channel_and_for_three(tmp_path):
    image, label = save(tmp_path / "image.png", GREY), save(tmp_path / "label.png", GREY // 40)
    case, contract = Case("a", "a", (image,), label), LabelContract({"background": 0, "right": 1})
    section = DataSection(manifest=tmp_path, cache_dir=tmp_path / "cache")
    for num_channels in (1, 3, 1):
        [prepared] = prepare_cases([case], contract, num_channels, Preprocessing(), section)
        assert prepared.image.shape[0] == num_channels
