"""NRRD and MetaImage become NIfTI in place and to the last voxel, or never reach their reader."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its customary name

from pipeline.data import nrrd_metaimage
from pipeline.data.images import find_inputs, read_image
from pipeline.data.nrrd_metaimage import read_foreign
from pipeline.errors import InputError

FORMATS = [(suffix, packed) for suffix in (".nrrd", ".mha") for packed in (False, True)]


def image(dtype=np.int16, shape=(7, 5, 4)):
    array = (np.random.default_rng(0).normal(0, 50, shape) + 60).astype(dtype)
    made = sitk.GetImageFromArray(array.T)
    made.SetSpacing((0.7, 1.3, 3.0))
    made.SetOrigin((-40.5, 30.25, 12))
    turn = nib.eulerangles.euler2mat(0.2, -0.4, 0.1) @ np.diag([1, -1, 1])
    made.SetDirection(turn.ravel())
    return array, made


def save(path, made, packed):
    sitk.WriteImage(made, str(path), useCompression=packed)
    return path


# Each reading starts a program that takes seconds; the other types and forms are those of `convert` below.
@pytest.mark.parametrize("suffix, packed, dtype", [(".nrrd", False, np.uint8), (".mha", True, np.float64)])
def test_voxels_types_and_places_are_those_that_itk_writes_as_nifti(suffix, packed, dtype, tmp_path):
    array, made = image(dtype)
    reading = read_foreign(save(tmp_path / f"image{suffix}", made, packed))
    (volume,) = reading.volumes
    assert not reading.warnings
    assert volume.array.dtype == dtype and np.array_equal(volume.array, array)
    sitk.WriteImage(made, str(tmp_path / "same.nii"))
    assert np.allclose(volume.grid.affine, nib.load(tmp_path / "same.nii").affine, atol=1e-4)


def test_convert_writes_what_it_read(tmp_path, clinseg):
    array, made = image()
    source = save(tmp_path / "image.nrrd", made, packed=True)
    answer = clinseg("convert", source, tmp_path / "image.nii.gz")
    assert answer.code == 0 and "7 x 5 x 4" in answer.out, answer.err
    written = nib.load(tmp_path / "image.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), array) and written.get_data_dtype() == np.int16
    sitk.WriteImage(made, str(tmp_path / "same.nii"))
    assert np.allclose(written.affine, nib.load(tmp_path / "same.nii").affine, atol=1e-4)
    assert clinseg("convert", source, tmp_path / "image.png").code == 2
    assert clinseg("convert", tmp_path / "image.nii.gz", tmp_path / "image.nii.gz").code == 2
    assert clinseg("convert", tmp_path / "none.nrrd", tmp_path / "out.nii").code == 3


def test_elsewhere_they_are_refused_with_the_way_to_go(tmp_path):
    path = save(tmp_path / "image.nrrd", image()[1], packed=False)
    for read in (read_image, lambda path: find_inputs([path], 1)):
        with pytest.raises(InputError, match="clinseg convert"):
            read(path)


def refused(path):
    with pytest.raises(InputError) as caught:
        read_foreign(path)
    (fault,) = caught.value.faults
    return fault.rule


@pytest.mark.parametrize("suffix, packed", FORMATS)
@pytest.mark.parametrize("where", [0.3, 0.9, -1])
def test_a_file_cut_short_is_refused(suffix, packed, where, tmp_path):
    path = save(tmp_path / f"image{suffix}", image(shape=(30, 20, 10))[1], packed)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * where)] if where > 0 else content[:-1])
    assert refused(path) in ("truncated", "damaged")


@pytest.mark.parametrize("suffix, packed", FORMATS)
def test_a_flipped_byte_in_packed_data_is_refused(suffix, packed, tmp_path):
    path = save(tmp_path / f"image{suffix}", image(shape=(30, 20, 10))[1], packed)
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(bytes(content))
    if packed:
        assert refused(path) in ("truncated", "damaged")


NRRD = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
NRRD += "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: {encoding}\nendian: little\n{more}\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\n"
META += "{more}ElementDataFile = {file}\n"


def nrrd(sizes="2 3 4", encoding="raw", more="", data=bytes(48)):
    return NRRD.format(sizes=sizes, encoding=encoding, more=more).encode() + data


def meta(sizes="2 3 4", file="LOCAL", more="", data=bytes(48)):
    return META.format(sizes=sizes, file=file, more=more).encode() + data


BOMB = gzip.compress(bytes(2**24))
REFUSED = {
    "claim.nrrd": ("too-large", nrrd("100000 100000 100000")),
    "claim.mha": ("too-large", meta("100000 100000 100000")),
    "bomb.nrrd": ("trailing-bytes", nrrd(encoding="gzip", data=BOMB)),
    "other.nrrd": ("detached", nrrd(more="data file: /etc/passwd\n")),
    "list.nrrd": ("detached", nrrd(more="datafile: LIST\n")),
    "other.mha": ("detached", meta(file="/etc/passwd")),
    "list.mha": ("detached", meta(file="LIST")),
    "skip.nrrd": ("skipped-bytes", nrrd(more="byte skip: -1\n")),
    "text.nrrd": ("encoding", nrrd(encoding="ascii")),
    "long.nrrd": ("trailing-bytes", nrrd(data=bytes(49))),
    "long.mha": ("trailing-bytes", meta(data=bytes(49))),
    "flat.nrrd": ("dimensions", nrrd("2 12")),
    "negative.mha": ("dimensions", meta("-2 3 4")),
    "colour.mha": ("num-channels", meta(more="ElementNumberOfChannels = 3\n")),
    "odd.nrrd": ("damaged", b"no header"),
    "odd.mha": ("damaged", b"no header"),
    "words.nrrd": ("damaged", nrrd("two three four")),
    "type.nrrd": ("voxel-type", nrrd().replace(b"short", b"block")),
    "int64.nrrd": ("voxel-type", nrrd(data=bytes(192)).replace(b"short", b"int64")),
    "int64.mha": ("voxel-type", meta(data=bytes(192)).replace(b"MET_SHORT", b"MET_LONG_LONG")),
    "nowhere.nrrd": ("dimensions", nrrd().replace(b"(0,0,1)", b"none")),
    "cm.nrrd": ("units", nrrd(more='space units: "mm" "mm" "cm"\n')),
    "cm.mha": ("units", meta(more="DistanceUnits = cm\n")),
    "scaled.mha": ("rescale", meta(more="ElementToIntensityFunctionSlope = 2\n")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_is_not_what_it_should_be_is_refused_before_its_reader_starts(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(nrrd_metaimage, "_read_in_child", lambda *_: pytest.fail("the reader was started"))
    rule, content = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == rule


def test_without_an_orientation_it_is_assumed_and_told(tmp_path):
    (tmp_path / "a.mha").write_bytes(meta())
    (warning,) = read_foreign(tmp_path / "a.mha").warnings
    assert warning.rule == "no-orientation"


@pytest.mark.parametrize(
    ("given", "is_told"),
    [
        ("left-posterior-superior", True),
        ("RAS", True),
        ("scanner-xyz", False),
        ("3D-left-handed", False),
    ],
)
def test_only_some_spaces_say_where_left_is(given, is_told):
    content = nrrd().replace(b"left-posterior-superior", given.encode())
    assert nrrd_metaimage._parse_nrrd(content).has_orientation == is_told
    assert not nrrd_metaimage._parse_nrrd(content.replace(b"space directions", b"spacings")).has_orientation


def test_a_reader_that_takes_too_much_is_stopped(tmp_path, monkeypatch):
    path = save(tmp_path / "image.nrrd", image()[1], packed=False)
    monkeypatch.setattr(nrrd_metaimage, "_SPARE", 2**20)
    assert refused(path) == "undecodable"


def test_voxels_that_look_like_an_empty_line_do_not_end_the_header(tmp_path):
    """Two neighbours of 2573, as a CT holds them, are the bytes of an empty line of Windows."""
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd(data=np.full(24, 0x0A0D, "<i2").tobytes()))
    assert (read_foreign(path).volumes[0].array == 0x0A0D).all()
