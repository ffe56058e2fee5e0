"""What identifies a patient is nowhere in what is written, and what makes an image useful still is."""

import gzip
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence

from pipeline.data.dicom import list_series, read_series
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import ConfigError, InputError
from pipeline.export.nifti import write_label_map
from pipeline.privacy import Pseudonyms, clean_nifti, header_texts
from pipeline.privacy.profile import _actions
from pipeline.volume import Grid
from pipeline.workflows.deidentification import deidentify

SHARED = Path(__file__).parents[1] / "../shared/data/dicom"
FILES = Path(pydicom.__file__).parent / "data/test_files"
SECRETS = ("Zebulon", "Quackenbush", "MRN7745321", "19530217")
NAME, NUMBER, BIRTH = "Quackenbush^Zebulon", "MRN7745321", "19530217"
KEY = b"a key of sixteen or more bytes"

needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/dicom")


def plant(dataset):
    """Puts the patient's name, id or birth date into every text and date that the standard knows of."""
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, NUMBER, BIRTH
    texts = {
        "PN": NAME,
        "LO": f"of Zebulon {NUMBER}",
        "SH": "Quackenbush",
        "ST": NAME,
        "LT": NAME,
        "UT": NAME,
    }
    texts |= {
        "UC": NAME,
        "UR": "http://x/Quackenbush",
        "AE": "QUACKENBUSH",
        "DA": BIRTH,
        "DT": f"{BIRTH}101010",
    }
    for tag in _actions():
        if len(tag) == 2 and tag[0] != 2 and keyword_for_tag(tag) and tag not in dataset:
            vr = dictionary_VR(tag)
            if vr in texts:
                dataset.add(DataElement(tag, vr, texts[vr]))
    for keyword, value in {
        "ManufacturerModelName": "Scanner of QUACKENBUSH",  # no attribute of the table
        "ImageComments": NAME,
        "SoftwareVersions": ["1.0", NUMBER],
        "BodyPartExamined": "ZEBULON",
    }.items():
        setattr(dataset, keyword, value)
    deep = Dataset()
    deep.PatientID, deep.PersonName, deep.CodeMeaning = NUMBER, NAME, f"a gift of {NAME}"
    deep.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    deeper = Dataset()
    deeper.OtherPatientNames, deeper.TextValue = NAME, NAME
    deep.ConceptNameCodeSequence = Sequence([deeper])
    for keyword in (
        "SourceImageSequence",
        "ReferencedImageSequence",
        "ViewCodeSequence",
        "RequestAttributesSequence",
    ):
        dataset.add(DataElement(tag_for_keyword(keyword), "SQ", Sequence([deep])))
    block = dataset.private_block(0x0011, "QUACKENBUSH INC", create=True)
    block.add_new(0x01, "LO", NAME)
    dataset.add(DataElement(0x60003000, "OW", NAME.encode() + b" "))
    dataset.add(DataElement(0x60004000, "LT", NAME))
    dataset.file_meta.SourceApplicationEntityTitle = "QUACKENBUSH"
    dataset.preamble = (NAME * 7).encode()[:128].ljust(128, b"\0")


@pytest.fixture
def planted(tmp_path):
    """Three slices of a patient in a folder of his name, and a NIfTI file with texts."""
    folder = tmp_path / "in/Quackenbush Zebulon"
    folder.mkdir(parents=True)
    for depth in range(3):
        dataset = pydicom.dcmread(FILES / "MR_small.dcm")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{depth}"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, depth], [1, 0, 0, 0, 1, 0]
        dataset.StudyDate, dataset.AcquisitionDate = "20200110", "20200112"
        plant(dataset)
        dataset.save_as(folder / f"Zebulon{depth}.dcm")
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1, 2, 3, 1]))
    image.header["descrip"], image.header["db_name"] = NAME.encode(), b"Zebulon"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, NAME.encode()))
    nib.save(image, folder / "Quackenbush.nii.gz")
    (tmp_path / "key").write_bytes(KEY)
    return tmp_path


def every_byte(folder):
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)).encode()
        if path.is_file():
            content = path.read_bytes()
            yield gzip.decompress(content) if path.suffix == ".gz" else content


def assert_nothing_is_told(*contents):
    for content in contents:
        lowered = content.lower()
        assert not [secret for secret in SECRETS if secret.lower().encode() in lowered]


def test_numbers_of_orders_go_under_their_retired_attributes_too(planted, clinseg):
    """The table of the standard has what it has now; an old scanner writes what it had."""
    path = planted / "in/Quackenbush Zebulon/Zebulon0.dcm"
    dataset = pydicom.dcmread(path)
    retired = (0x00402006, 0x00402007)  # placer's and filler's number of the order
    for tag in retired:
        dataset.add_new(tag, "SH", "ORDER4711")
    dataset.save_as(path)
    assert clinseg("deidentify", planted / "in", planted / "out", "--key", planted / "key").code == 0
    written = [pydicom.dcmread(found) for found in (planted / "out").rglob("*.dcm")]
    assert len(written) == 3
    assert not any(tag in one for one in written for tag in retired)
    assert all(one.Manufacturer for one in written)


def test_no_byte_that_is_written_or_said_tells_who_it_is(planted, clinseg):
    assert (
        sum(secret.encode() in content for content in every_byte(planted / "in") for secret in SECRETS) > 10
    )
    answer = clinseg("deidentify", planted / "in", planted / "out", "--key", planted / "key")
    assert answer.code == 0, answer.err
    assert_nothing_is_told(*every_byte(planted / "out"), answer.out.encode(), answer.err.encode())
    assert len(list((planted / "out").rglob("*.dcm"))) == 3


def test_pixels_geometry_and_voxels_stay(planted):
    result = deidentify(planted / "in", planted / "out", planted / "key")
    assert (result.num_files, result.num_patients, result.faults) == (4, 1, [])
    before, after = (read_series(planted / name).volumes[0] for name in ("in", "out"))
    assert np.array_equal(before.array, after.array) and before.grid.is_close(after.grid, 1e-9)
    (path,) = (planted / "out/nifti").iterdir()
    image, source = nib.load(path), nib.load(next((planted / "in").rglob("*.nii.gz")))
    assert np.array_equal(image.get_fdata(), source.get_fdata()) and np.array_equal(
        image.affine, source.affine
    )
    assert not image.header.extensions


def test_one_key_gives_one_pseudonym_and_another_key_another(planted):
    names = {}
    for run, key in (("one", KEY), ("again", KEY), ("other", KEY[::-1])):
        (planted / run).with_suffix(".key").write_bytes(key)
        deidentify(planted / "in", planted / run, (planted / run).with_suffix(".key"))
        names[run] = {str(path.relative_to(planted / run)) for path in (planted / run).rglob("*")}
    assert names["one"] == names["again"] and not (names["one"] & names["other"]) - {"nifti"}


def test_ids_and_references_stay_consistent_and_dates_keep_their_distance(planted):
    deidentify(planted / "in", planted / "out", planted / "key")
    slices = [pydicom.dcmread(path) for path in (planted / "out").rglob("*.dcm")]
    known = {dataset.SOPInstanceUID for dataset in slices}
    for dataset in slices:
        assert dataset.PatientID == dataset.PatientName == slices[0].PatientID
        assert re.fullmatch("P-[0-9a-f]{12}", dataset.PatientID)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.SourceImageSequence[0].ReferencedSOPInstanceUID in known
        assert dataset.SOPClassUID.name == "MR Image Storage"
        first, second = (
            pydicom.valuerep.DA(dataset[name].value) for name in ("StudyDate", "AcquisitionDate")
        )
        assert (second - first).days == 2 and first.year < 2020
        assert dataset.PatientIdentityRemoved == "YES" and not dataset.get("PatientBirthDate")
    assert len({dataset.SeriesInstanceUID for dataset in slices}) == 1 and len(known) == 3


def test_dates_of_two_patients_are_shifted_differently():
    pseudonyms = Pseudonyms(KEY)
    shifted = {pseudonyms.date(pseudonyms.patient(str(number)), "20200110") for number in range(20)}
    assert len(shifted) > 15
    assert pseudonyms.date("P", "20200110101112.5+0100").endswith("101112.5+0100")
    assert pseudonyms.date("P", "Zebulon") == pseudonyms.date("P", "20200110Zebulon") == ""


def test_what_cannot_be_made_safe_is_left_out_or_warned_about(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, change in {
        "burned": {"BurnedInAnnotation": "YES"},
        "screen": {"Modality": "SC"},
        "head": {"BodyPartExamined": "HEAD"},
    }.items():
        dataset = pydicom.dcmread(FILES / "MR_small.dcm")
        dataset.SeriesInstanceUID = dataset.SOPInstanceUID = f"1.2.{len(name)}"
        for keyword, value in change.items():
            setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{name}.dcm")
    shutil.copy(FILES / "test-SR.dcm", folder / "report.dcm")
    shutil.copy(FILES / "rtplan.dump", folder / "damaged.dcm")
    result = deidentify(folder, tmp_path / "out", tmp_path / "key")
    assert {(Path(f.where).stem, f.rule) for f in result.faults} == {
        ("burned", "burned-in"), ("report", "no-image"), ("damaged", "unreadable")
    }  # fmt: skip
    assert sorted(warning.rule for warning in result.warnings) == ["burned-in", "face"]
    assert result.num_files == 2


@pytest.mark.parametrize("kind", ["66.4", "66.5", "66.7", "of another standard"])
def test_segmentations_are_left_out_though_they_have_pixels(tmp_path, kind):
    (tmp_path / "in").mkdir()
    dataset = pydicom.dcmread(FILES / "liver_1frame.dcm")
    if kind == "of another standard":
        dataset.SOPClassUID = "1.2.3"
    else:
        dataset.SOPClassUID, dataset.Modality = f"1.2.840.10008.5.1.4.1.1.{kind}", "OT"
    dataset.SegmentSequence[0].SegmentLabel = f"drawn by {NAME}"
    dataset.save_as(tmp_path / "in/segmentation.dcm")
    result = deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert [fault.rule for fault in result.faults] == ["no-image"] and "segmentation" in str(result.faults[0])
    assert not [*(tmp_path / "out").rglob("*.dcm")]


def test_what_somebody_typed_about_an_image_or_a_structure_goes(planted):
    """Of a colleague, say, whose name stands in no attribute by which it could be found."""
    path = planted / "in/Quackenbush Zebulon/Zebulon0.dcm"
    dataset, structure = pydicom.dcmread(path), Dataset()
    dataset.ContentDescription = structure.SegmentLabel = "for Prof Huang, ward 7"
    dataset.SegmentSequence = Sequence([structure])
    dataset.save_as(path)
    deidentify(planted / "in", planted / "out", planted / "key")
    assert len([*(planted / "out").rglob("*.dcm")]) == 3
    assert not any(b"Huang" in content for content in every_byte(planted / "out"))


def codes(dataset):
    """Coded values, but for those about the patient, which the table takes."""
    return {one.keyword: one.value for one in dataset if one.VR == "CS" and one.tag.group != 0x0010}


@pytest.mark.parametrize("change", [
    {"PatientName": "Doe^Mary"},  # priMARY
    {"PatientName": "Rossi^Gina"},  # oriGINAl
    {"PatientName": "Rome^John"},  # monochROME2
    {"PatientName": "Monochrome^Real"},
    {"ReferringPhysicianName": "Primary^Care", "OperatorsName": "ADMIN", "PerformingPhysicianName": "NONE"},
    {"PatientID": "2022-0815", "AccessionNumber": "MONOCHROME2"},
])  # fmt: skip
def test_no_name_takes_the_codes_by_which_an_image_is_read(tmp_path, change):
    (tmp_path / "in").mkdir()
    dataset = pydicom.dcmread(FILES / "CT_small.dcm")
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    dataset.ImageType, dataset.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "AXIAL"], "REAL"
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.DecayCorrection, dataset.VolumeBasedCalculationTechnique = "ADMIN", "NONE"
    dataset.save_as(tmp_path / "in/a.dcm")
    assert not deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key").faults
    cleaned = pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm")))
    before, after = codes(dataset), codes(cleaned)
    assert {keyword: after.get(keyword) for keyword in before} == before
    assert np.array_equal(cleaned.pixel_array, dataset.pixel_array)


@pytest.mark.parametrize("code", ["ZEBULON", "HEAD OF ZEBULON", "QUACKENBUSH_2", "ZEBULON2", "IDMRN7745321X"])
def test_a_code_that_names_the_patient_goes_and_those_beside_it_stay(planted, code):
    path = planted / "in/Quackenbush Zebulon/Zebulon0.dcm"
    dataset = pydicom.dcmread(path)
    dataset.BodyPartExamined, dataset.ImageType = code, ["ORIGINAL", "PRIMARY", "AXIAL", code]
    dataset.save_as(path)
    result = deidentify(planted / "in", planted / "out", planted / "key")
    assert not result.faults
    assert_nothing_is_told(*every_byte(planted / "out"))
    kept = [pydicom.dcmread(found) for found in (planted / "out").rglob("*.dcm")]
    assert not any(one.BodyPartExamined for one in kept)
    assert ["ORIGINAL", "PRIMARY", "AXIAL", ""] in [one.ImageType for one in kept]


def test_the_key_is_made_for_its_owner_only_and_never_lies_among_the_images(planted):
    deidentify(planted / "in", planted / "out", planted / "new.key")
    assert len((planted / "new.key").read_bytes()) == 64
    assert (planted / "new.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="key"):
        deidentify(planted / "in", planted / "elsewhere", planted / "elsewhere/key")
    (planted / "short").write_bytes(b"short")
    with pytest.raises(ConfigError, match="16 bytes"):
        deidentify(planted / "in", planted / "elsewhere", planted / "short")


def test_places_that_would_mix_old_and_new_are_refused(planted):
    (planted / "full").mkdir()
    (planted / "full/old").touch()
    for folder in (planted / "full", planted / "in/out", planted / "in"):
        with pytest.raises(ConfigError):
            deidentify(planted / "in", folder, planted / "key")
    (planted / "empty").mkdir()
    with pytest.raises(InputError, match="no-images"):
        deidentify(planted / "empty", planted / "out", planted / "key")


def test_damaged_nifti_is_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    image = nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4))
    nib.save(image, tmp_path / "in/cut.nii.gz")
    os.truncate(tmp_path / "in/cut.nii.gz", 40)
    (tmp_path / "in/odd.nii").write_bytes(b"no header at all")
    result = deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert [fault.rule for fault in result.faults] == ["unreadable"] * 2
    assert not list((tmp_path / "out").rglob("*.nii*"))


@pytest.mark.slow
@pytest.mark.parametrize("offset", [np.inf, -np.inf, np.nan, 1e30, 1e15])
def test_voxels_that_begin_nowhere_are_a_fault_for_people(tmp_path, clinseg, offset):
    manifest = write_phantom_study(tmp_path / "in", num_cases=5)
    path = min((tmp_path / "in").rglob("*.nii.gz"))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[108:112] = np.float32(offset).tobytes()
    path.write_bytes(gzip.compress(content))
    config = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"
    answer = clinseg("check", config, "--set", f"data.manifest={manifest}")
    assert answer.code == 3 and "voxel-offset" in answer.out + answer.err
    path.with_suffix("").write_bytes(content)
    answer = clinseg("deidentify", tmp_path / "in", tmp_path / "out", "--key", tmp_path / "key")
    assert answer.code == 3 and (answer.out + answer.err).count("[unreadable]") == 2


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_of_a_nifti_file_its_header_and_voxels_are_copied_and_nothing_else(tmp_path, suffix):
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    content = bytearray(nib.Nifti2Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4)).to_bytes())
    whole, source, target = bytes(content), tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    content[525:540] = NAME.encode()[:15].ljust(15)  # NIfTI-2's unused text
    source.write_bytes(pack(bytes(content) + NAME.encode()))
    clean_nifti(source, target)
    found = target.read_bytes()
    assert (gzip.decompress(found) if suffix == ".nii.gz" else found) == whole
    source.write_bytes(pack(whole[:-1]))
    with pytest.raises(InputError, match="unreadable"):
        clean_nifti(source, target)


@pytest.mark.parametrize("text, is_told", [
    (b"", False), (b"FSL5.0", False), (b"spm - realigned", False), (b"5.0.10", False), (b"float32", False),
    (b"TE=30;Time=101010", True), (b"Quackenbush", True),
])  # fmt: skip
def test_texts_in_headers_are_told_but_for_those_of_programs(text, is_told, tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4))
    image.header["descrip"] = text
    nib.save(image, tmp_path / "a.nii.gz")
    assert header_texts(tmp_path / "a.nii.gz") == (("descrip",) if is_told else ())


def test_extensions_are_told_but_for_our_own(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, NAME.encode()))
    nib.save(image, tmp_path / "a.nii")
    write_label_map(
        tmp_path / "b.nii", np.zeros((2, 3, 4), np.uint8), Grid((2, 3, 4), np.eye(4)), {"background": 0}
    )
    assert header_texts(tmp_path / "a.nii") == ("an extension",)
    assert header_texts(tmp_path / "b.nii") == header_texts(tmp_path / "absent.nii") == ()


@pytest.mark.slow
def test_check_tells_of_them_once_and_never_what_they_say(tmp_path, clinseg):
    manifest = write_phantom_study(tmp_path, num_cases=5)
    for path in sorted(tmp_path.rglob("*.nii.gz"))[:3]:
        image = nib.load(path)
        image.header["descrip"] = NAME.encode()
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    config = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"
    answer = clinseg("check", config, "--set", f"data.manifest={manifest}")
    assert answer.code == 0 and "3 NIfTI files carry text in their headers (descrip)" in answer.err
    assert_nothing_is_told(answer.out.encode(), answer.err.encode())


@needs_data
def test_a_real_study_keeps_its_volumes(tmp_path):
    result = deidentify(SHARED, tmp_path / "out", tmp_path / "key")
    assert (result.num_files, result.faults) == (76, [])
    before, after = ({len(s.frames): s for s in list_series(folder)} for folder in (SHARED, tmp_path / "out"))
    assert before.keys() == after.keys() and not any(s.problems for s in after.values())


def test_damaged_and_strange_files_are_left_out_with_a_reason(tmp_path):
    strange = ("meta_missing_tsyntax.dcm", "no_meta.dcm", "rtstruct.dcm", "priv_SQ.dcm", "reportsi.dcm")
    (tmp_path / "in").mkdir()
    for name in (*strange, "CT_small.dcm"):
        shutil.copy(FILES / name, tmp_path / "in")
    without_kind = pydicom.dcmread(FILES / "MR_small.dcm")
    del without_kind.SOPInstanceUID
    without_kind.save_as(tmp_path / "in/nameless.dcm")
    result = deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert result.num_files == len([*(tmp_path / "out").rglob("*.dcm")]) == 1
    assert {Path(fault.where).name for fault in result.faults} == {*strange, "nameless.dcm"}
    assert not [*(tmp_path / "out").rglob(".*")]


def test_a_deflated_file_is_cleaned_unless_it_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.privacy.images._LARGEST", 2**22)
    (tmp_path / "in").mkdir()
    shutil.copy(FILES / "image_dfl.dcm", tmp_path / "in")
    dataset = pydicom.dcmread(FILES / "image_dfl.dcm")
    dataset.SOPInstanceUID += ".1"
    dataset.NumberOfFrames = 2**23 // (dataset.Rows * dataset.Columns)
    dataset.PixelData = bytes(dataset.NumberOfFrames * dataset.Rows * dataset.Columns)
    dataset.save_as(tmp_path / "in/bomb.dcm")
    assert (tmp_path / "in/bomb.dcm").stat().st_size < 2**15
    result = deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert [(Path(f.where).name, f.rule) for f in result.faults] == [("bomb.dcm", "too-large")]
    assert result.num_files == 1


def test_of_images_with_one_uid_copies_count_once_and_others_are_told(tmp_path):
    (tmp_path / "in").mkdir()
    dataset = pydicom.dcmread(FILES / "CT_small.dcm")
    for name in ("a.dcm", "b.dcm"):
        dataset.save_as(tmp_path / "in" / name)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "in/c.dcm")
    result = deidentify(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert result.num_files == len([*(tmp_path / "out").rglob("*.dcm")]) == 1
    assert [(Path(f.where).name, f.rule) for f in result.faults] == [("c.dcm", "duplicate-instance")]
    (kept,) = (tmp_path / "out").rglob("*.dcm")
    assert any(pydicom.dcmread(kept).PixelData)


@pytest.mark.slow
def test_every_file_of_pydicom_is_cleaned_or_left_out(tmp_path):
    result = deidentify(FILES, tmp_path / "out", tmp_path / "key")
    assert result.num_files > 50 and result.num_files == len([*(tmp_path / "out").rglob("*.dcm")])
