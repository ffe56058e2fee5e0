"""Classifiers are compared by the curves and answers of the same cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.discrimination import compare_auc
from pipeline.errors import ConfigError
from pipeline.workflows.comparing import compare

NUM = 60
RING = np.arange(NUM) % 3 == 0
RNG = np.random.default_rng(0)
GOOD = np.round(np.clip(RING * 0.7 + RNG.uniform(0, 0.3, NUM), 0, 1), 4)
POOR = np.round(np.clip(RING * 0.2 + RNG.uniform(0, 0.8, NUM), 0, 1), 4)


def add_run(name, ring, settings=None, truth=RING, classes=("disc", "ring")):
    """A run as its folder tells of it, which is all that a comparison reads."""
    folder = Path("mlruns/runs") / name
    folder.mkdir(parents=True)
    facts = {"name": name, "experiment": "shapes", "task": "classification", "uri": "", "created": 1}
    (folder / "run.json").write_text(json.dumps(facts | {"parent": None}))
    values = {"data.multi_label": "false", "training.seed": "0", **(settings or {})}
    events = [
        {"kind": "parameters", "time": 1, "step": 0, "values": values},
        {"kind": "tags", "time": 1, "step": 0, "values": {"clinseg.data_hash": "0" * 64}},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    rows = [
        f"<case {n}>,{classes[int(truth[n])]},{classes[int(p >= 0.5)]},{1 - p:.6g},{p:.6g},no"
        for n, p in enumerate(ring)
    ]
    header = f"case,class,predicted,probability_{classes[0]},probability_{classes[1]},review"
    (folder / "cases.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def findings(comparison):
    return {finding.figure.metric: finding for finding in comparison.outcome.findings}


def test_a_better_classifier_is_found_by_delong_and_mcnemar(clinseg, tmp_path):
    add_run("good", GOOD)
    add_run("poor", POOR, {"network.name": "poor"})
    found = findings(compare(["good", "poor"]))
    expected = compare_auc(GOOD[None, :, None], POOR[None, :, None], RING[:, None])
    assert found["auc"].difference.value == pytest.approx(expected.value)
    assert found["auc"].difference.p == pytest.approx(expected.p)
    assert found["auc"].is_shown and not found["auc"].is_better
    right, other = (GOOD >= 0.5) == RING, (POOR >= 0.5) == RING
    gained, lost = (~right & other).sum(), (right & ~other).sum()
    assert found["accuracy"].difference.p == pytest.approx(binomtest(gained, gained + lost).pvalue)
    answer = clinseg("compare", "good", "poor", "-o", tmp_path / "page.html")
    assert answer.code == 0 and "network.name" in answer.out
    assert "&lt;case " in (tmp_path / "page.html").read_text()


def test_equal_classifiers_show_no_difference():
    add_run("one", POOR)
    add_run("two", POOR, {"network.name": "other"})
    assert {f.adjusted for f in compare(["one", "two"]).outcome.findings} == {1.0}


def test_seeds_count_with_their_mean_area():
    add_run("one", GOOD)
    add_run("first", POOR, {"network.name": "poor"})
    add_run("second", np.round(1 - POOR, 4), {"network.name": "poor", "training.seed": "1"})
    comparison = compare(["one", "first", "second"])
    assert [arm.runs for arm in comparison.arms] == [("one",), ("first", "second")]
    good = comparison.outcome.standings[0].runs["one"].value
    assert findings(comparison)["auc"].difference.value == pytest.approx(0.5 - good)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({"truth": ~RING}, "references-differ"), ({"classes": ("disc", "rod")}, "other-classes")],
)
def test_other_truths_and_other_classes_are_refused(changes, rule):
    add_run("one", GOOD)
    add_run("two", GOOD, **changes)
    with pytest.raises(ConfigError) as caught:
        compare(["one", "two"])
    assert [fault.rule for fault in caught.value.faults] == [rule]


def test_what_cannot_be_compared_is_told(clinseg):
    for name in ("one", "two"):
        add_run(name, GOOD)
        path = Path("mlruns/runs", name, "run.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task": "registration"}))
    answer = clinseg("compare", "one", "two")
    assert answer.code == 2 and "runs of registration cannot be compared" in answer.err
