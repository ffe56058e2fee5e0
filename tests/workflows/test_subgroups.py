"""Figures of groups: of the columns that are named, without numbers, names or claims about few cases."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.data.subgroups import read_subgroups
from pipeline.errors import ConfigError
from pipeline.inference.evaluation import read_table, write_metrics
from pipeline.report.content import Report
from pipeline.report.report_page import write_report
from pipeline.statistics import summarise
from pipeline.workflows import cards, subgroups
from pipeline.workflows.subgroups import group_tables, judge_subgroups

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


@pytest.mark.parametrize(
    ("column", "told"), [("name", "more than 12"), ("patient", "no group"), ("sx", "sex, age")]
)
def test_what_is_no_group_is_refused(manifest, column, told):
    with pytest.raises(ConfigError) as refused:
        read_subgroups(manifest, (column,))
    assert told in str(refused.value) and "Doe" not in str(refused.value)


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
    from pipeline.inference.evaluation import STRUCTURE_METRICS, CaseMetrics

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
    text = "\n".join(cards._groups(run))
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
