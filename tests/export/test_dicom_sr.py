"""Reports say what was measured or answered, in codes, and refer to what it was found in."""

from dataclasses import replace

import pydicom
import pytest
from highdicom.sr import srread

from pipeline.errors import IntegrityError
from pipeline.export import dicom_sr
from pipeline.export.dicom_seg import write_segmentation
from pipeline.export.dicom_sr import Answer, write_answer, write_measurements
from pipeline.export.prediction import Maker
from pipeline.volume import measure_volumes

ANSWER = Answer({"normal": 0.0625, "pneumonia": 0.9375}, ("pneumonia",), 0.875, True)


def all_items(item):
    yield item
    for inner in item.get("ContentSequence") or ():
        yield from all_items(inner)


def values(path, kind):
    items = [item for item in all_items(pydicom.dcmread(path)) if item.get("ValueType") == kind]
    return {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in items}


@pytest.mark.parametrize("with_segmentation", [True, False])
def test_volumes_are_those_of_the_mask(predicted, tmp_path, with_segmentation):
    prediction = predicted()
    if with_segmentation:
        write_segmentation(tmp_path / "seg.dcm", prediction)
        prediction = replace(prediction, segmentation=tmp_path / "seg.dcm")
    write_measurements(tmp_path / "sr.dcm", prediction)
    report = srread(tmp_path / "sr.dcm")
    kind = "get_volumetric_roi_measurement_groups" if with_segmentation else "get_image_measurement_groups"
    groups = getattr(report.content, kind)()
    volumes = measure_volumes(prediction.array, prediction.grid, prediction.contract.structures)
    for group, (name, millilitres) in zip(groups, volumes.items(), strict=True):
        assert group.tracking_identifier == name
        assert group.finding_type.value == prediction.contract.terms[name].code.value
        (volume,) = group.get_measurements()
        assert volume.value == pytest.approx(millilitres, rel=1e-6) and volume.unit.value == "mL"
    sites = [site.topographical_modifier or site for group in groups for site in group.finding_sites]
    assert sites and any("Left" in str(group) for group in groups)
    if with_segmentation:
        seg = pydicom.dcmread(tmp_path / "seg.dcm")
        numbers = [group.referenced_segment.referenced_segment_numbers for group in groups]
        assert [list(n) for n in numbers] == [[1], [2], [3]]
        assert {g.referenced_segment.referenced_sop_instance_uid for g in groups} == {seg.SOPInstanceUID}
    assert report.PatientID == prediction.source.first.PatientID
    again = tmp_path / "again.dcm"
    write_measurements(again, prediction)
    assert pydicom.dcmread(again).SOPInstanceUID == report.SOPInstanceUID


def test_nothing_found_is_measured_as_nothing(predicted, tmp_path):
    write_measurements(tmp_path / "sr.dcm", predicted(is_empty=True))
    numbers = [i for i in all_items(pydicom.dcmread(tmp_path / "sr.dcm")) if i.get("ValueType") == "NUM"]
    assert [float(item.MeasuredValueSequence[0].NumericValue) for item in numbers] == [0, 0, 0]


def test_an_answer_is_told_with_probability_and_review(predicted, tmp_path):
    source, maker = predicted().source, Maker("run-1", "cd" * 32, "0.1.0")
    write_answer(tmp_path / "sr.dcm", ANSWER, source, maker)
    numbers, codes = values(tmp_path / "sr.dcm", "NUM"), values(tmp_path / "sr.dcm", "CODE")
    shares = {name: float(item.MeasuredValueSequence[0].NumericValue) for name, item in numbers.items()}
    assert shares["Probability of pneumonia"] == 0.9375 and shares["Confidence of the answer"] == 0.875
    assert codes["Predicted class"].ConceptCodeSequence[0].CodeMeaning == "pneumonia"
    assert codes["Review by a person advised"].ConceptCodeSequence[0].CodeMeaning == "Yes"
    texts = [
        item.TextValue for item in all_items(pydicom.dcmread(tmp_path / "sr.dcm")) if "TextValue" in item
    ]
    assert f"Model SHA-256 {maker.sha256}" in texts and "clinseg 0.1.0" in texts


def test_what_is_not_as_predicted_is_never_seen(predicted, tmp_path, monkeypatch):
    build = dicom_sr.build_report

    def spoil(*arguments):
        dataset = build(*arguments)
        for item in all_items(dataset):
            if item.get("ValueType") == "NUM":
                item.MeasuredValueSequence[0].NumericValue = "1.5"
        return dataset

    monkeypatch.setattr(dicom_sr, "build_report", spoil)
    with pytest.raises(IntegrityError, match="read back"):
        write_measurements(tmp_path / "sr.dcm", predicted())
    assert not list(tmp_path.glob("*.dcm"))


def test_a_structure_refers_to_the_slices_that_it_is_on(predicted, tmp_path):
    prediction = predicted()
    array = prediction.array.copy()
    array[:, :, 3:] = 0
    prediction = replace(prediction, array=array)
    write_measurements(tmp_path / "sr.dcm", prediction)
    for group in srread(tmp_path / "sr.dcm").content.get_image_measurement_groups():
        on = [k for k in range(array.shape[2]) if prediction.mask(group.tracking_identifier, k).any()]
        expected = {prediction.source.planes[k].header.SOPInstanceUID for k in on}
        found = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in all_items(group[0])
                 if item.ValueType == "IMAGE"}  # fmt: skip
        every = {header.SOPInstanceUID for header in prediction.source.headers}
        assert found == (expected or every)


def _refer_elsewhere(item):
    if item.get("ValueType") == "IMAGE":
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"


def _find_another(item):
    if item.get("ValueType") == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == "121071":
        item.ConceptCodeSequence[0].CodeValue = "0000"


@pytest.mark.parametrize("spoil", [_refer_elsewhere, _find_another])
def test_neither_another_image_nor_another_structure_is_ever_told(predicted, tmp_path, monkeypatch, spoil):
    build = dicom_sr.build_report

    def spoilt(*arguments):
        dataset = build(*arguments)
        for item in all_items(dataset):
            spoil(item)
        return dataset

    monkeypatch.setattr(dicom_sr, "build_report", spoilt)
    with pytest.raises(IntegrityError, match="read back"):
        write_measurements(tmp_path / "sr.dcm", predicted())
    assert not list(tmp_path.glob("*.dcm"))


def test_the_same_answer_arrives_once_and_another_beside_it(predicted, tmp_path):
    source, maker = predicted().source, Maker("run-1", "cd" * 32, "0.1.0")
    uids = []
    for number, answer in enumerate((ANSWER, ANSWER, replace(ANSWER, review=False))):
        write_answer(tmp_path / f"{number}.dcm", answer, source, maker)
        written = pydicom.dcmread(tmp_path / f"{number}.dcm")
        uids.append(written.SOPInstanceUID)
        assert written.PatientID == source.first.PatientID and written.VerificationFlag == "UNVERIFIED"
    assert uids[0] == uids[1] != uids[2]
