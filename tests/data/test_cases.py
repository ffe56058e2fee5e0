"""A manifest of any form gives the same study, or all that is wrong with it at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.segmentation import DataSection
from pipeline.data.cases import Case, Study, read_manifest
from pipeline.data.dicom import SeriesRule
from pipeline.errors import ConfigError, FaultError, InputError
from pipeline.labels import LabelContract
from pipeline.metrics import label_map_dice
from transforms.postprocessing import Decision, label_map_on_grid

SHARED = Path(__file__).parents[2] / "../shared/data"
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def decathlon(folder: Path, **changes) -> Path:
    touch(folder, *(f"{part}/{c}.nii.gz" for part in ("images", "labels") for c in "abc"))
    entries = [{"image": f"./images/{c}.nii.gz", "label": f"./labels/{c}.nii.gz"} for c in "abc"]
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "training": entries[:2],
        "validation": entries[2:],
        "test": ["./images/z.nii.gz"],
    }
    return write_json(folder / "dataset.json", content | changes)


def nnunet(folder: Path, **changes) -> Path:
    touch(folder, *(f"imagesTr/{c}_{i:04d}.nii.gz" for c in "ab" for i in range(2)))
    touch(folder, *(f"labelsTr/{c}.nii.gz" for c in "ab"))
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    return write_json(folder / "dataset.json", content | changes)


def table(folder: Path, text: str) -> Path:
    touch(folder, "a.nii.gz", "b.nii.gz", "a-label.nii.gz", "b-label.nii.gz")
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(manifest: Path, **settings) -> Study:
    return read_manifest(DataSection(manifest=manifest, **settings))


def faults_of(manifest: Path, **settings) -> list:
    with pytest.raises(FaultError) as caught:
        read(manifest, **settings)
    return list(caught.value.faults)


def test_decathlon(tmp_path):
    study = read(decathlon(tmp_path))
    assert [(case.id, case.patient, case.fold) for case in study.cases] == [
        ("a", "a", None),
        ("b", "b", None),
        ("c", "c", 0),
    ]
    assert study.cases[0].images == (tmp_path / "images/a.nii.gz",)
    assert study.cases[0].label == tmp_path / "labels/a.nii.gz"
    assert study.labels == LABELS
    assert study.channels == ("CT",)
    assert read(tmp_path) == study


def test_nnunet(tmp_path):
    study = read(nnunet(tmp_path))
    images = tuple(tmp_path / f"imagesTr/a_000{index}.nii.gz" for index in range(2))
    assert study.cases[0] == Case("a", "a", images, tmp_path / "labelsTr/a.nii.gz")
    assert [case.id for case in study.cases] == ["a", "b"]
    assert study.labels == LABELS
    assert study.channels == ("T1", "T2")
    assert read(tmp_path) == study


def test_csv(tmp_path):
    text = (
        "\ufeffcase, patient,image_t1,image_t2,label,fold,age\n"
        'first,p1,a.nii.gz,"b.nii.gz",a-label.nii.gz,1,70\n'
        "\n"
        "second,,b.nii.gz,a.nii.gz,,,\n"
    )
    study = read(table(tmp_path, text), labels=LABELS)
    t1, t2 = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    assert study.cases == (
        Case("first", "p1", (t1, t2), tmp_path / "a-label.nii.gz", fold=1),
        Case("second", "second", (t2, t1)),
    )
    assert study.channels == ("t1", "t2")


def test_absolute_paths_and_other_folders_are_fine(tmp_path):
    touch(tmp_path, "elsewhere/x.nii.gz", "y.nii.gz")
    folder = tmp_path / "manifest"
    folder.mkdir()
    text = f"case,image,label\nx,../elsewhere/x.nii.gz,{tmp_path / 'y.nii.gz'}\n"
    (case,) = read(table(folder, text), labels=LABELS).cases
    assert case.images[0].samefile(tmp_path / "elsewhere/x.nii.gz")
    assert case.label == tmp_path / "y.nii.gz"


def test_labels_of_the_job_win(tmp_path):
    own = {"background": 0, "everything": 1, "rest": 2}
    assert read(decathlon(tmp_path), labels=own).labels == own


def test_all_missing_files_are_told_with_their_lines(tmp_path):
    path = table(tmp_path, "case,image,label\na,a.nii.gz,no.nii.gz\nb,gone.nii.gz,\n")
    faults = faults_of(path, labels=LABELS)
    assert [(fault.where, fault.rule) for fault in faults] == [
        (f"{path}:2", "missing-file"),
        (f"{path}:3", "missing-file"),
    ]


def test_faults_of_cases_and_of_labels_come_together(tmp_path):
    path = table(tmp_path, "case,image\n../a,a.nii.gz\nb,gone.nii.gz\nb,b.nii.gz\n")
    faults = faults_of(path, regions={"all": [1]})
    assert {f.rule for f in faults} == {
        "unsafe-id",
        "missing-file",
        "duplicate-case",
        "missing-labels",
        "regions",
    }


@pytest.mark.parametrize(
    "case_id", ["a/b", "..", ".a", "", "a\\b", "a\tb", "a\x00b", "-rf", "x" * 300, "é\u202e"]
)
def test_an_id_that_is_no_file_name_is_refused(case_id, tmp_path):
    path = table(tmp_path, f'case,image\n"{case_id}",a.nii.gz\n')
    assert "unsafe-id" in {fault.rule for fault in faults_of(path, labels=LABELS)}


def test_an_ordinary_id_is_not(tmp_path):
    path = table(tmp_path, 'case,image\n"Fall 7 – Kopf (é), T1.post",a.nii.gz\n')
    assert len(read(path, labels=LABELS).cases) == 1


@pytest.mark.parametrize(
    "text, rule",
    [
        ("", "manifest-format"),
        ("name;image\na;a.nii.gz\n", "manifest-format"),
        ("case,label\na,a.nii.gz\n", "manifest-format"),
        ("case,case,image\na,a,a.nii.gz\n", "manifest-format"),
        ("case,image\na\n", "manifest-format"),
        ("case,image\na,a.nii.gz,more\n", "manifest-format"),
        ("case,image,fold\na,a.nii.gz,one\n", "manifest-format"),
        ("case,image,fold\na,a.nii.gz,-1\n", "manifest-format"),
        ("case,image,labelled\na,a.nii.gz,organ lesion\n", "unknown-structure"),
        ("case,image,labelled\na,a.nii.gz,organ;\n", "unknown-structure"),
        ("case,image,labelled\na,a.nii.gz,background\n", "unknown-structure"),
        ("case,image\na,\n", "missing-value"),
        ("case,image_0,image_1\na,a.nii.gz,\n", "missing-value"),
        ('case,image\na,"a.nii.gz\n', "manifest-syntax"),
        ("case,image\na," + "x" * 200_000 + "\n", "manifest-syntax"),
        ("case,image\na," + "x" * 2000 + "\n", "missing-file"),
        ("case,image\na,a\0.nii.gz\n", "missing-file"),
        ("case,image\n", "no-cases"),
    ],
)
def test_bad_table(text, rule, tmp_path):
    assert rule in {fault.rule for fault in faults_of(table(tmp_path, text), labels=LABELS)}


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"training": "all"}, "manifest-format"),
        ({"training": [{"label": "labels/a.nii.gz"}]}, "manifest-format"),
        ({"training": [], "validation": []}, "no-cases"),
        ({"training": [{"image": []}]}, "missing-value"),
        ({"training": [{"image": "./images/c.nii.gz"}]}, "duplicate-case"),
        ({"labels": {"zero": "background"}}, "manifest-format"),
        ({"labels": {"9" * 5000: "background"}}, "manifest-format"),
        ({"labels": {"0": "background", "1": "background"}}, "manifest-format"),
        ({"labels": {"1": "organ"}}, "labels"),
        ({"labels": {"0": "background", "99999": "organ"}}, "labels"),
        ({"labels": {}}, "labels"),
        ({"labels": {"0": "background"}}, "labels"),
        ({"labels": {"0": "background", "1": "mean"}}, "reserved-name"),
        ({"labels": None}, "missing-labels"),
        ({"training": [{"image": "images/a.nii.gz", "labelled": ["liver"]}]}, "unknown-structure"),
        ({"training": [{"image": "images/a.nii.gz", "labelled": []}]}, "nothing-labelled"),
        ({"training": [{"image": "images/a.nii.gz", "labelled": "organ"}]}, "manifest-format"),
        ({"modality": {"1": "CT"}}, "manifest-format"),
        ({"modality": {}}, "manifest-format"),
    ],
)
def test_bad_decathlon(changes, rule, tmp_path):
    assert rule in {fault.rule for fault in faults_of(decathlon(tmp_path, **changes))}


@pytest.mark.parametrize(
    "changes, rule",
    [
        ({"labels": {"background": 0, "all": [1, 2]}}, "missing-labels"),
        ({"labels": {"background": 0, "organ": 1, "ignore": [2]}}, "manifest-format"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 1}}, "ignore-value"),
        ({"labelled": {"a": ["liver"]}}, "unknown-structure"),
        ({"labelled": {"a": []}}, "nothing-labelled"),
        ({"labelled": {"z": ["organ"]}}, "unpaired"),
        ({"file_ending": ".png"}, "manifest-format"),
        ({"channel_names": {"0": "T1"}}, "num-channels"),
        ({"channel_names": {"0": "T1", "1": "T2", "2": "T3"}}, "num-channels"),
        ({"channel_names": "T1"}, "manifest-format"),
    ],
)
def test_bad_nnunet(changes, rule, tmp_path):
    assert rule in {fault.rule for fault in faults_of(nnunet(tmp_path, **changes))}


def test_unpaired_files_of_nnunet_are_all_told(tmp_path):
    path = nnunet(tmp_path)
    touch(tmp_path, "labelsTr/c.nii.gz", "imagesTr/odd.nii.gz", "imagesTr/.hidden.nii.gz")
    (tmp_path / "labelsTr/b.nii.gz").unlink()
    faults = faults_of(path)
    assert [fault.rule for fault in faults] == ["unpaired"] * 3
    assert {Path(fault.where).name for fault in faults} == {"b", "c", "odd.nii.gz"}


def test_an_nnunet_folder_without_images_is_refused(tmp_path):
    path = write_json(tmp_path / "dataset.json", json.loads(nnunet(tmp_path / "other").read_text()))
    assert faults_of(path)[0].rule == "manifest-unreadable"


@pytest.mark.parametrize(
    "content, rule",
    [
        (b"", "manifest-syntax"),
        (b"[1, 2", "manifest-syntax"),
        (b"[" * 200_000, "manifest-syntax"),
        (b'{"training": [], "training": []}', "manifest-syntax"),
        (b'{"training": ' + b"1" * 5000 + b"}", "manifest-syntax"),
        (b"\xff\xfe\x00", "manifest-encoding"),
        (b"[]", "manifest-format"),
        (b'{"hello": 1}', "manifest-format"),
        (b" " * (2**24 + 1), "manifest-too-large"),
    ],
)
def test_bad_json(content, rule, tmp_path):
    path = tmp_path / "dataset.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rule):
        read(path)


@pytest.mark.parametrize("name", ["nothing.json", "nothing.csv", ".", "x" * 300 + ".json"])
def test_no_manifest(name, tmp_path):
    with pytest.raises(ConfigError, match="manifest-unreadable"):
        read(tmp_path / name)


def test_regions_unite_declared_values(tmp_path):
    path = decathlon(tmp_path)
    assert read(path, regions={"all": [1, 2], "core": [2]}).labels == LABELS
    with pytest.raises(ConfigError, match="reserved-name"):
        read(path, regions={"mean": [1, 2]})
    for values in ([1, 3], [0, 1]):
        with pytest.raises(ConfigError, match=r"data\.regions\.all.*regions"):
            read(path, regions={"all": values})


@pytest.mark.parametrize("form", ["decathlon", "nnunet", "csv"])
def test_every_form_can_say_what_is_labelled_in_a_case(tmp_path, form):
    if form == "decathlon":
        entries = [{"image": f"images/{c}.nii.gz", "label": f"labels/{c}.nii.gz"} for c in "ab"]
        path = decathlon(tmp_path, training=[{**entries[0], "labelled": ["organ"]}, entries[1]])
    elif form == "nnunet":
        path = nnunet(tmp_path, labelled={"a": ["organ"]})
    else:
        text = "case,image,label,labelled\na,a.nii.gz,a-label.nii.gz, organ \nb,b.nii.gz,b-label.nii.gz,\n"
        path = table(tmp_path, text)
    first, second = read(path, labels=LABELS).cases[:2]
    assert (first.labelled, second.labelled) == (("organ",), None)


def test_names_in_a_table_may_have_blanks(tmp_path):
    labels = {"background": 0, "left lung": 1, "right lung": 2, "heart": 3}
    path = table(tmp_path, "case,image,labelled\na,a.nii.gz,left lung; right lung\n")
    (case,) = read(path, labels=labels).cases
    assert case.labelled == ("left lung", "right lung")


@pytest.mark.parametrize(
    ("regions", "where"),
    [
        ({"core": [2], "whole": [1, 2]}, "whole"),  # inner to outer
        ({"whole": [1, 2, 3], "core": [3, 1]}, "whole"),  # the whole begins with a value of the core
        ({"left": [1, 3], "right": [2, 3]}, "right"),  # what both hold has no region of its own
        ({"left": [1, 3], "right": [2, 3], "both": [3]}, None),
        ({"whole": [2, 1, 3], "core": [1, 3], "enhancing": [3]}, None),
    ],
)
def test_regions_that_no_mask_could_tell_are_refused(regions, where, tmp_path):
    labels = LABELS | {"third": 3}
    contract = LabelContract(labels, {name: tuple(values) for name, values in regions.items()})
    truth = np.arange(4).reshape(4, 1, 1)  # a voxel of each value, predicted perfectly
    scores = torch.tensor(np.array([np.isin(truth, values) - 0.5 for values in regions.values()]))
    decision = Decision(contract.channel_values, is_regions=True)
    mask = label_map_on_grid(scores, np.eye(4), truth.shape, np.eye(4), decision)
    is_perfect = label_map_dice(mask, truth, contract.structures) == dict.fromkeys(regions, 1.0)
    assert is_perfect == (where is None)
    path = decathlon(tmp_path)
    if is_perfect:
        assert read(path, labels=labels, regions=regions).contract == contract
    else:
        with pytest.raises(ConfigError, match=rf"data\.regions\.{where}: a voxel of value"):
            read(path, labels=labels, regions=regions)


def test_with_regions_the_regions_are_what_is_labelled(tmp_path):
    path = table(tmp_path, "case,image,labelled\na,a.nii.gz,whole\n")
    regions = {"whole": [1, 2], "core": [2]}
    assert read(path, labels=LABELS, regions=regions).cases[0].labelled == ("whole",)
    assert [fault.rule for fault in faults_of(path, labels=LABELS)] == ["unknown-structure"]


def test_a_term_of_no_structure_is_refused_with_those_there_are(tmp_path):
    path = table(tmp_path, "case,image\na,a.nii.gz\n")
    (fault,) = faults_of(path, labels=LABELS, terminology={"liver": {"colour": "#112233"}})
    assert (fault.where, fault.rule) == ("data.terminology", "unknown-structure")
    assert "organ" in fault.message


def test_nnunets_ignore_label_is_taken_over(tmp_path):
    path = nnunet(tmp_path, labels=LABELS | {"ignore": 3})
    assert (read(path).labels, read(path).contract.ignore_value) == (LABELS, 3)
    assert read(path, ignore_value=4).contract.ignore_value == 4
    regions = nnunet(tmp_path, labels={"background": 0, "all": [1, 2], "lesion": [2], "ignore": 3})
    study = read(regions, labels=LABELS, regions={"all": [1, 2], "lesion": [2]})
    assert study.contract.ignore_value == 3


def test_nnunets_regions_are_taken_over_with_the_values_that_they_are_written_with(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    path = nnunet(tmp_path, labels=labels, regions_class_order=[1, 2, 3])
    contract = read(path).contract
    assert contract.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert contract.labels == {"background": 0, "label_1": 1, "label_2": 2, "enhancing": 3}
    assert (contract.channel_values, contract.ignore_value) == ((1, 2, 3), 4)
    # BraTS in nnU-Net's words: the oedema is 2 and the outermost.
    path = nnunet(tmp_path, labels=labels, regions_class_order=[2, 3, 3])
    with pytest.raises(ConfigError, match="one value of its own"):
        read(path)
    path = nnunet(tmp_path, labels=labels | {"core": [1, 3]}, regions_class_order=[2, 1, 3])
    assert read(path).contract.regions == {"whole": (2, 1, 3), "core": (1, 3), "enhancing": (3,)}
    assert read(path, labels=LABELS | {"third": 3}).contract.regions is None


@pytest.mark.parametrize("order", [None, [1, 2], [1, 2, 7], [3, 1, 2]])
def test_nnunets_regions_need_an_order_of_their_own_values(tmp_path, order):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    path = nnunet(tmp_path, labels=labels, regions_class_order=order)
    with pytest.raises(ConfigError, match="regions_class_order"):
        read(path)


@pytest.mark.parametrize(
    "settings, where",
    [
        ({"ignore_value": 2}, "data.ignore_value"),
        ({"absent_means_unlabelled": ["organ", "liver"]}, "data.absent_means_unlabelled"),
        ({"regions": {"all": [1, 2]}, "absent_means_unlabelled": ["organ"]}, "data.absent_means_unlabelled"),
    ],
)
def test_what_a_job_says_of_labels_must_fit_the_manifest(settings, where, tmp_path):
    assert [fault.where for fault in faults_of(decathlon(tmp_path), **settings)] == [where]


def test_absence_says_nothing_of_a_structure_that_may_be_undrawn(tmp_path):
    """Unless the manifest says that it was drawn."""
    doubtful = read(decathlon(tmp_path), absent_means_unlabelled=["lesion"]).contract
    assert list(doubtful.labelled_structures(None, {0, 1})) == ["organ"]
    assert list(doubtful.labelled_structures(None, {0, 2})) == ["organ", "lesion"]
    assert list(doubtful.labelled_structures(("lesion",), {0})) == ["lesion"]
    assert not read(decathlon(tmp_path), absent_means_unlabelled=True).contract.labelled_structures(None, {0})
    plain = read(decathlon(tmp_path)).contract
    assert list(plain.labelled_structures(None, {0})) == ["organ", "lesion"]


def test_missing_files_are_a_fault_of_the_input(tmp_path):
    path = decathlon(tmp_path)
    (tmp_path / "images/a.nii.gz").unlink()
    with pytest.raises(InputError, match=r"training\[0\].*missing-file"):
        read(path)


def test_series_of_one_folder_become_channels(tmp_path):
    (tmp_path / "study").mkdir()
    manifest = table(tmp_path, "case,image,label\na,study,a-label.nii.gz\n")
    study = read(manifest, labels=LABELS, series=("T1*", "T2*"), regularise=True)
    assert study.channels == ("T1*", "T2*")
    (case,) = study.cases
    rules = (SeriesRule("T1*", True), SeriesRule("T2*", True))
    assert case.sources == tuple((tmp_path / "study", rule) for rule in rules)


def test_each_channel_of_a_manifest_needs_its_series(tmp_path):
    (tmp_path / "study").mkdir()
    manifest = table(tmp_path, "case,image_T1,image_T2,label\na,study,study,a-label.nii.gz\n")
    (case,) = read(manifest, labels=LABELS, series=("first", "second")).cases
    assert [rule.pattern for _, rule in case.sources] == ["first", "second"]
    (fault,) = faults_of(manifest, labels=LABELS, series=("first", "second", "third"))
    assert fault.rule == "num-channels"
    (case,) = read(manifest, labels=LABELS, regularise=True).cases
    assert case.series == (SeriesRule(None, True),) * 2


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("name, num_cases, num_given", [("hippocampus", 208, 0), ("openkbp", 28, 4)])
def test_real_manifests(name, num_cases, num_given):
    study = read(SHARED / name)
    assert len(study.cases) == num_cases
    assert [case.fold for case in study.cases].count(0) == num_given
