"""A label map lies exactly on its image, says what its values mean, and is right on disk or absent."""

from __future__ import annotations

import gzip
import json
import os
import struct
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its customary name
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension

from pipeline.errors import InputError, IntegrityError, ResourceError
from pipeline.export.nifti import write_label_map, write_map
from pipeline.export.signature import is_ours, read_label_names
from pipeline.volume import Grid

DATA = Path(__file__).parents[2] / "../shared/data"
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
SHAPE = (4, 5, 3)
FORMS = ["qform_code", "sform_code", "srow_x", "srow_y", "srow_z"]
QFORM = ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]


def grid_of(header) -> Grid:
    """The grid of a three-dimensional NIfTI header, as the data reader gives it."""
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    return Grid(
        (*header.get_data_shape(), 1)[:3],
        header.get_best_affine(),
        sform,
        sform_code,
        qform,
        qform_code,
        pixdim=tuple(header["pixdim"][:4].tolist()),
        quaternion=tuple(float(header[f"quatern_{axis}"]) for axis in "bcd"),
    )


def source_header(affine, sform_code, qform_code, shape=SHAPE, qform=None):
    """The header of a float image that some scanner might have written."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    if qform_code:
        header.set_qform(affine if qform is None else qform, qform_code)
    if sform_code:
        header.set_sform(affine, sform_code)
    return header


def random_labels(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 3, shape)


def assert_lies_on(path: Path, header) -> None:
    """The mask's geometry is the source's: in the header's bits and in nibabel's affine."""
    mask = nib.load(path).header
    assert mask.get_best_affine().tobytes() == header.get_best_affine().tobytes()
    num_axes = len(header.get_data_shape())
    assert np.array_equal(mask["pixdim"][: num_axes + 1], header["pixdim"][: num_axes + 1])
    for name in FORMS + (QFORM if header["qform_code"] else []):
        assert np.array_equal(mask[name], header[name]), name


def signed_permutations():
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[axes, range(3)] = signs
        yield matrix


def rotation(angles) -> np.ndarray:
    """Rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a] = np.sin(angle)
        turn[a, b] = -turn[b, a]
        result = turn @ result
    return result


# Geometry.


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 4), (0, 0)], ids=["sform", "qform", "both", "neither"])
def test_a_mask_has_its_images_affine_in_all_48_orientations(tmp_path, codes):
    path = tmp_path / "mask.nii"
    for seed, axes in enumerate(signed_permutations()):
        affine = nib.affines.from_matvec(axes * (0.3, 1.0, 7.1), (-90.1, 126.7, 1e-3))
        header = source_header(affine, *codes)
        labels_array = random_labels(seed=seed)
        write_label_map(path, labels_array, grid_of(header), LABELS)
        assert_lies_on(path, header)
        assert np.array_equal(np.asanyarray(nib.load(path).dataobj), labels_array)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi) | st.sampled_from([0, 1e-9, np.pi / 2, np.pi])] * 3),
    spacing=st.tuples(*[st.floats(0.3, 10)] * 3),
    offset=st.tuples(*[st.floats(-500, 500)] * 3),
    flip=st.booleans(),
    shape=st.sampled_from([SHAPE, (6, 7, 1), (1, 1, 1), (6, 7)]),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    has_other_qform=st.booleans(),
)
def test_a_mask_has_its_images_affine_to_the_bit(
    tmp_path, angles, spacing, offset, flip, shape, codes, has_other_qform
):
    axes = rotation(angles) * ((-1, 1, 1) if flip else (1, 1, 1))
    affine = nib.affines.from_matvec(axes * spacing, offset)
    qform = (
        nib.affines.from_matvec(rotation(angles[::-1]) * spacing, offset[::-1]) if has_other_qform else None
    )
    header = source_header(affine, *codes, shape, qform)
    grid = grid_of(header)
    path = tmp_path / "mask.nii"
    write_label_map(path, random_labels(grid.shape), grid, LABELS)
    assert_lies_on(path, header)


finite32 = st.floats(-1, 1, width=32)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quaternion=st.tuples(finite32, finite32, finite32), qfac=st.sampled_from([-1, 1]))
def test_any_stored_quaternion_survives(tmp_path, quaternion, qfac):
    assume(sum(x * x for x in quaternion) <= 1)
    header = source_header(np.diag([0.7, 1.3, 2.9, 1]), 0, 1)
    header["pixdim"][0] = qfac
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion
    path = tmp_path / "mask.nii"
    write_label_map(path, random_labels(), grid_of(header), LABELS)
    assert_lies_on(path, header)


def test_a_shear_in_the_sform_and_a_rounded_pixdim_survive(tmp_path):
    affine = np.array([[1, 7e-4, 0, 5], [0, 1.1, 0, 6], [9e-4, 0, 2, 7], [0, 0, 0, 1]])
    header = source_header(affine, 2, 0)
    header["pixdim"][:4] = -1, 1.0, 1.1, 2.0
    write_label_map(tmp_path / "mask.nii.gz", random_labels(), grid_of(header), LABELS)
    assert_lies_on(tmp_path / "mask.nii.gz", header)


@pytest.mark.parametrize("third", [0, -1, np.nan, np.inf, 5])
@pytest.mark.parametrize("codes", [(1, 0), (0, 0)], ids=["sform", "neither"])
def test_a_meaningless_third_spacing_of_a_slice_does_no_harm(tmp_path, codes, third):
    header = source_header(np.diag([0.4, 0.6, 1, 1]), *codes, (6, 7))
    header["pixdim"][3] = third
    path = tmp_path / "mask.nii"
    write_label_map(path, random_labels((6, 7, 1)), grid_of(header), LABELS)
    mask = nib.load(path)
    assert np.array_equal(mask.affine, header.get_best_affine())
    stored = nib.Nifti1Header(path.read_bytes()[:348], check=False)["pixdim"][1:4]
    assert np.isfinite(stored).all()
    assert (stored > 0).all()


def test_a_grid_that_no_nifti_header_gave_is_kept_as_near_as_float32_allows(tmp_path):
    affine = nib.affines.from_matvec(rotation((0.2, -0.3, 3.0)) * (0.9375, 0.9375, 6.5), (-101.3, 98.2, 40.7))
    for codes in ((1, 0), (1, 1), (0, 1)):
        path = tmp_path / "mask.nii"
        write_label_map(
            path, random_labels(), Grid(SHAPE, affine, sform_code=codes[0], qform_code=codes[1]), LABELS
        )
        mask = nib.load(path)
        assert np.allclose(mask.affine, affine, rtol=0, atol=2e-5)
        assert np.allclose(mask.header.get_zooms(), (0.9375, 0.9375, 6.5))
        assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == codes
        if codes[0]:
            assert np.array_equal(mask.affine, affine.astype(np.float32))


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (0, 0)], ids=str)
def test_itk_puts_mask_and_image_in_the_same_place(tmp_path, codes):
    affine = nib.affines.from_matvec(rotation((0.1, 0.4, 2.0)) * (0.7, -1.3, 2.5), (-40, 30.5, 12))
    if codes == (0, 0):
        affine = np.diag([0.7, 1.3, 2.5, 1])
    header = source_header(affine, *codes)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), None, header), tmp_path / "image.nii.gz")
    labels_array = random_labels()
    write_label_map(tmp_path / "mask.nii.gz", labels_array, grid_of(header), LABELS)
    image, mask = (sitk.ReadImage(tmp_path / name) for name in ("image.nii.gz", "mask.nii.gz"))
    assert mask.GetOrigin() == image.GetOrigin()
    assert mask.GetSpacing() == image.GetSpacing()
    assert mask.GetDirection() == image.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(mask).T, labels_array)


def test_a_header_that_cannot_express_the_grid_is_refused(tmp_path):
    sheared = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    shifted = nib.affines.from_matvec(np.eye(3), (0, 0, 3))
    for grid in (
        Grid(SHAPE, sheared, sform_code=0, qform_code=1),
        Grid(SHAPE, np.eye(4), sform=shifted),
        Grid(SHAPE, shifted, sform_code=0, qform_code=0),
    ):
        with pytest.raises(ValueError, match=r"cannot express its affine|right angles"):
            write_label_map(tmp_path / "mask.nii", random_labels(), grid, LABELS)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not DATA.exists(), reason="needs the real images beside the project (../shared/data)")
@pytest.mark.parametrize("folder", ["hippocampus/imagesTr", "openkbp/imagesTr"])
def test_masks_of_real_images_lie_on_them(tmp_path, folder):
    images = sorted(path for path in (DATA / folder).glob("*.nii.gz") if not path.name.startswith("."))[:3]
    assert images
    for path in images:
        image = nib.load(path)
        write_label_map(tmp_path / "mask.nii.gz", random_labels(image.shape), grid_of(image.header), LABELS)
        assert_lies_on(tmp_path / "mask.nii.gz", image.header)


# What else the file says.


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)]
)
@pytest.mark.parametrize("given_type", [np.uint16, np.int32, np.int64])
def test_the_type_is_the_smallest_for_the_largest_declared_label(tmp_path, largest, dtype, given_type):
    path = tmp_path / "mask.nii.gz"
    array = np.ones(SHAPE, given_type)  # the largest itself need not be present
    write_label_map(path, array, Grid(SHAPE, np.eye(4)), {"background": 0, "a": 1, "b": largest})
    mask = nib.load(path)
    assert mask.get_data_dtype() == dtype
    assert np.array_equal(np.asanyarray(mask.dataobj), array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_stay_where_they_are_in_either_memory_order(tmp_path, order):
    array = np.array(random_labels((5, 6, 7)), order=order)
    view = array[::2, ::-1, 1:]
    for number, voxels in enumerate((array, view)):
        path = tmp_path / f"{number}.nii.gz"
        before = voxels.copy()
        write_label_map(path, voxels, Grid(voxels.shape, np.eye(4)), LABELS)
        assert np.array_equal(np.asanyarray(nib.load(path).dataobj), before)
        assert np.array_equal(voxels, before)


def test_the_header_holds_what_viewers_need_and_nothing_else(tmp_path):
    path = tmp_path / "patient-mueller.nii"
    write_label_map(path, random_labels(), Grid(SHAPE, np.eye(4)), LABELS)
    raw = path.read_bytes()
    header = nib.load(path).header
    assert header.get_xyzt_units()[0] == "mm"
    assert int(header["intent_code"]) == 1002
    assert header.get_slope_inter() == (None, None)
    assert struct.unpack_from("<ff", raw, 112) in ((1.0, 0.0), (0.0, 0.0))  # no scaling, in every reader
    for name in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        assert header[name].item() == b""
    assert b"mueller" not in raw
    (extension,) = header.extensions
    assert (extension.get_code(), json.loads(extension.content)) == (6, {"clinseg": {"labels": LABELS}})


def test_the_same_label_map_gives_the_same_bytes_under_any_name(tmp_path, monkeypatch):
    for name, now in (("a.nii.gz", 1.0), ("b.nii.gz", 2e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_label_map(tmp_path / name, random_labels(), Grid(SHAPE, np.eye(4)), LABELS)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_label_names_come_back_in_their_order(tmp_path, suffix):
    labels = {"Hintergrund": 0, "vordere Höhle": 2, 'a"b\0': 1, **{f"organ {n}": n for n in range(3, 400)}}
    path = tmp_path / f"mask{suffix}"
    write_label_map(path, random_labels(), Grid(SHAPE, np.eye(4)), labels)
    read = read_label_names(path)
    assert list(read.items()) == list(labels.items())


@pytest.mark.parametrize(
    "content",
    [
        b"a plain comment",
        b"\xff\xfe\x00",
        b"{}",
        b"[1]",
        b'{"clinseg": 3}',
        b'{"clinseg": {"labels": {"a": "1"}}}',
        b'{"clinseg": {"labels": {"a": true}}}',
        b'{"clinseg": {"labels": [1]}}',
        b'{"clinseg": {"labels": {"a": 1}}',
        b"[" * 100_000,
        b"9" * 5000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_with_another_comment_has_no_names(tmp_path, content):
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    image.header.extensions.append(Nifti1Extension(6, content))
    nib.save(image, tmp_path / "other.nii.gz")
    assert read_label_names(tmp_path / "other.nii.gz") is None


def test_files_without_an_extension_or_of_another_kind_have_no_names(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "plain.nii")
    nib.save(nib.Nifti2Image(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "two.nii")
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "text.nii").write_text("not an image " * 50)
    plain = bytearray((tmp_path / "plain.nii").read_bytes())
    for number, (flag, size, offset) in enumerate(
        [(1, 2**31 - 1, 1e9), (1, -5, 400), (1, 0, 1e6), (1, 32, 1e30)]
    ):
        struct.pack_into("<f", plain, 108, offset)
        struct.pack_into("<bxxxii", plain, 348, flag, size, 6)
        (tmp_path / f"lying{number}.nii").write_bytes(plain)
    for path in tmp_path.iterdir():
        assert read_label_names(path) is None, path.name


def test_a_file_that_cannot_be_read_is_said(tmp_path):
    write_label_map(tmp_path / "mask.nii.gz", random_labels(), Grid(SHAPE, np.eye(4)), LABELS)
    whole = (tmp_path / "mask.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[:60])
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(whole))
    (tmp_path / "flipped.nii.gz").write_bytes(whole[:40] + b"\xff" * 30 + whole[70:])
    for wrong in (
        tmp_path / "none.nii",
        tmp_path,
        *(tmp_path / f"{n}.nii.gz" for n in ("cut", "plain", "flipped")),
    ):
        with pytest.raises(InputError, match="cannot be read"):
            read_label_names(wrong)


# Right on disk, or absent.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_array": np.full(SHAPE, 3)}, r"no label declares: \[3\]"),
        ({"labels_array": np.full(SHAPE, -1)}, r"no label declares: \[-1\]"),
        (
            {"labels_array": np.ones(SHAPE, int), "labels": {"background": 0, "b": 2}},
            r"no label declares: \[1\]",
        ),
        ({"labels_array": np.full(SHAPE, 256)}, r"no label declares: \[256\]"),
        ({"labels_array": np.zeros((5, 4, 3), int)}, "whole numbers of shape"),
        ({"labels_array": np.zeros(SHAPE)}, "not float64"),
        ({"labels_array": np.zeros(SHAPE, bool)}, "not bool"),
        ({"labels": {}}, "between 0 and 65535"),
        ({"labels": {"background": 0, "b": 65536}}, "between 0 and 65535"),
        ({"labels": {"background": 0, "b": -1}}, "between 0 and 65535"),
        ({"path": "mask.nrrd"}, r"ends in \.nii"),
        (
            {"grid": Grid((40000, 1, 1), np.eye(4)), "labels_array": np.zeros((40000, 1, 1), int)},
            "at most 32767",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_wrong_is_never_written(tmp_path, changes, message):
    arguments = {"path": "mask.nii.gz", "labels_array": np.zeros(SHAPE, int), "grid": Grid(SHAPE, np.eye(4))}
    arguments |= {"labels": LABELS} | changes
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        write_label_map(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_disk_that_changes_a_byte_leaves_no_file(tmp_path, monkeypatch, suffix):
    """Flips a bit in each byte in turn between fsync and reading back, as a bad disk would."""
    path = tmp_path / f"mask{suffix}"
    array, grid = random_labels((2, 2, 2)), Grid((2, 2, 2), np.eye(4))
    write_label_map(path, array, grid, LABELS)
    whole = path.read_bytes()
    path.unlink()
    fsync = os.fsync
    num_kept = 0
    for at in range(len(whole)):

        def damage(descriptor, at=at):
            monkeypatch.setattr(os, "fsync", fsync)
            os.pwrite(descriptor, bytes([whole[at] ^ 1]), at)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", damage)
        try:
            write_label_map(path, array, grid, LABELS)
        except IntegrityError as error:
            assert error.exit_code == 6
            assert "read back" in str(error)
        else:  # a bit of gzip's that means nothing: of its time, or the code of a byte that never occurs
            num_kept += 1
            assert gzip.decompress(path.read_bytes()) == gzip.decompress(whole)
            path.unlink()
        assert not list(tmp_path.iterdir())
    assert num_kept <= (0.2 * len(whole) if suffix == ".nii.gz" else 0)


def test_a_full_disk_leaves_the_old_label_map(small_disk):
    path = small_disk / "mask.nii"
    write_label_map(path, random_labels(), Grid(SHAPE, np.eye(4)), LABELS)
    before = path.read_bytes()
    shape = (100, 100, 100)
    with pytest.raises(ResourceError, match="disk is full"):
        write_label_map(path, np.zeros(shape, int), Grid(shape, np.eye(4)), LABELS)
    assert path.read_bytes() == before
    assert list(small_disk.iterdir()) == [path]


# Maps of numbers.


@pytest.mark.parametrize("shape", [SHAPE, (6, 7, 1), (6, 7)], ids=str)
def test_a_map_lies_on_its_image_to_the_bit_and_says_what_it_is(tmp_path, shape):
    path = tmp_path / "case_tumour_grad_cam.nii.gz"
    meaning = {"class": "Größe > 3", "method": "grad_cam", "probability": 0.25}
    for seed, axes in enumerate(signed_permutations()):
        affine = nib.affines.from_matvec(rotation((0.1, 0.2, 0.3)) @ axes * (0.3, 1.0, 7.1), (-90.1, 12, 3))
        header = source_header(affine, 2, 1, shape)
        grid = grid_of(header)
        values = np.random.default_rng(seed).normal(size=grid.shape)
        write_map(path, values, grid, meaning)
        assert_lies_on(path, header)
        read = nib.load(path)
        assert read.get_data_dtype() == np.float32
        assert np.array_equal(np.asanyarray(read.dataobj), values.astype(np.float32))
        (extension,) = read.header.extensions
        assert json.loads(extension.content) == {"clinseg": {"map": meaning}}
    assert read_label_names(path) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.full(SHAPE, np.nan, np.float32)}, "finite numbers"),
        ({"values": np.full(SHAPE, np.inf, np.float32)}, "finite numbers"),
        ({"values": np.zeros(SHAPE, np.uint8)}, "not uint8"),
        ({"values": np.zeros((5, 4, 3), np.float32)}, "of shape"),
        ({"path": "map.png"}, r"ends in \.nii"),
    ],
)
def test_a_map_that_would_be_wrong_is_never_written(tmp_path, changes, message):
    arguments = {"path": "map.nii", "values": np.zeros(SHAPE, np.float32)} | changes
    with pytest.raises(ValueError, match=message):
        write_map(tmp_path / arguments["path"], arguments["values"], Grid(SHAPE, np.eye(4)), {})
    assert not list(tmp_path.iterdir())


def test_a_map_that_a_disk_changes_leaves_no_file(tmp_path, monkeypatch):
    fsync = os.fsync

    def damage(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        os.pwrite(descriptor, b"?", os.fstat(descriptor).st_size - 1)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(IntegrityError, match="read back"):
        write_map(tmp_path / "map.nii", np.zeros(SHAPE, np.float32), Grid(SHAPE, np.eye(4)), {})
    assert not list(tmp_path.iterdir())


def test_a_table_is_no_file_of_ours_and_no_library_says_a_word_of_it(tmp_path, caplog):
    path = tmp_path / "predictions.csv"
    path.write_text("case,predicted,probability_disc,probability_ring,review\n" * 99)
    assert not is_ours(path)
    assert not caplog.records
