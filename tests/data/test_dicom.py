"""A DICOM series is read where the scanner put it, or refused by a rule that has a name."""

import io
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its customary name
from PIL import Image
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, RLELossless, generate_uid

from pipeline.data.dicom import SeriesRule
from pipeline.data.dicom import read_series as read_reading
from pipeline.data.images import read_image
from pipeline.errors import InputError, ResourceError

SHARED = Path(__file__).parents[2] / "../shared/data/dicom"
SERIES = ["brain/T1post", "brain/T2reg", "hippocampus_crop"]
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/dicom")


def read_series(path, **rule):
    return read_reading(path, SeriesRule(**rule)).volumes[0]


def datasets(folder: Path) -> list[Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [pydicom.dcmread(file) for file in sorted(folder.iterdir()) if file.suffix == ".dcm"]


def world(dataset: Dataset, column: int, row: int) -> np.ndarray:
    """Where a pixel lies in RAS millimetres, straight from the standard's formula."""
    along_row, along_column = np.reshape(np.array(dataset.ImageOrientationPatient, dtype=float), (2, 3))
    row_spacing, column_spacing = map(float, dataset.PixelSpacing)
    point = np.array(dataset.ImagePositionPatient, dtype=float)
    point = point + along_row * column_spacing * column + along_column * row_spacing * row
    return point * (-1, -1, 1)


def copy_series(folder: Path, source: Path = SHARED / "hippocampus_crop") -> Path:
    return Path(shutil.copytree(source, folder / "series"))


def edit(series: Path, name: str, change: Callable[[Dataset], object]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(series / name)
        change(dataset)
        dataset.save_as(series / name)
    return series


def edit_all(series: Path, change: Callable[[Dataset], object]) -> Path:
    for file in sorted(series.iterdir()):
        edit(series, file.name, change)
    return series


def put(**values) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for name, value in values.items():
            if value is None:
                del dataset[name]
            else:
                setattr(dataset, name, value)

    return change


@pytest.mark.parametrize("name", SERIES)
def test_every_voxel_lies_where_its_pixel_lies(name):
    slices = datasets(SHARED / name)
    (volume,) = read_image(SHARED / name)
    assert volume.array.shape == (slices[0].Columns, slices[0].Rows, len(slices))
    assert volume.array.dtype == np.float32
    inverse = np.linalg.inv(volume.grid.affine)
    for dataset in slices:
        pixels = dataset.pixel_array  # (rows, columns)
        for column, row in ((0, 0), (dataset.Columns - 1, 7), (11, dataset.Rows - 1)):
            index = inverse @ (*world(dataset, column, row), 1)
            assert np.allclose(index[:2], (column, row), atol=1e-3)
            assert abs(index[2] - round(index[2])) < 1e-3
        assert np.array_equal(volume.array[:, :, round(index[2])], pixels.T)


@pytest.mark.parametrize("name", SERIES)
def test_itk_reads_the_same_volume(name):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SHARED / name)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    volume = read_series(SHARED / name)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    corner = (*volume.grid.shape, 1)
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ affine @ corner, volume.grid.affine @ corner, atol=1e-3)


def test_spacing_of_rows_and_of_columns_are_not_mixed_up(tmp_path):
    series = edit_all(copy_series(tmp_path), put(PixelSpacing=[0.5, 2]))
    assert read_series(series).grid.spacing == pytest.approx((2, 0.5, 1))


def test_two_series_of_one_study_share_their_grid():
    one, other = (read_series(SHARED / name) for name in SERIES[:2])
    assert one.grid.is_close(other.grid)
    assert one.grid.spacing[2] == pytest.approx(6.5, abs=1e-3)


def test_the_grid_carries_its_affine_as_sform():
    grid = read_series(SHARED / SERIES[0]).grid
    assert np.array_equal(grid.sform, grid.affine)
    assert (grid.sform_code, grid.qform, grid.qform_code) == (1, None, 0)


def test_every_slice_is_rescaled_by_its_own_slope(tmp_path):
    series = copy_series(tmp_path)
    for number in range(1, 33):
        edit(series, f"{number}.dcm", put(RescaleSlope=f"{number / 4:g}", RescaleIntercept="-10.5"))
    scaled, stored = read_series(series).array, read_series(SHARED / SERIES[2]).array
    assert np.allclose(scaled, stored * np.arange(1, 33) / 4 - 10.5)


def to_big_endian(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    dataset.PixelData = dataset.pixel_array.byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False, force_encoding=True)


def to_run_lengths(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    dataset.compress(RLELossless)
    dataset.save_as(file)


def to_jpeg2000(file: Path, keep: slice = slice(None)) -> None:
    dataset = pydicom.dcmread(file)
    content = io.BytesIO()
    image = Image.fromarray(dataset.pixel_array.astype(np.uint16))
    image.save(content, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=3)
    dataset.PixelData = encapsulate([content.getvalue()[keep]])
    dataset["PixelData"].is_undefined_length = True
    dataset.PixelRepresentation = 0
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.save_as(file)


@pytest.mark.parametrize("convert", [to_big_endian, to_run_lengths, to_jpeg2000])
def test_other_transfer_syntaxes_give_the_same_volume(convert, tmp_path):
    series = copy_series(tmp_path)
    for file in series.iterdir():
        convert(file)
    assert np.array_equal(read_series(series).array, read_series(SHARED / SERIES[2]).array)


def test_names_and_foreign_files_do_not_matter(tmp_path):
    series = copy_series(tmp_path)
    for number in range(1, 33):
        (series / f"{number}.dcm").rename(series / f"IM{(number * 7) % 33:03d}")
    (series / "notes.txt").write_text("not DICOM")
    (series / ".hidden.dcm").write_bytes(b"also not")
    (series / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (series / "more").mkdir()
    volume = read_series(series)
    assert np.array_equal(volume.array, read_series(SHARED / SERIES[2]).array)


def truncate(series: Path, name: str, num_bytes: int) -> Path:
    os.truncate(series / name, (series / name).stat().st_size - num_bytes)
    return series


def without(series: Path, *names: str) -> Path:
    for name in names:
        (series / name).unlink()
    return series


def doubled(series: Path) -> Path:
    shutil.copy(series / "5.dcm", series / "5 again.dcm")
    return series


def mixed(series: Path) -> Path:
    for file in (SHARED / "brain/T2reg").iterdir():
        shutil.copy(file, series / f"other-{file.name}")
    return series


def tilted(series: Path) -> Path:
    for number in range(1, 33):
        edit(series, f"{number}.dcm", put(ImagePositionPatient=[0, number * 0.2, number]))
    return series


def compressed_in_part(series: Path) -> Path:
    to_run_lengths(series / "3.dcm")
    return truncate(series, "3.dcm", 600)


def codestream_in_part(series: Path) -> Path:
    to_jpeg2000(series / "3.dcm", slice(-200))
    return series


TURNED = [1, 0, 0, 0, 0.999, 0.0447]
REFUSED = {
    "empty folder": ("no-images", lambda s: without(s, *(f"{n}.dcm" for n in range(1, 33)))),
    "one slice": ("too-few-slices", lambda s: without(s, *(f"{n}.dcm" for n in range(2, 33)))),
    "missing slice": ("slice-step", lambda s: without(s, "9.dcm")),
    "doubled slice": ("slice-position", doubled),
    "moved slice": ("slice-step", lambda s: edit(s, "9.dcm", put(ImagePositionPatient=[0, 0, 9.1]))),
    "shifted slice": ("slice-shift", lambda s: edit(s, "9.dcm", put(ImagePositionPatient=[2, 0, 9]))),
    "position NaN": (
        "slice-position",
        lambda s: edit_all(s, put(ImagePositionPatient=["nan", 0, 1])),
    ),
    "gantry tilt": ("shear", tilted),
    "turned slice": (
        "slice-orientation",
        lambda s: edit(s, "9.dcm", put(ImageOrientationPatient=TURNED)),
    ),
    "no unit vectors": (
        "slice-orientation",
        lambda s: edit_all(s, put(ImageOrientationPatient=[2, 0, 0, 0, 1, 0])),
    ),
    "skewed axes": ("shear", lambda s: edit_all(s, put(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]))),
    "mixed series": ("several-series", mixed),
    "other series id": ("slice-step", lambda s: edit(s, "9.dcm", put(SeriesInstanceUID=generate_uid()))),
    "other spacing": ("pixel-spacing", lambda s: edit(s, "9.dcm", put(PixelSpacing=[1, 1.01]))),
    "no spacing": ("pixel-spacing", lambda s: edit_all(s, put(PixelSpacing=[0, 1]))),
    "negative spacing": ("pixel-spacing", lambda s: edit_all(s, put(PixelSpacing=[-1, 1]))),
    "other size": ("slice-size", lambda s: edit(s, "9.dcm", put(Rows=35, Columns=51))),
    "wrong size": ("pixel-data", lambda s: edit(s, "9.dcm", put(Rows=52))),
    "truncated pixels": ("pixel-data", lambda s: truncate(s, "9.dcm", 100)),
    "cut before the pixels": ("missing-tag", lambda s: truncate(s, "9.dcm", 3600)),
    "cut within a tag": ("unreadable", lambda s: truncate(s, "9.dcm", 3572)),
    "almost empty file": ("unreadable", lambda s: truncate(s, "9.dcm", (s / "9.dcm").stat().st_size - 50)),
    "no DICOM within": ("unreadable", lambda s: (s / "99.dcm").write_bytes(b"x" * 4000) and s),
    "truncated compressed pixels": ("missing-tag", compressed_in_part),
    "truncated codestream": ("pixel-data", codestream_in_part),
    "no pixels": ("missing-tag", lambda s: edit(s, "9.dcm", put(PixelData=None))),
    "no position": ("missing-tag", lambda s: edit(s, "9.dcm", put(ImagePositionPatient=None))),
    "empty orientation": ("missing-tag", lambda s: edit_all(s, put(ImageOrientationPatient=""))),
    "several frames": ("multi-frame", lambda s: edit(s, "9.dcm", put(NumberOfFrames=2))),
    "inverted in part": (
        "photometric",
        lambda s: edit(s, "9.dcm", put(PhotometricInterpretation="MONOCHROME1")),
    ),
    "colour": ("photometric", lambda s: edit_all(s, put(PhotometricInterpretation="RGB"))),
    "one bit": ("pixel-type", lambda s: edit_all(s, put(BitsAllocated=1))),
    "shifted bits": ("pixel-type", lambda s: edit_all(s, put(BitsStored=12, HighBit=15))),
    "slope 0": ("rescale", lambda s: edit(s, "9.dcm", put(RescaleSlope=0, RescaleIntercept=0))),
    "lookup table": ("modality-lut", lambda s: edit(s, "9.dcm", put(ModalityLUTSequence=[Dataset()]))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_series_is_refused_by_its_rule(name, tmp_path):
    rule, make = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read_image(make(copy_series(tmp_path)))
    assert rule in {fault.rule for fault in caught.value.faults}


def test_oblique_series_without_a_slice_is_refused(tmp_path):
    series = without(copy_series(tmp_path, SHARED / "brain/T1post"), "000007.dcm")
    with pytest.raises(InputError, match=r"slice-step"):
        read_series(series)


def test_nothing_of_the_patient_is_told(tmp_path):
    secrets = {"PatientName": "DOE^JOHN", "PatientID": "4711", "PatientBirthDate": "19700101"}
    source = edit_all(copy_series(tmp_path), put(**secrets))
    for index, (_, make) in enumerate(REFUSED.values()):
        series = make(copy_series(tmp_path / str(index), source))
        with pytest.raises(InputError) as caught, warnings.catch_warnings(record=True) as told:
            read_series(series)
        text = " ".join([str(caught.value), *(str(warning.message) for warning in told)])
        assert not [secret for secret in secrets.values() if secret in text]


def test_what_is_shown_inverted_has_the_values_that_are_stored(tmp_path):
    plain = read_reading(copy_series(tmp_path / "a"))
    inverted = read_reading(
        edit_all(copy_series(tmp_path / "b"), put(PhotometricInterpretation="MONOCHROME1"))
    )
    assert np.array_equal(plain.volumes[0].array, inverted.volumes[0].array)
    (note,) = inverted.warnings
    assert note.rule == "monochrome1" and not plain.warnings


def test_faults_of_many_files_are_told_once(tmp_path):
    series = edit_all(copy_series(tmp_path), put(PhotometricInterpretation="RGB"))
    with pytest.raises(InputError) as caught:
        read_series(series)
    (fault,) = caught.value.faults
    assert "1.dcm, 10.dcm, 11.dcm and 29 more" in fault.message


def test_a_series_larger_than_memory_is_a_matter_of_resources(monkeypatch):
    memory = type("Memory", (), {"available": 100})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(ResourceError, match="memory"):
        read_series(SHARED / SERIES[2])
