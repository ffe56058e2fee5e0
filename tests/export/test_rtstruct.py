"""Contours enclose exactly the label map's voxels, holes and single pixels included."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline
from pydicom.dataset import FileDataset
from scipy import ndimage

from pipeline.errors import IntegrityError
from pipeline.export.contours import fill, outline
from pipeline.export.rtstruct import write_structure_set
from pipeline.labels import LabelContract
from pipeline.volume import Grid

REAL = Path(__file__).parents[2] / "../shared/data/dicom"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_outlines_filled_again_are_the_mask(mask):
    polygons = list(outline(mask))
    filled = [fill(polygon.round(4), mask.shape) for polygon in polygons]
    assert np.array_equal(np.sum(filled, axis=0, dtype=int) if filled else np.zeros(mask.shape, int), mask)
    assert all(len(polygon) >= 3 for polygon in polygons)


@settings(max_examples=50, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.integers(0, 3))
def test_a_hole_is_a_hole_for_a_reader_that_winds(mask, turns):
    mask = np.rot90(mask, turns)
    rows, columns = np.indices(mask.shape)
    centres = np.c_[columns.ravel(), rows.ravel()]
    inside = np.zeros(mask.size, bool)
    for polygon in outline(mask):
        inside |= Outline(np.r_[polygon, polygon[:1]], closed=True).contains_points(centres)
    assert np.array_equal(inside.reshape(mask.shape), mask)


def test_an_outline_has_the_area_of_its_pixels_but_for_corners():
    disc = np.hypot(*np.indices((41, 41)) - 20) < 15
    (polygon,) = outline(disc)
    x, y = polygon.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert area == pytest.approx(disc.sum(), rel=0.02)


def masks_of(path, prediction):
    """Rasterised by another program: matplotlib's, in patient space."""
    dataset = pydicom.dcmread(path)
    to_voxel = np.linalg.inv(prediction.grid.affine) @ LPS_TO_RAS
    columns, rows, _ = prediction.grid.shape
    centres = np.argwhere(np.ones((columns, rows)))
    masks = []
    for item in dataset.ROIContourSequence:
        mask = np.zeros(prediction.grid.shape, bool)
        for contour in item.get("ContourSequence", []):
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            voxels = (to_voxel @ np.c_[points, np.ones(len(points))].T)[:3].T
            k = round(voxels[:, 2].mean())
            assert np.abs(voxels[:, 2] - k).max() < 0.01
            inside = Outline(np.r_[voxels[:, :2], voxels[:1, :2]], closed=True).contains_points(centres)
            mask[:, :, k] ^= inside.reshape(columns, rows)
        masks.append(mask)
    return masks


def test_contours_lie_in_their_place_whatever_the_orientation(predicted, tmp_path):
    turned = nib.eulerangles.euler2mat(0.3, -0.2, 0.15)
    for axes in (np.eye(3), turned, np.eye(3)[:, [2, 0, 1]], np.diag([-1, 1, 1]), np.diag([1, -1, -1])):
        prediction = predicted(nib.affines.from_matvec(axes * (0.9, 0.8, 4), (10, -20, 30)))
        write_structure_set(tmp_path / "a.dcm", prediction)
        for mask, value in zip(masks_of(tmp_path / "a.dcm", prediction), (2, 5, 7), strict=True):
            assert np.array_equal(mask, prediction.array == value)


def test_names_colours_codes_and_slices_are_told(predicted, tmp_path):
    prediction = predicted()
    write_structure_set(tmp_path / "a.dcm", prediction)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert [item.ROIName for item in found.StructureSetROISequence] == ["left_kidney", "Рана", "spleen"]
    assert list(found.ROIContourSequence[1].ROIDisplayColor) == [0x11, 0x22, 0x33]
    assert "ContourSequence" not in found.ROIContourSequence[2]
    (code,) = found.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence
    assert (code.CodeMeaning, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == (
        "Kidney",
        "Left",
    )
    headers = {header.SOPInstanceUID: header for header in prediction.source.headers}
    for contour in found.ROIContourSequence[0].ContourSequence:
        header = headers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        assert float(contour.ContourData[2]) == pytest.approx(float(header.ImagePositionPatient[2]), abs=1e-4)
        assert max(len(str(value)) for value in contour.ContourData) <= 16
    (frame,) = found.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence} == set(headers)


def test_a_contour_may_be_longer_than_a_short_value(predicted, tmp_path):
    prediction = predicted()
    noise = np.random.default_rng(0).random((230, 230, 1)) > 0.35
    object.__setattr__(prediction, "array", (noise * 2).astype(np.uint8))
    object.__setattr__(prediction, "grid", Grid(noise.shape, np.eye(4)))
    write_structure_set(tmp_path / "a.dcm", prediction)
    contours = pydicom.dcmread(tmp_path / "a.dcm").ROIContourSequence[0].ContourSequence
    assert max(int(contour.NumberOfContourPoints) for contour in contours) > 65536 / 6


def move_a_point(dataset):
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData[0] += 2


def lose_a_contour(dataset):
    del dataset.ROIContourSequence[0].ContourSequence[0]


def swap_structures(dataset):
    first, second, third = dataset.ROIContourSequence
    dataset.ROIContourSequence = [second, first, third]


@pytest.mark.parametrize("damage", [move_a_point, lose_a_contour, swap_structures])
def test_contours_around_other_voxels_get_no_name(predicted, tmp_path, monkeypatch, damage):
    save = FileDataset.save_as
    prediction = predicted()

    def save_damaged(dataset, *arguments, **options):
        damage(dataset)
        save(dataset, *arguments, **options)

    monkeypatch.setattr(FileDataset, "save_as", save_damaged)
    with pytest.raises(IntegrityError):
        write_structure_set(tmp_path / "out/a.dcm", prediction)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/dicom")
def test_a_real_oblique_series(predicted, tmp_path):
    prediction = predicted(
        folder=REAL / "brain/T2reg", contract=LabelContract({"background": 0, "a": 1, "b": 2})
    )
    ball = np.zeros(prediction.grid.shape, bool)
    ball[100:140, 200:230] = ndimage.gaussian_filter(np.random.default_rng(0).random((40, 30, 22)), 2) > 0.5
    object.__setattr__(prediction, "array", ball.astype(np.uint8))
    write_structure_set(tmp_path / "a.dcm", prediction)
    assert np.array_equal(masks_of(tmp_path / "a.dcm", prediction)[0], ball)
