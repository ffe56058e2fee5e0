"""No case and no label vanishes silently between two folders and the table."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.errors import InputError, ResourceError
from pipeline.inference.evaluation import evaluate_case, evaluate_folders
from pipeline.inference.metric_table import CaseMetrics, summarise_structures, write_metrics
from pipeline.labels import MEAN
from pipeline.metrics import STRUCTURE_METRICS
from pipeline.volume import Grid, Volume

HIPPOCAMPUS = Path(__file__).parents[2] / "../shared/data/hippocampus/labelsTr"
HEADER = "case,label,dice,iou,hd95_mm,asd_mm,nsd,sensitivity,precision,volume_ml,reference_volume_ml"


def label_map(*boxes, shape=(12, 10, 8)):
    """A map in which each of `boxes`, (value, start, stop), is filled along all axes."""
    array = np.zeros(shape, dtype=np.uint8)
    for value, start, stop in boxes:
        array[start:stop, start:stop, start:stop] = value
    return array


def save(path, array, spacing=(1.0, 1.0, 2.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Cases a (perfect), b (label 2 missed) and c (shifted); c is stored as `.nii`."""
    both = label_map((1, 1, 4), (2, 5, 8))
    for case, prediction in (("a", both), ("b", label_map((1, 1, 4))), ("c", np.roll(both, 1, 0))):
        suffix = ".nii" if case == "c" else ".nii.gz"
        save(tmp_path / "predictions" / (case + suffix), prediction)
        save(tmp_path / "references" / f"{case}.nii.gz", both)
    return tmp_path / "predictions", tmp_path / "references"


def values_of(evaluation, case, structure):
    (row,) = [row for row in evaluation.rows if (row.case, row.structure) == (case, structure)]
    return row.values


def test_every_case_and_structure_has_one_row(folders):
    evaluation = evaluate_folders(*folders)
    assert [(row.case, row.structure) for row in evaluation.rows] == [
        (case, structure) for case in "abc" for structure in ("1", "2")
    ]
    assert evaluation.faults == evaluation.warnings == []
    assert values_of(evaluation, "a", "2")["dice"] == 1.0
    assert values_of(evaluation, "b", "2")["dice"] == 0.0
    assert values_of(evaluation, "b", "2")["hd95_mm"] == pytest.approx(np.hypot(np.hypot(12, 10), 16))
    assert values_of(evaluation, "c", "1")["dice"] == pytest.approx(2 / 3)
    assert values_of(evaluation, "c", "1")["volume_ml"] == pytest.approx(27 * 2 / 1000)


def test_progress_is_told_case_by_case(folders):
    told = []
    evaluate_folders(*folders, on_case=lambda case, num_cases: told.append((case, num_cases)))
    assert told == [("a", 3), ("b", 3), ("c", 3)]


def test_two_files_are_compared_whatever_their_names(folders):
    predictions, references = folders
    evaluation = evaluate_folders(predictions / "c.nii", references / "a.nii.gz")
    assert {row.case for row in evaluation.rows} == {"c"}


def test_a_structure_is_the_union_of_its_labels(folders):
    evaluation = evaluate_folders(*folders, {"whole": (1, 2), "core": (2,)})
    assert values_of(evaluation, "b", "whole")["dice"] == pytest.approx(2 * 27 / (27 + 54))
    assert values_of(evaluation, "b", "whole")["precision"] == 1.0


@pytest.mark.parametrize(
    ("report", "names"),
    [
        ({"labels": {"background": 0, "tail": 2, "head": 1}}, ["head", "tail"]),
        ({"labels": {"head": 1, "tail": 2}, "structures": {"whole": [1, 2], "tail": [2]}}, ["whole", "tail"]),
        ({"labels": {"head": 1, "tail": 2}, "structures": None}, ["head", "tail"]),
        ({"something": "else"}, ["1", "2"]),
    ],
)
def test_names_come_from_the_report_beside_the_predictions(folders, report, names):
    (folders[0] / "report.json").write_text(json.dumps(report))
    evaluation = evaluate_folders(*folders)
    assert [row.structure for row in evaluation.rows if row.case == "a"] == names
    assert evaluation.warnings == []


@pytest.mark.parametrize(
    "report", ["{", "[]", '{"labels": [1]}', '{"labels": {"a": 1.5}}', '{"structures": {"a": 3}}', "[" * 9999]
)
def test_a_report_that_cannot_be_understood_is_refused(folders, report):
    (folders[0] / "report.json").write_text(report)
    with pytest.raises(InputError, match="report-unreadable"):
        evaluate_folders(*folders)


def test_given_structures_outrank_the_report(folders):
    (folders[0] / "report.json").write_text("{")
    assert {row.structure for row in evaluate_folders(*folders, {"x": (1, 2)}).rows} == {"x"}


def test_a_label_in_no_structure_is_said(folders):
    save(folders[0] / "a.nii.gz", label_map((1, 1, 4), (2, 5, 6), (7, 6, 8)))
    warnings = evaluate_folders(*folders, {"head": (1,), "tail": (2,)}).warnings
    assert [(warning.rule, warning.where) for warning in warnings] == [("label-unknown", "label 7")]
    assert "prediction of a" in warnings[0].message
    (of_reference,) = evaluate_folders(*folders, {"head": (1,), "other": (7,)}).warnings[1:]
    assert "label 2" in of_reference.where
    assert "reference of a, b, c" in of_reference.message


@pytest.mark.parametrize("side", [0, 1])
def test_a_voxel_with_a_huge_value_costs_its_case_and_says_why(folders, side):
    huge = label_map((1, 1, 4), (2, 5, 8)).astype(np.uint32)
    huge[0, 0, 0] = 4_000_000_000
    save(folders[side] / "a.nii.gz", huge)
    evaluation = evaluate_folders(*folders)
    assert [(fault.where, fault.rule) for fault in evaluation.faults] == [("a", "label-range")]
    assert [(row.case, row.structure) for row in evaluation.rows] == [
        (case, structure) for case in "bc" for structure in ("1", "2")
    ]


def test_what_is_predicted_at_ignored_voxels_changes_nothing(folders):
    predictions, references = folders
    reference = label_map((1, 1, 4), (2, 5, 8))
    reference[6:] = 255
    save(references / "a.nii.gz", reference)
    rows = []
    for value in (0, 1, 2, 9):
        prediction = label_map((1, 1, 3), (2, 5, 8))
        prediction[6:] = value
        save(predictions / "a.nii.gz", prediction)
        evaluation = evaluate_folders(predictions / "a.nii.gz", references / "a.nii.gz", ignore_value=255)
        rows.append([row for row in evaluation.rows if row.structure in "12"])
        assert [(row.case, row.structure) for row in rows[-1]] == [("a", "1"), ("a", "2")]
        assert "label 255" not in {warning.where for warning in evaluation.warnings}
    assert all(found == rows[0] for found in rows)
    assert values_of(evaluation, "a", "2")["dice"] == 1
    assert values_of(evaluation, "a", "2")["reference_volume_ml"] == pytest.approx(9 * 2 / 1000)


def test_an_ignored_value_is_left_out_also_where_it_is_one_of_the_labels(folders):
    predictions, references = folders
    save(predictions / "a.nii.gz", label_map((1, 1, 4), (3, 5, 8)))
    save(references / "a.nii.gz", label_map((1, 1, 4), (2, 5, 8)))
    report = {"structures": {"all": [1, 2, 3], "lesion": [2], "core": [3]}}
    (predictions / "report.json").write_text(json.dumps(report))
    evaluation = evaluate_folders(predictions / "a.nii.gz", references / "a.nii.gz", ignore_value=2)
    assert [row.structure for row in evaluation.rows] == ["all", "core"]
    assert values_of(evaluation, "a", "all")["dice"] == values_of(evaluation, "a", "core")["dice"] == 1
    assert values_of(evaluation, "a", "all")["reference_volume_ml"] == pytest.approx(27 * 2 / 1000)
    assert not evaluation.confusions


def test_a_case_has_no_row_for_what_is_not_labelled_in_it(folders):
    structures = {"head": (1,), "tail": (2,)}
    asked = {}

    def labelled(case, present):
        asked[case] = set(present)
        return {"head": (1,)} if case == "b" else structures

    evaluation = evaluate_folders(*folders, structures, labelled=labelled)
    assert asked == {case: {1, 2} for case in "abc"}
    assert [(row.case, row.structure) for row in evaluation.rows if row.case == "b"] == [("b", "head")]
    assert evaluation.warnings == []
    summary = summarise_structures(evaluation.rows)
    assert {name: metrics["dice"].num for name, metrics in summary.items()} == {
        "head": 3,
        "tail": 2,
        MEAN: 3,
    }


def test_a_label_found_in_one_case_only_is_measured_in_all(folders):
    save(folders[0] / "a.nii.gz", label_map((9, 1, 4)))
    evaluation = evaluate_folders(*folders)
    assert values_of(evaluation, "a", "9")["dice"] == 0.0
    assert values_of(evaluation, "b", "9")["dice"] == 1.0


def test_cases_without_partner_are_faults_and_the_others_go_on(folders):
    predictions, references = folders
    save(predictions / "only_predicted.nii.gz", label_map((1, 1, 4)))
    save(references / "only_drawn.nii.gz", label_map((1, 1, 4)))
    evaluation = evaluate_folders(predictions, references)
    assert {(fault.where, fault.rule) for fault in evaluation.faults} == {
        ("only_predicted", "reference-missing"),
        ("only_drawn", "prediction-missing"),
    }
    assert {row.case for row in evaluation.rows} == {"a", "b", "c"}


def test_another_grid_is_a_fault_that_names_both(folders):
    predictions, references = folders
    save(predictions / "a.nii.gz", label_map((1, 1, 4)), spacing=(1.0, 1.0, 2.5))
    save(predictions / "b.nii.gz", label_map((1, 1, 4), shape=(8, 8, 8)))
    evaluation = evaluate_folders(predictions, references)
    assert [(fault.where, fault.rule) for fault in evaluation.faults] == [
        ("a", "grid-mismatch"),
        ("b", "grid-mismatch"),
    ]
    assert "1 × 1 × 2.5 mm" in evaluation.faults[0].message
    assert "1 × 1 × 2 mm" in evaluation.faults[0].message
    assert "8 × 8 × 8" in evaluation.faults[1].message
    assert "12 × 10 × 8" in evaluation.faults[1].message
    assert {row.case for row in evaluation.rows} == {"c"}


def test_an_unreadable_map_is_a_fault_of_its_case(folders):
    damaged = folders[0] / "b.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    evaluation = evaluate_folders(*folders)
    assert {fault.where for fault in evaluation.faults} == {"b"}
    assert {row.case for row in evaluation.rows} == {"a", "c"}


def test_a_case_with_two_files_is_left_out(folders):
    save(folders[0] / "a.nii", label_map((1, 1, 4)))
    evaluation = evaluate_folders(*folders)
    assert [(fault.where, fault.rule) for fault in evaluation.faults] == [("a", "duplicate-case")]
    assert {row.case for row in evaluation.rows} == {"b", "c"}


def test_hidden_and_foreign_files_are_no_cases(folders):
    (folders[0] / "._a.nii.gz").write_bytes(b"left by a file manager")
    (folders[1] / "notes.txt").write_text("mind the gap")
    assert evaluate_folders(*folders).faults == []


def test_paths_that_cannot_be_compared_are_refused(folders, tmp_path):
    predictions, references = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no-images"):
        evaluate_folders(predictions, tmp_path / "empty")
    with pytest.raises(InputError, match="file-and-folder"):
        evaluate_folders(predictions, references / "a.nii.gz")
    with pytest.raises(InputError) as refused:
        evaluate_folders(tmp_path / "one", tmp_path / "two")
    assert [fault.rule for fault in refused.value.faults] == ["missing-file"] * 2


def test_evaluate_case_takes_mirrored_storage_for_another_grid():
    array = label_map((1, 1, 4))
    here = Volume(array, Grid(array.shape, np.eye(4)))
    mirrored = Volume(array, Grid(array.shape, np.diag([-1.0, 1.0, 1.0, 1.0])))
    assert evaluate_case("a", here, here, {"x": (1,)})[0].values["dice"] == 1.0
    with pytest.raises(InputError, match=r"RAS.*LAS"):
        evaluate_case("a", here, mirrored, {"x": (1,)})


def test_the_table_has_one_line_per_case_and_label(folders, tmp_path):
    rows = evaluate_folders(*folders).rows
    write_metrics(tmp_path / "out" / "metrics.csv", rows)
    text = (tmp_path / "out" / "metrics.csv").read_text()
    assert text.splitlines()[0] == HEADER
    read = list(csv.DictReader(text.splitlines()))
    assert [(line["case"], line["label"]) for line in read] == [(row.case, row.structure) for row in rows]
    for line, row in zip(read, rows, strict=True):
        assert {name: float(line[name]) for name in STRUCTURE_METRICS} == pytest.approx(row.values, rel=1e-5)


def test_a_table_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(ResourceError, match="not-writable"):
        write_metrics(tmp_path / "metrics.csv", [])


def test_summaries_are_over_cases_and_the_mean_is_per_case_first():
    dice = {("a", "x"): 0.0, ("a", "y"): 1.0, ("b", "x"): 0.6, ("b", "y"): 0.8, ("c", "x"): 0.3}
    rows = [
        CaseMetrics(case, structure, dict.fromkeys(STRUCTURE_METRICS, value))
        for (case, structure), value in dice.items()
    ]
    summary = summarise_structures(rows)
    assert list(summary) == ["x", "y", MEAN]
    assert list(summary["x"]) == list(STRUCTURE_METRICS)
    assert summary["x"]["dice"].mean == pytest.approx(0.3)
    assert (summary["y"]["dice"].num, summary[MEAN]["dice"].num) == (2, 3)
    assert summary[MEAN]["dice"].mean == pytest.approx((0.5 + 0.7 + 0.3) / 3)
    assert summarise_structures([]) == {}


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the hippocampus study is not on this machine")
def test_real_label_maps_agree_with_themselves(tmp_path):
    for case in ("hippocampus_001", "hippocampus_003"):
        (tmp_path / f"{case}.nii.gz").symlink_to((HIPPOCAMPUS / f"{case}.nii.gz").resolve())
    evaluation = evaluate_folders(tmp_path, tmp_path)
    assert [row.structure for row in evaluation.rows] == ["1", "2", "1", "2"]
    assert all(row.values["dice"] == 1.0 for row in evaluation.rows)
    assert all(0.5 < row.values["volume_ml"] < 5 for row in evaluation.rows)
