"""A NIfTI file is read as it is meant, or refused by a rule that has a name."""

import gzip
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.images import read_image, read_label_map, read_with_warnings
from pipeline.errors import FaultError, InputError, ResourceError

SHAPE = (5, 6, 4)
AFFINE = np.array([[0.8, 0, 0, -12], [0, 0.9, 0, 7], [0, 0, 2.5, 31], [0, 0, 0, 1.0]])
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def save(path: Path, array=VOXELS, affine=AFFINE, kind=nib.Nifti1Image) -> Path:
    image = kind(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def patched(path: Path, array=VOXELS, **fields) -> Path:
    """A `.nii` whose header fields are set to lies, the voxels left alone."""
    content = save(path, array).read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def with_forms(path: Path, sform, qform, codes=(1, 1)) -> Path:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.set_qform(qform, codes[1], strip_shears=True)
    image.header["sform_code"], image.header["vox_offset"] = codes[0], 352
    for axis, row in zip("xyz", sform, strict=False):
        image.header[f"srow_{axis}"] = row
    path.write_bytes(image.header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    return path


def changed(path: Path, edit: Callable[[bytearray], bytes | bytearray]) -> Path:
    path.write_bytes(edit(bytearray(save(path).read_bytes())))
    return path


def flip_in_voxels(content: bytearray) -> bytearray:
    """A byte of deflated data changed so that only the checksum tells."""
    raw = bytearray(gzip.decompress(content))
    raw[-3] ^= 1
    return bytearray(gzip.compress(bytes(raw))[:-8]) + content[-8:]


def dims(*sizes: int) -> list[int]:
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 0.01
    return affine


def changed_voxel(value: float, dtype: type = np.float32) -> np.ndarray:
    array = VOXELS.astype(dtype)
    array[2, 3, 1] = value
    return array


def column(index: int, value) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, index] = value
    return affine


NII, GZ = "case.nii", "case.nii.gz"
REFUSED = {
    "missing": ("missing-file", lambda d: d / NII),
    "name too long": ("missing-file", lambda d: d / ("x" * 300 + ".nii")),
    "other suffix": ("file-type", lambda d: save(d / NII).rename(d / "case.img")),
    "empty": ("truncated", lambda d: changed(d / NII, lambda b: b"")),
    "empty gz": ("truncated", lambda d: changed(d / GZ, lambda b: b"")),
    "header only in part": ("truncated", lambda d: changed(d / NII, lambda b: b[:200])),
    "truncated": ("truncated", lambda d: changed(d / NII, lambda b: b[:-1])),
    "truncated gz": ("truncated", lambda d: changed(d / GZ, lambda b: b[: len(b) // 2])),
    "gz without its checksum": ("truncated", lambda d: changed(d / GZ, lambda b: b[:-4])),
    "flipped byte gz": ("gzip-damaged", lambda d: changed(d / GZ, flip_in_voxels)),
    "broken deflate": ("gzip-damaged", lambda d: changed(d / GZ, lambda b: b[:60] + b"\xff" * 40 + b[100:])),
    "no gzip": ("gzip-damaged", lambda d: changed(d / GZ, gzip.decompress)),
    "garbage after gz": ("gzip-damaged", lambda d: changed(d / GZ, lambda b: b + b"garbage")),
    "trailing": ("trailing-bytes", lambda d: changed(d / NII, lambda b: b + b"\0")),
    "trailing gz": (
        "trailing-bytes",
        lambda d: changed(d / GZ, lambda b: gzip.compress(gzip.decompress(b) + b"\0")),
    ),
    "not nifti": ("not-nifti", lambda d: changed(d / NII, lambda b: b"\x89PNG" + b[4:])),
    "gz named nii": ("not-nifti", lambda d: changed(d / NII, gzip.compress)),
    "header of a pair": ("not-nifti", lambda d: patched(d / NII, magic=b"ni1")),
    "huge": ("too-large", lambda d: patched(d / NII, dim=dims(30000, 30000, 30000))),
    "longer than a result can be": (
        "too-large",
        lambda d: nib.save(nib.Nifti2Image(np.zeros((32768, 2, 2), np.uint8), AFFINE), d / NII) or d / NII,
    ),
    "larger than the file": ("truncated", lambda d: patched(d / NII, dim=dims(500, 500, 500))),
    "no axes": ("dimensions", lambda d: patched(d / NII, dim=[0] * 8)),
    "one axis": ("dimensions", lambda d: patched(d / NII, dim=dims(120))),
    "empty axis": ("dimensions", lambda d: patched(d / NII, dim=dims(5, 0, 4))),
    "negative axis": ("dimensions", lambda d: patched(d / NII, dim=dims(5, -6, 4))),
    "five dimensions": ("dimensions", lambda d: patched(d / NII, dim=dims(5, 6, 2, 1, 2))),
    "complex": ("datatype", lambda d: save(d / NII, VOXELS.astype(np.complex64))),
    "rgb": ("datatype", lambda d: patched(d / NII, datatype=128, bitpix=24)),
    "unknown type": ("datatype", lambda d: patched(d / NII, datatype=99)),
    "lying bitpix": ("datatype", lambda d: patched(d / NII, bitpix=32)),
    "offset in the header": ("voxel-offset", lambda d: patched(d / NII, vox_offset=10)),
    "offset NaN": ("voxel-offset", lambda d: patched(d / NII, vox_offset=np.nan)),
    "offset far away": ("voxel-offset", lambda d: patched(d / NII, vox_offset=1e12)),
    "offset past the end": ("truncated", lambda d: patched(d / NII, vox_offset=4096)),
    "infinite slope": ("scaling", lambda d: patched(d / NII, scl_slope=np.inf, scl_inter=0)),
    "intercept NaN": ("scaling", lambda d: patched(d / NII, scl_slope=2, scl_inter=np.nan)),
    "metres": ("units", lambda d: patched(d / NII, xyzt_units=1)),
    "microns": ("units", lambda d: patched(d / NII, xyzt_units=3)),
    "NaN": ("non-finite", lambda d: save(d / GZ, changed_voxel(np.nan))),
    "infinity": ("non-finite", lambda d: save(d / NII, changed_voxel(-np.inf))),
    "beyond float32": ("non-finite", lambda d: save(d / NII, changed_voxel(1e300, np.float64))),
    "zero spacing": ("pixdim", lambda d: patched(d / NII, pixdim=[1, 1, 0, 1, 0, 0, 0, 0])),
    "negative spacing": ("pixdim", lambda d: patched(d / NII, pixdim=[1, 1, -1, 1, 0, 0, 0, 0])),
    "spacing NaN": ("pixdim", lambda d: patched(d / NII, pixdim=[1, 1, np.nan, 1, 0, 0, 0, 0])),
    "singular": ("affine-singular", lambda d: with_forms(d / NII, column(1, 0), AFFINE)),
    "two equal axes": ("affine-singular", lambda d: with_forms(d / NII, column(1, AFFINE[:3, 0]), AFFINE)),
    "sform NaN": ("affine-not-finite", lambda d: with_forms(d / NII, column(3, np.nan), AFFINE)),
    "sheared": ("shear", lambda d: save(d / NII, affine=sheared())),
    "tiny voxels": ("spacing-range", lambda d: save(d / NII, affine=np.diag([1e-3, 1e-3, 1e-3, 1]))),
    "large voxels": ("spacing-range", lambda d: save(d / NII, affine=np.diag([900, 900, 900, 1]))),
    "anisotropic": ("anisotropy", lambda d: save(d / NII, affine=np.diag([0.02, 1, 50, 1]))),
    "no rotation": (
        "qform",
        lambda d: patched(d / NII, quatern_b=1, quatern_c=1, sform_code=0, qform_code=1),
    ),
    "quaternion NaN": ("qform", lambda d: patched(d / NII, quatern_b=np.nan, sform_code=0, qform_code=1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_refused_by_its_rule(name, tmp_path):
    rule, make = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read_image(make(tmp_path))
    assert rule in {fault.rule for fault in caught.value.faults}


def test_all_faults_of_a_header_are_told(tmp_path):
    path = patched(tmp_path / NII, datatype=128, xyzt_units=1, dim=dims(5), pixdim=[1, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert {f.rule for f in caught.value.faults} >= {"datatype", "units", "dimensions", "pixdim"}


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails if Python and numpy ask for more than 10 MiB within, used or not."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_a_lying_header_allocates_nothing(tmp_path):
    content = patched(tmp_path / NII, dim=dims(1000, 1000, 1000)).read_bytes()
    (tmp_path / GZ).write_bytes(gzip.compress(content))
    for name in (NII, GZ):
        with little_memory(), pytest.raises(InputError, match="truncated"):
            read_image(tmp_path / name)


def test_a_decompression_bomb_stops_at_the_claimed_size(tmp_path):
    path = tmp_path / GZ
    content = save(tmp_path / NII).read_bytes()
    path.write_bytes(gzip.compress(content) + gzip.compress(bytes(2**28), 1))
    with little_memory(), pytest.raises(InputError, match="trailing-bytes"):
        read_image(path)


def test_an_image_larger_than_memory_is_a_matter_of_resources(tmp_path, monkeypatch):
    memory = type("Memory", (), {"available": 100})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(ResourceError, match="memory"):
        read_image(save(tmp_path / NII))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    path = save(tmp_path / NII)
    path.chmod(0)
    with pytest.raises(InputError, match="unreadable"):
        read_image(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> bytes:
    return save(tmp_path_factory.mktemp("intact") / NII).read_bytes()


@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
def test_no_damage_to_a_header_ends_in_anything_but_a_fault(changes, intact, tmp_path):
    content = bytearray(intact)
    for position, value in changes:
        content[position] = value
    (tmp_path / NII).write_bytes(content)
    try:
        (volume,) = read_image(tmp_path / NII)
    except FaultError as error:
        assert all(fault.rule and fault.message for fault in error.faults)
    else:
        assert np.isfinite(volume.grid.affine).all()


def orientations() -> list[np.ndarray]:
    """All 48 ways in which array axes can run along the patient's."""
    found = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] * np.multiply(signs, (0.7, 1.1, 3.0))
        affine[:3, 3] = (-40.5, 13.25, 7)
        found.append(affine)
    return found


def test_every_orientation_reads_back_as_stored(tmp_path):
    for affine in orientations():
        (volume,) = read_image(save(tmp_path / NII, affine=affine))
        assert np.array_equal(volume.grid.affine, affine.astype(np.float32))
        assert np.array_equal(volume.array, VOXELS)
        assert volume.grid.orientation == "".join(nib.aff2axcodes(affine))


def rotation(angles) -> np.ndarray:
    return nib.eulerangles.euler2mat(*angles)


@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 9)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
def test_an_oblique_affine_reads_back_as_stored(angles, spacing, origin, kind, tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * spacing
    affine[:3, 3] = origin
    path = save(tmp_path / NII, affine=affine, kind=kind)
    (volume,) = read_image(path)
    header = nib.load(path).header
    assert np.array_equal(volume.grid.affine, nib.load(path).affine)
    assert np.allclose(volume.grid.affine, affine, atol=1e-4)
    assert np.array_equal(volume.grid.sform, header.get_sform())
    assert volume.grid.sform_code == header["sform_code"]
    assert volume.grid.pixdim == tuple(header["pixdim"][:4])


def test_forms_and_codes_travel_with_the_grid(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, 2)
    image.set_sform(AFFINE, 4)
    nib.save(image, tmp_path / NII)
    grid = read_image(tmp_path / NII)[0].grid
    assert (grid.sform_code, grid.qform_code) == (4, 2)
    assert np.array_equal(grid.qform, nib.load(tmp_path / NII).get_qform())
    assert grid.quaternion == tuple(float(image.header[f"quatern_{axis}"]) for axis in "bcd")


def test_only_a_qform_is_used_and_no_sform_is_invented(tmp_path):
    (volume,) = read_image(with_forms(tmp_path / NII, np.zeros((3, 4)), AFFINE, codes=(0, 1)))
    assert np.allclose(volume.grid.affine, AFFINE, atol=1e-5)
    assert volume.grid.sform is None
    assert volume.grid.qform is not None


def test_forms_that_disagree_warn_and_the_sform_is_used(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    reading = read_with_warnings(with_forms(tmp_path / NII, AFFINE, moved))
    assert [fault.rule for fault in reading.warnings] == ["sform-qform"]
    assert "1.00 mm" in reading.warnings[0].message
    assert np.allclose(reading.volumes[0].grid.affine, AFFINE)
    assert not read_with_warnings(with_forms(tmp_path / NII, AFFINE, AFFINE)).warnings


def test_voxel_sizes_that_disagree_with_the_sform_warn_and_the_sform_is_used(tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.set_sform(AFFINE, 1)
    for sizes, rules in (((1, 1, 1), ["sform-pixdim"]), (np.linalg.norm(AFFINE[:3, :3], axis=0), [])):
        image.header.set_zooms(sizes)
        nib.save(image, tmp_path / NII)
        reading = read_with_warnings(tmp_path / NII)
        assert [fault.rule for fault in reading.warnings] == rules
        assert np.allclose(reading.volumes[0].grid.affine, AFFINE)


def test_no_orientation_warns_and_assumes_what_nibabel_does(tmp_path):
    path = with_forms(tmp_path / NII, AFFINE, AFFINE, codes=(0, 0))
    reading = read_with_warnings(path)
    assert [fault.rule for fault in reading.warnings] == ["no-orientation"]
    assert np.array_equal(reading.volumes[0].grid.affine, nib.load(path).affine)
    assert reading.volumes[0].grid.sform is reading.volumes[0].grid.qform is None


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4"])
def test_stored_types_are_kept_in_native_order(code, order, kind, tmp_path):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(code).newbyteorder(order))
    image = kind(VOXELS.astype(code), AFFINE, header)
    nib.save(image, tmp_path / GZ)
    (volume,) = read_image(tmp_path / GZ)
    assert volume.array.dtype == np.dtype(code)
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array, VOXELS)
    assert volume.array.flags.f_contiguous
    assert volume.array.flags.writeable


@pytest.mark.parametrize("slope, inter", [(0, 5), (np.nan, np.nan), (np.nan, 3), (1, 0)])
def test_no_slope_means_stored_values(slope, inter, tmp_path):
    (volume,) = read_image(patched(tmp_path / NII, scl_slope=slope, scl_inter=inter))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, VOXELS)


@pytest.mark.parametrize("slope, inter", [(2.5, -1000), (-1, 0), (1, 10)])
def test_a_slope_is_applied(slope, inter, tmp_path):
    path = patched(tmp_path / NII, VOXELS.astype(np.uint8), scl_slope=slope, scl_inter=inter)
    (volume,) = read_image(path)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array, nib.load(path).get_fdata())


def test_float64_becomes_float32(tmp_path):
    (volume,) = read_image(save(tmp_path / NII, VOXELS / 7.0))
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array, VOXELS / 7.0)


def test_frames_become_channels_on_one_grid(tmp_path):
    frames = np.stack([VOXELS, VOXELS[::-1], VOXELS * 2], axis=-1)
    volumes = read_image(save(tmp_path / GZ, frames))
    assert len(volumes) == 3
    for index, volume in enumerate(volumes):
        assert np.array_equal(volume.array, frames[..., index])
        assert volume.grid is volumes[0].grid


@pytest.mark.parametrize(
    "shape", [(5, 6), (5, 6, 1), (5, 6, 1, 1), (5, 6, 4, 1), (5, 6, 4, 1, 1), (5, 6, 1, 1, 1)]
)
def test_trailing_axes_of_one_are_dropped_and_missing_ones_added(shape, tmp_path):
    (volume,) = read_image(save(tmp_path / NII, np.resize(VOXELS, shape)))
    assert volume.array.shape == (*shape, 1)[:3]


def test_header_extensions_are_skipped(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello" * 100))
    nib.save(image, tmp_path / GZ)
    assert np.array_equal(read_image(tmp_path / GZ)[0].array, VOXELS)


def test_gzip_of_several_members_is_one_stream(tmp_path):
    content = save(tmp_path / NII).read_bytes()
    (tmp_path / GZ).write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    assert np.array_equal(read_image(tmp_path / GZ)[0].array, VOXELS)


def test_a_qfac_of_zero_means_one(tmp_path):
    path = with_forms(tmp_path / NII, AFFINE, AFFINE, codes=(0, 1))
    content = bytearray(path.read_bytes())
    content[76:80] = bytes(4)
    path.write_bytes(content)
    assert np.allclose(read_image(path)[0].grid.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    "array, dtype",
    [
        ((VOXELS % 3).astype(np.float32), np.uint8),
        ((VOXELS % 3).astype(np.int64), np.uint8),
        (VOXELS * 200, np.uint16),
        ((VOXELS == 1).astype(np.int32) * 65535, np.uint16),
    ],
)
def test_label_maps_come_in_the_smallest_unsigned_type(array, dtype, tmp_path):
    volume = read_label_map(save(tmp_path / GZ, array))
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array, array)


@pytest.mark.parametrize(
    "array, rule",
    [
        (VOXELS / np.float32(2), "label-not-whole"),
        (VOXELS - 1, "label-range"),
        ((VOXELS == 1) * np.int32(65536), "label-range"),
        (VOXELS * np.int64(2**40), "label-range"),
        (np.stack([VOXELS, VOXELS], axis=-1), "label-channels"),
    ],
)
def test_bad_label_maps_are_refused(array, rule, tmp_path):
    with pytest.raises(InputError, match=rule):
        read_label_map(save(tmp_path / GZ, array))


def test_nibabels_own_odd_files_read_as_nibabel_reads_them():
    folder = Path(nib.__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "functional.nii", "example4d.nii.gz", "example_nifti2.nii.gz"):
        if not (folder / name).exists():
            pytest.skip("this nibabel comes without its test data")
        image = nib.load(folder / name)
        volumes = read_image(folder / name)
        assert np.array_equal(volumes[0].grid.affine, image.affine), name
        expected = np.asanyarray(image.dataobj).reshape((*image.shape[:3], -1))
        assert np.allclose(np.stack([v.array for v in volumes], -1), expected, rtol=1e-6), name
