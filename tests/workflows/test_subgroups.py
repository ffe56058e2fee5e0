"""Figures of groups: of the columns that are named, without numbers, names or claims about few cases."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.data.subgroups import read_subgroups
from pipeline.errors import ConfigError
from pipeline.inference.metric_table import read_table, write_metrics
from pipeline.report.content import Report
from pipeline.report.report_page import write_report
from pipeline.statistics import summarise
from pipeline.workflows.papers import card_results
from pipeline.workflows.tasks import subgroups
from pipeline.workflows.tasks.subgroups import group_tables, judge_subgroups

SCANNERS = ["A", "B", ""]


@pytest.fixture
def manifest(tmp_path):
    rows = ["case,patient,image,label,sex,age,scanner,name"]
    for n in range(40):
        rows.append(f"c{n},p{n},i{n},l{n},{'FM'[n % 2]},{20 + n},{SCANNERS[n % 3]},Doe {n}")
    path = tmp_path / "cases.csv"
    path.write_text("\n".join(rows))
    return path


def test_only_groups_of_named_columns_leave(manifest):
    found = read_subgroups(manifest, ("sex", "age", "scanner"))
    assert set(found) == {"sex", "age", "scanner"} and found["sex"]["c1"] == "M"
    assert {found["scanner"][f"c{n}"] for n in range(3)} == {"A", "B", "not said"}
    ages = [found["age"][f"c{n}"] for n in range(40)]
    assert len(set(ages)) == 4 and ages[0] == "up to 29.75" and ages[39] == "above 49.25"
    assert all(ages.count(group) == 10 for group in ages)
    assert "59" not in json.dumps(found["age"]) and "Doe" not in json.dumps(found)


def test_quarters_of_long_numbers_are_told_apart(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,image,day\n" + "".join(f"c{n},i{n},{20240101 + n}\n" for n in range(20)))
    days = list(read_subgroups(path, ("day",))["day"].values())
    assert len(set(days)) == 4 and {days.count(day) for day in days} == {5}


@pytest.mark.parametrize(
    ("column", "told"), [("name", "more than 12"), ("patient", "no group"), ("sx", "sex, age")]
)
def test_what_is_no_group_is_refused(manifest, column, told):
    with pytest.raises(ConfigError) as refused:
        read_subgroups(manifest, (column,))
    assert told in str(refused.value) and "Doe" not in str(refused.value)


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (["a note about a patient that is longer"] * 3, "long ones"),
        (["50", "nan", *map(str, range(20))], "more than 12"),
    ],
)
def test_notes_are_no_groups_and_what_is_no_number_makes_no_quarters(tmp_path, cells, told):
    path = tmp_path / "cases.csv"
    path.write_text("case,image,of\n" + "".join(f"c{n},i{n},{cell}\n" for n, cell in enumerate(cells)))
    with pytest.raises(ConfigError, match=told):
        read_subgroups(path, ("of",))


@pytest.mark.parametrize(
    ("different", "groups"), [(6, {*"123456"}), (9, {"up to 3", "3 to 5", "5 to 7", "above 7"})]
)
def test_few_numbers_are_groups_and_a_bound_is_in_the_quarter_that_it_names(tmp_path, different, groups):
    path = tmp_path / "cases.csv"
    path.write_text("case,image,grade\n" + "".join(f"c{n},i,{n}\n" for n in range(1, different + 1)))
    found = read_subgroups(path, ("grade",))["grade"]
    assert set(found.values()) == groups and found["c3"] == ("3" if different == 6 else "up to 3")


def test_a_run_keeps_the_groups_of_its_validation_cases_alone(tmp_path, manifest):
    record = SimpleNamespace(folder=tmp_path / "kept", log_artifact=lambda path: None)
    record.folder.mkdir()
    section = SimpleNamespace(manifest=manifest, subgroups=("sex",))
    subgroups.write_subgroups(record, section, [SimpleNamespace(id="c2"), SimpleNamespace(id="c3")])
    kept = json.loads((record.folder / "subgroups.json").read_text())
    assert kept == {"sex": {"c2": "F", "c3": "M"}}


def test_a_group_of_as_few_as_may_be_told_is_told(run):
    from pipeline.inference.metric_table import CaseMetrics
    from pipeline.metrics import STRUCTURE_METRICS

    groups = {f"c{n}": "ten" if n < 10 else "nine" for n in range(19)}
    (run.path / "subgroups.json").write_text(json.dumps({"size": groups}))
    values = dict.fromkeys(STRUCTURE_METRICS, 1.0)
    write_metrics(run.path / "cases.csv", [CaseMetrics(f"c{n}", "liver", values) for n in range(19)])
    told = {group: value for _, group, _, _, value in judge_subgroups(run, run.path / "cases.csv")}
    assert told["nine"] is None and told["ten"].value == 1


def test_of_a_cross_validation_groups_of_all_folds_are_told(run, monkeypatch):
    fold = run.path / "fold"
    fold.mkdir()
    (run.path / "subgroups.json").rename(fold / "subgroups.json")
    monkeypatch.setattr(subgroups, "read_children", lambda run: [SimpleNamespace(path=fold)])
    from pipeline.inference.metric_table import CaseMetrics
    from pipeline.metrics import STRUCTURE_METRICS

    values = dict.fromkeys(STRUCTURE_METRICS, 1.0)
    write_metrics(run.path / "cases.csv", [CaseMetrics(f"c{n}", "liver", values) for n in range(40)])
    assert {column for column, *_ in judge_subgroups(run, run.path / "cases.csv")} == {"sex", "scanner"}


def test_a_classifier_tells_nothing_of_few_cases(run):
    run.task = "classification"
    lines = ["case,class,predicted,probability_ill,probability_well,review"]
    for n in range(40):
        truth = ("ill", "well")[n // 2 % 2]
        lines.append(
            f"c{n},{truth},{truth},{0.9 if truth == 'ill' else 0.1},{0.1 if truth == 'ill' else 0.9},no"
        )
    (run.path / "cases.csv").write_text("\n".join(lines) + "\n")
    rows = [row for row in judge_subgroups(run, run.path / "cases.csv") if row[:2] == ("scanner", "A")]
    assert rows == [("scanner", "A", 8, "", None)]


def test_a_manifest_without_columns_has_no_groups(tmp_path):
    assert read_subgroups(tmp_path / "dataset.json", ()) == {}
    with pytest.raises(ConfigError, match="CSV"):
        read_subgroups(tmp_path / "dataset.json", ("sex",))


@pytest.fixture
def run(tmp_path, manifest, monkeypatch):
    """A run's folder, of which only the table and the groups are looked at."""
    monkeypatch.setattr(subgroups, "read_children", lambda run: [])
    folder = tmp_path / "run"
    folder.mkdir()
    found = read_subgroups(manifest, ("sex", "scanner"))
    found["scanner"] = {
        case: group if int(case[1:]) < 24 else "C" for case, group in found["scanner"].items()
    }
    (folder / "subgroups.json").write_text(json.dumps(found))
    return SimpleNamespace(path=folder, task="segmentation")


def test_a_group_has_the_mean_of_its_cases(run):
    generator = np.random.default_rng(0)
    from pipeline.inference.metric_table import CaseMetrics
    from pipeline.metrics import STRUCTURE_METRICS

    rows = [
        CaseMetrics(f"c{n}", name, dict.fromkeys(STRUCTURE_METRICS, 1.0) | {"dice": generator.random()})
        for n in range(40)
        for name in ("liver", "spleen")
    ]
    write_metrics(run.path / "cases.csv", rows)
    told = {
        (column, group): (num, value)
        for column, group, num, _, value in judge_subgroups(run, run.path / "cases.csv")
    }
    rows = read_table(run.path / "cases.csv")
    women = [np.mean([r.values["dice"] for r in rows if r.case == f"c{n}"]) for n in range(0, 40, 2)]
    num, value = told["sex", "F"]
    assert num == 20 and value == summarise(women).estimate
    assert told["scanner", "A"] == (8, None) and told["scanner", "C"][0] == 16
    text = "\n".join(card_results._groups(run))
    assert "| scanner | A | 8 | dice, mean | too few cases |  |" in text and f"{value.value:.4g}" in text
    tables = group_tables(judge_subgroups(run, run.path / "cases.csv"))
    assert [table.heading for table in tables] == ["By sex", "By scanner"]
    assert ("F", 20, "dice, mean", value.value, value.low, value.high) in tables[0].rows
    assert ("A", 8, "dice, mean", None, None, None) in tables[1].rows
    page = run.path / "report.html"
    write_report(page, Report("a run", "of cases", tables=tables))
    shown = page.read_text(encoding="utf-8")
    assert "<h2>By scanner</h2>" in shown and f">{value.value:.4f}</td>" in shown and "None" not in shown


def test_a_classifier_is_judged_in_groups(run):
    run.task = "classification"
    lines = ["case,class,predicted,probability_ill,probability_well,review"]
    for n in range(40):
        truth, right = ("ill", "well")[n // 2 % 2], n % 2 or n % 8 < 6
        said = truth if right else {"ill": "well", "well": "ill"}[truth]
        share = 0.9 if said == "ill" else 0.1
        lines.append(f"c{n},{truth},{said},{share},{1 - share:.1f},no")
    (run.path / "cases.csv").write_text("\n".join(lines) + "\n")
    told = {(group, name): value for _, group, _, name, value in judge_subgroups(run, run.path / "cases.csv")}
    assert told["M", "accuracy"].value == 1 and told["F", "accuracy"].value == pytest.approx(0.75)
    assert told["M", "accuracy"].low < 0.9 and told["M", "auc"].value == 1


def test_labels_that_do_not_exclude_each_other_are_judged_as_such_also_if_every_case_has_one(run):
    run.task = "classification"
    lines = ["case,class,predicted,probability_old,probability_new,review"]
    for n in range(40):
        truth = ("old", "new")[n // 2 % 2]
        lines.append(f"c{n},{truth},{truth},{0.9 if truth == 'old' else 0.2},0.{5 + n % 2},no")
    (run.path / "cases.csv").write_text("\n".join(lines) + "\n")
    told = {name: value for _, group, _, name, value in judge_subgroups(run, run.path / "cases.csv")}
    assert told["sensitivity/old"].value == told["sensitivity/new"].value == 1
