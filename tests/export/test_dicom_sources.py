"""Objects refer to what they lie on: slices, frames of enhanced files, and nothing where it was resampled."""

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage

from pipeline.data.dicom import SeriesRule, list_dicom_files, read_series, series_frames
from pipeline.data.synthetic.series import write_series
from pipeline.errors import InputError
from pipeline.export.dicom_source import read_source
from pipeline.export.exporters import EXPORTERS
from pipeline.export.prediction import Maker, Prediction
from pipeline.labels import LabelContract
from pipeline.volume import Grid, Volume

SHAPE = (14, 11, 6)
CONTRACT = LabelContract({"background": 0, "liver": 1, "spleen": 2})
OBLIQUE = np.array([[0.9, 0.1, 0.5, 3], [-0.1, 1.1, 0.4, 5], [-0.4, -0.2, 2.9, 9], [0, 0, 0, 1]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (0.9, 1.1, 3.0)


@pytest.fixture
def slices(tmp_path):
    array = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    return write_series(tmp_path / "slices", Volume(array, Grid(SHAPE, OBLIQUE)))


def item(**tags):
    made = Dataset()
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def join(paths, target, num_times=1):
    """The slices as one enhanced file in an order of its own, several times over."""
    files = [pydicom.dcmread(path) for path in paths]
    files = files[1::2] + files[::2]
    whole, frames = files[0], []
    measures = item(PixelSpacing=whole.PixelSpacing)
    orientation = item(ImageOrientationPatient=whole.ImageOrientationPatient)
    whole.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    for time in range(1, num_times + 1):
        for file in files:
            position = item(ImagePositionPatient=file.ImagePositionPatient)
            content = item(StackID="1", TemporalPositionIndex=time)
            frames.append(item(PlanePositionSequence=[position], FrameContentSequence=[content]))
    whole.PixelData = b"".join(file.PixelData for file in files) * num_times
    for name in ("PixelSpacing", "ImageOrientationPatient"):
        delattr(whole, name)
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.NumberOfFrames = len(frames)
    del whole.ImagePositionPatient
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    target.parent.mkdir()
    whole.save_as(target)
    return target.parent


def predict(folder, rule=SeriesRule()):  # noqa: B008 - it is frozen
    grid = read_series(folder, rule).volumes[0].grid
    array = np.zeros(grid.shape, np.uint8)
    array[2:7, 2:5, 1:], array[8:10, 3:6, :2] = 1, 2
    frames = series_frames(folder, rule)
    return Prediction(
        array, grid, CONTRACT, read_source("case", list(frames), grid, frames), Maker("m", "ab" * 32, "1")
    )


def written(prediction, folder):
    for form in ("dicom-seg", "rtstruct", "dicom-sr"):
        EXPORTERS[form](folder / f"{form}.dcm", prediction)
    return [pydicom.dcmread(folder / f"{form}.dcm") for form in ("dicom-seg", "rtstruct", "dicom-sr")]


def sources_of(segmentation):
    """Of each frame its position, and what it refers to."""
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        yield place, [image for one in groups.DerivationImageSequence for image in one.SourceImageSequence]


@pytest.mark.parametrize(("num_times", "pattern"), [(1, None), (2, "*time 2*")])
def test_frames_refer_to_the_frames_that_they_lie_on(slices, tmp_path, num_times, pattern):
    folder = join(slices, tmp_path / "enhanced/a.dcm", num_times)
    if num_times > 1:
        from pipeline.data.dicom import list_series

        pattern = list_series(folder)[1].id
    prediction = predict(folder, SeriesRule(pattern))
    source = pydicom.dcmread(folder / "a.dcm")
    segmentation, structures, report = written(prediction, tmp_path)
    positions = [
        np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for groups in source.PerFrameFunctionalGroupsSequence
    ]
    first = (num_times - 1) * len(slices)
    for place, (image,) in sources_of(segmentation):
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert np.allclose(positions[image.ReferencedFrameNumber - 1], place, atol=1e-3)
        assert image.ReferencedFrameNumber > first
    (contours,) = (i.ContourSequence for i in structures.ROIContourSequence[:1])
    numbers = {one.ContourImageSequence[0].ReferencedFrameNumber for one in contours}
    assert len(numbers) == SHAPE[2] - 1 and min(numbers) > first
    assert source.SOPInstanceUID in str(report)


def test_what_was_resampled_refers_to_no_slice_that_it_is_not(slices, tmp_path):
    missing = sorted(slices, key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])[2]
    missing.unlink()
    with pytest.raises(InputError):
        read_series(slices[0].parent)
    prediction = predict(slices[0].parent, SeriesRule(None, True))
    assert prediction.grid.shape == SHAPE
    segmentation, _, _ = written(prediction, tmp_path)
    headers = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, list_dicom_files(slices[0].parent))}
    alone = 0
    for place, images in sources_of(segmentation):
        alone += not images
        for image in images:
            there = np.array(headers[image.ReferencedSOPInstanceUID].ImagePositionPatient, float)
            assert np.allclose(there, place, atol=0.02)
    assert alone == 1
    (series,) = segmentation.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == SHAPE[2] - 1


def test_slices_that_were_moved_are_not_referred_to(slices, tmp_path):
    for path in slices:
        file = pydicom.dcmread(path)
        row = np.array(file.ImageOrientationPatient[:3], float)
        place = np.array(file.ImagePositionPatient, float)
        file.ImagePositionPatient = [f"{mm:.6f}" for mm in place + 0.4 * file.InstanceNumber * row]
        file.save_as(path)
    prediction = predict(slices[0].parent, SeriesRule(None, True))
    segmentation, _, _ = written(prediction, tmp_path)
    for place, images in sources_of(segmentation):
        for image in images:
            (header,) = (
                h for h in prediction.source.headers if h.SOPInstanceUID == image.ReferencedSOPInstanceUID
            )
            assert np.allclose(np.array(header.ImagePositionPatient, float), place, atol=0.02)
