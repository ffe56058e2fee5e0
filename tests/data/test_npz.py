"""An archive is believed as far as its bytes bear it out; what lies or could run code is refused."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.npz import list_arrays, read_array, read_header, read_row
from pipeline.errors import FaultError, InputError


def save(path: Path, **arrays) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def save_member(path: Path, shape, data: bytes, descr="|u1", how=zipfile.ZIP_DEFLATED) -> Path:
    """An archive whose one array `x` claims a shape and type, with the bytes that are really there."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return path


def rule_of(read, *arguments) -> str:
    with pytest.raises(FaultError) as caught:
        read(*arguments)
    (fault,) = caught.value.faults
    return fault.rule


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", ">u2", "<f4", ">f8", "f2", "?"])
def test_rows_are_the_images_that_were_saved(dtype, tmp_path):
    images = np.random.default_rng(0).integers(0, 2, (4, 6, 5)).astype(dtype)
    (volume,) = read_row(save(tmp_path / "a.npz", x=images), "x", 2).volumes
    assert volume.array.shape == (6, 5, 1)
    assert np.array_equal(volume.array[..., 0], images[2])
    assert volume.array.dtype.isnative
    assert volume.array.dtype.kind in "uif"
    assert volume.array.dtype.itemsize <= 4
    assert np.array_equal(volume.grid.affine, np.eye(4))


def test_a_row_is_a_volume_or_in_colour(tmp_path):
    images = np.random.default_rng(0).integers(0, 200, (2, 6, 5, 4))
    path = save(tmp_path / "a.npz", volumes=images, colour=images[..., :3])
    (volume,) = read_row(path, "volumes", 1).volumes
    assert np.array_equal(volume.array, images[1])
    for channel, volume in enumerate(read_row(path, "colour", 1).volumes):
        assert np.array_equal(volume.array[..., 0], images[1, ..., channel])


def test_a_row_can_be_written_to_without_changing_the_next_reading(tmp_path):
    path = save(tmp_path / "a.npz", x=np.ones((2, 3, 3), np.uint8))
    read_row(path, "x", 0).volumes[0].array[:] = 7
    assert read_row(path, "x", 0).volumes[0].array.max() == 1


def test_an_array_is_unpacked_once_and_anew_when_the_file_changes(tmp_path):
    path = save(tmp_path / "a.npz", x=np.ones((2, 3, 3), np.uint8))
    first = read_array(path, "x")
    assert read_array(path, "x") is first
    save(path, x=np.full((2, 3, 3), 5, np.uint8))
    os.utime(path, ns=(1, 1))
    assert read_array(path, "x").max() == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_are_finite(value, tmp_path):
    images = np.zeros((2, 3, 3))
    images[1, 0, 0] = value
    path = save(tmp_path / "a.npz", x=images)
    read_row(path, "x", 0)
    with pytest.raises(InputError, match=r"x\[1\].*non-finite"):
        read_row(path, "x", 1)


def test_what_is_not_there_is_told(tmp_path):
    path = save(tmp_path / "a.npz", x=np.ones((2, 3, 3)), y=np.ones(2))
    assert list_arrays(path) == ["x", "y"]
    with pytest.raises(InputError, match=r"holds x, y.*missing-array"):
        read_header(path, "z")
    for name, row in (("x", 2), ("x", -1), ("y", 0)):
        assert rule_of(read_row, path, name, row) == "missing-row"
    assert rule_of(list_arrays, tmp_path / "gone.npz") == "unreadable"
    assert rule_of(read_array, tmp_path, "x") == "unreadable"


class Bomb:
    def __reduce__(self):
        return (os._exit, (99,))


def test_nothing_is_unpickled(tmp_path):
    path = save_member(tmp_path / "a.npz", (1,), pickle.dumps(np.array([Bomb()], object)), "|O")
    for read in (read_header, read_array):
        assert rule_of(read, path, "x") == "pickled"


@pytest.mark.parametrize(
    "shape, data, descr, rule",
    [
        ((10**12, 28, 28), b"abc", "|u1", "npz-damaged"),
        ((2, 2), b"abc", "|u1", "npz-damaged"),
        ((2, 2), b"abcde", "|u1", "npz-damaged"),
        ((-2, -2), b"abcd", "|u1", "empty-array"),
        ((0, 2), b"", "|u1", "empty-array"),
        ((), b"a", "|u1", "empty-array"),
        ((1,), b"a" * 4, "<U1", "datatype"),
        ((1,), b"a" * 16, "<c16", "datatype"),
        ((1,), b"a" * 8, [("a", "<f8")], "datatype"),
        ((1,), b"a", "no such type", "npz-damaged"),
    ],
)
def test_a_header_that_lies_or_holds_no_numbers_is_refused_unread(shape, data, descr, rule, tmp_path):
    path = save_member(tmp_path / "a.npz", shape, data, descr)
    for read in (read_header, read_array):
        assert rule_of(read, path, "x") == rule


def test_a_size_that_no_compression_reaches_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.nifti.available_bytes", lambda: 2**20)  # else told as lack of memory
    path = save_member(tmp_path / "a.npz", (2**31,), b"abc")
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    path.write_bytes(content[: directory + 24] + struct.pack("<I", 2**31) + content[directory + 28 :])
    assert rule_of(read_array, path, "x") == "npz-damaged"


def test_what_does_not_fit_into_memory_is_not_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", x=np.zeros((100, 100)))
    monkeypatch.setattr("pipeline.data.nifti.available_bytes", lambda: 50_000)
    assert rule_of(read_array, path, "x") == "memory"


def test_other_packings_are_refused(tmp_path):
    path = save_member(tmp_path / "a.npz", (3,), b"abc", how=zipfile.ZIP_BZIP2)
    assert rule_of(read_array, path, "x") == "npz-packing"


@pytest.mark.parametrize("save_packed", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_wherever_it_is_damaged(save_packed, tmp_path):
    """Never a wrong number, never another error than ours."""
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype(np.uint8)
    save_packed(tmp_path / "a.npz", x=images)
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    positions = range(0, len(whole), 5)
    for position in positions:
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :],
        ):
            path = tmp_path / "b.npz"
            path.write_bytes(damaged)
            os.utime(path, ns=(position, position))
            try:
                assert np.array_equal(read_array(path, "x"), images), position
            except InputError:
                refused += 1
    assert refused > 1.5 * len(positions)
