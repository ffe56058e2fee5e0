"""A DICOM segmentation lies in the patient where the label map lies, and says what it is."""

from itertools import permutations, product
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest

from pipeline.errors import InputError, IntegrityError
from pipeline.export.dicom_seg import write_fractional_segmentation, write_segmentation
from pipeline.export.prediction import Maker
from pipeline.inference.exporting import export
from pipeline.labels import LabelContract

REAL = Path(__file__).parents[2] / "../shared/data/dicom"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def signed_permutations():
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[axes, range(3)] = signs
        yield matrix


def assert_same_in_patient(path, prediction):
    """By highdicom's own reading, which knows nothing of how the file was written."""
    found = highdicom.seg.segread(path).get_volume(allow_missing_positions=True)
    affine = LPS_TO_RAS @ found.affine
    total = 0
    for number, values in enumerate(prediction.contract.structures.values()):
        mask = np.isin(prediction.array, values)
        voxels = np.argwhere(mask)
        homogeneous = np.c_[voxels, np.ones(len(voxels))].T
        placed = (np.linalg.inv(affine) @ prediction.grid.affine @ homogeneous)[:3]
        indices = np.rint(placed).astype(int)
        assert np.abs(placed - indices).max(initial=0) < 0.01
        assert found.array[(*indices, number)].all()
        assert np.count_nonzero(found.array[..., number]) == len(voxels)
        total += len(voxels)
    assert total > 0


@pytest.mark.slow
def test_it_lies_in_its_place_in_all_48_orientations(predicted, tmp_path):
    for number, axes in enumerate(signed_permutations()):
        affine = nib.affines.from_matvec(axes * (0.7, 1.1, 3.3), (-90.1, 126.7, 1e-3))
        prediction = predicted(affine, folder=None)
        write_segmentation(tmp_path / f"{number}.dcm", prediction)
        assert_same_in_patient(tmp_path / f"{number}.dcm", prediction)


@pytest.mark.parametrize("digits", [10, 5])
def test_oblique_slices_with_few_digits_stay_where_they_are(predicted, tmp_path, digits):
    turned = nib.eulerangles.euler2mat(0.3, -0.2, 0.15)
    prediction = predicted(nib.affines.from_matvec(turned * (0.9, 0.9, 4), (10, -20, 30)), digits=digits)
    write_segmentation(tmp_path / "a.dcm", prediction)
    assert_same_in_patient(tmp_path / "a.dcm", prediction)


def test_codes_sides_colours_and_slices_are_told(predicted, tmp_path):
    prediction = predicted()
    write_segmentation(tmp_path / "a.dcm", prediction)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    kidney, wound, spleen = found.SegmentSequence
    assert [s.SegmentLabel for s in found.SegmentSequence] == ["left_kidney", "Рана", "spleen"]
    (code,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("64033007", "SCT", "Kidney")
    assert code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    (category,) = wound.SegmentedPropertyCategoryCodeSequence
    assert category.CodeMeaning == "Morphologically Abnormal Structure"
    colour = highdicom.color.CIELabColor.from_dicom_value(list(wound.RecommendedDisplayCIELabValue))
    assert np.allclose(colour.to_rgb(), (0x11, 0x22, 0x33), atol=1)
    sources = {header.SOPInstanceUID for header in prediction.source.headers}
    told = [
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for item in found.PerFrameFunctionalGroupsSequence
    ]
    assert set(told) <= sources and len(set(told)) == np.count_nonzero(prediction.array.any(axis=(0, 1)))
    assert found.FrameOfReferenceUID == prediction.source.first.FrameOfReferenceUID
    assert int(found.NumberOfFrames) == sum(
        np.count_nonzero((prediction.array == value).any(axis=(0, 1))) for value in (2, 5, 7)
    )
    assert spleen.SegmentNumber == 3, "a structure without voxels is told of all the same"


def test_regions_that_overlap_are_segments_that_overlap(predicted, tmp_path):
    prediction = predicted(regions={"whole": (2, 5), "core": (5,)})
    write_segmentation(tmp_path / "a.dcm", prediction)
    assert_same_in_patient(tmp_path / "a.dcm", prediction)
    assert pydicom.dcmread(tmp_path / "a.dcm").SegmentsOverlap == "YES"


def test_nothing_found_is_an_object_with_nothing_in_it(predicted, tmp_path, capfd):
    write_segmentation(tmp_path / "a.dcm", predicted(is_empty=True))
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert not found.pixel_array.any() and len(found.SegmentSequence) == 3
    assert capfd.readouterr().err == ""


def test_probabilities_become_levels(predicted, tmp_path):
    prediction = predicted()
    frames = np.random.default_rng(1).random((*prediction.grid.shape, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(frames, prediction.grid.affine), tmp_path / "p.nii")
    object.__setattr__(prediction, "probabilities", tmp_path / "p.nii")
    write_fractional_segmentation(tmp_path / "a.dcm", prediction)
    found = highdicom.seg.segread(tmp_path / "a.dcm").get_volume()
    to_ours = np.linalg.inv(prediction.grid.affine) @ LPS_TO_RAS @ found.affine
    places = (
        to_ours @ np.c_[np.argwhere(np.ones(found.spatial_shape)), np.ones(np.prod(found.spatial_shape))].T
    )
    expected = frames[tuple(np.rint(places[:3]).astype(int))][:, 1:]
    assert np.abs(found.array.reshape(-1, 3) - expected).max() <= 0.5 / 255 + 1e-6


def shift_position(dataset):
    groups = dataset.PerFrameFunctionalGroupsSequence[0]
    groups.PlanePositionSequence[0].ImagePositionPatient[0] += 0.5


def flip_a_bit(dataset):
    dataset.PixelData = bytes([dataset.PixelData[0] ^ 4]) + dataset.PixelData[1:]


def swap_segments(dataset):
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        identification = groups.SegmentIdentificationSequence[0]
        identification.ReferencedSegmentNumber = {1: 2, 2: 1}[identification.ReferencedSegmentNumber]


def mirror(dataset):
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-v for v in orientation.ImageOrientationPatient[:3]] + list(
        orientation.ImageOrientationPatient[3:]
    )


@pytest.mark.parametrize("damage", [shift_position, flip_a_bit, swap_segments, mirror])
def test_what_is_not_the_label_map_in_its_place_gets_no_name(predicted, tmp_path, monkeypatch, damage):
    save = highdicom.seg.Segmentation.save_as

    def save_damaged(dataset, *arguments, **options):
        damage(dataset)
        save(dataset, *arguments, **options)

    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", save_damaged)
    with pytest.raises(IntegrityError):
        write_segmentation(tmp_path / "out/a.dcm", predicted())
    assert list((tmp_path / "out").iterdir()) == []


def remove_patient(file):
    for keyword in ("PatientName", "PatientID", "Modality", "InstanceNumber", "SliceThickness"):
        if keyword in file:
            del file[keyword]


def spoil_patient(file):
    file.SpecificCharacterSet = "ISO_IR 100"
    file.PatientName, file.PatientSex, file.StudyDate = "Müller^Jörg", "U", "2020.01.19"
    file.PatientID, file.PatientBirthDate = "x" * 70, ""


@pytest.mark.parametrize("edit", [remove_patient, spoil_patient])
@pytest.mark.filterwarnings("ignore:(Invalid value|The value length|A value of)")
def test_headers_with_gaps_and_errors_do_no_harm(predicted, tmp_path, edit):
    prediction = predicted(edit=edit)
    write_segmentation(tmp_path / "a.dcm", prediction)
    found, first = pydicom.dcmread(tmp_path / "a.dcm"), prediction.source.first
    assert found.StudyInstanceUID == first.StudyInstanceUID
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber"):
        assert str(found[keyword].value or "") == str(first.get(keyword) or "")


def test_a_series_that_cannot_be_referred_to_is_refused(predicted):
    def edit(file):
        del file.FrameOfReferenceUID

    with pytest.raises(InputError, match="FrameOfReferenceUID is missing in 7 of 7 files"):
        predicted(edit=edit)


def test_the_same_result_has_the_same_uids(predicted, tmp_path):
    prediction = predicted()
    write_segmentation(tmp_path / "a.dcm", prediction)
    write_segmentation(tmp_path / "b.dcm", prediction)
    object.__setattr__(prediction, "maker", Maker("run-1", "cd" * 32, "0.1.0"))
    write_segmentation(tmp_path / "c.dcm", prediction)
    a, b, c = (pydicom.dcmread(tmp_path / f"{name}.dcm").SOPInstanceUID for name in "abc")
    assert a == b != c


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/dicom")
@pytest.mark.parametrize("series", ["brain/T2reg", "hippocampus_crop"])
def test_real_series(predicted, tmp_path, series):
    prediction = predicted(folder=REAL / series, contract=LabelContract({"background": 0, "a": 1, "b": 2}))
    write_segmentation(tmp_path / "a.dcm", prediction)
    assert_same_in_patient(tmp_path / "a.dcm", prediction)


def test_what_cannot_be_made_any_more_does_not_stay_as_it_was(predicted, tmp_path):
    path = tmp_path / "dicom-seg-fractional/case.dcm"
    path.parent.mkdir()
    path.write_bytes(b"of an earlier mask")
    hashes, faults = export("case", predicted(), tmp_path, ["dicom-seg-fractional"])  # of no probabilities
    assert ([fault.rule for fault in faults], hashes, path.exists()) == (["not-exportable"], {}, False)
