"""Runs are compared where they answered the same, else refused; the page shows it and asks nothing."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.metrics import STRUCTURE_METRICS
from pipeline.workflows.comparing import compare

NASTY = "</script><b>x"


class Runs:
    """Copies of a trained run with other tables, settings and masks; no training of their own."""

    def __init__(self, trained, folder):
        self.source, self.store = trained.run, folder / "mlruns/runs"
        self.real = read_rows(trained.run / "cases.csv")[0]["case"]

    def add(self, name, dice, settings=None, task="segmentation", **facts):
        """A run whose structure `core` has that Dice in each case, and whose first case is the real one."""
        folder = self.store / name
        shutil.copytree(self.source, folder, ignore=shutil.ignore_patterns("checkpoints", "lock", "overlays"))
        run = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(run | {"name": name, "task": task, "parent": None}))
        events = (folder / "events.jsonl").read_text()
        for key, value in {"tracking.experiment": name, **(settings or {})}.items():
            events = re.sub(rf'("{re.escape(key)}":)"[^"]*"', rf'\1"{value}"', events)
        if "data_hash" in facts:
            events = re.sub(r'(data_hash":)"\w+"', rf'\1"{facts["data_hash"]}"', events)
        (folder / "events.jsonl").write_text(events)
        cases = facts.get("cases", [self.real, *(f"case {n}" for n in range(1, len(dice)))])
        (folder / "split.json").write_text(json.dumps({"training": ["t"], "validation": cases}))
        self.write_table(folder / "cases.csv", cases, dice, facts.get("reference", 2.0))
        return folder

    def write_table(self, path, cases, dice, reference):
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("case", "label", *STRUCTURE_METRICS))
            for case, value in zip(cases, dice, strict=True):
                numbers = dict.fromkeys(STRUCTURE_METRICS, value)
                numbers |= {
                    "hd95_mm": 10 * (1 - value),
                    "volume_ml": 2 * value,
                    "reference_volume_ml": reference,
                }
                table.writerow((case, "core", *numbers.values()))


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Runs(trained, tmp_path)


DICE = np.round(np.linspace(0.7, 0.9, 24), 4)


class Reader(HTMLParser):
    """What a browser would see: elements, addresses, and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_real_difference_is_found_shown_and_drawn(clinseg, runs, tmp_path):
    runs.add("before", DICE)
    runs.add("after", np.round(DICE + np.linspace(0.04, 0.01, 24), 4), {"training.epochs": "9"})
    answer = clinseg("compare", "before", "after", "-o", tmp_path / "compare.html")
    assert answer.code == 0
    assert (
        "A difference: B is better by 0.0250." in answer.out
        and "A difference: B is better by 0.25." in answer.out
    )
    page = Reader((tmp_path / "compare.html").read_text())
    assert len(page.addresses) == 4  # scatter, volumes, and the one real case of both runs
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "training.epochs" in page.texts and "training.seed" not in page.texts
    assert any(text.startswith("no picture: case 1:") for text in page.texts)


def test_equal_runs_show_no_difference(runs, tmp_path):
    runs.add("one", DICE)
    runs.add("two", DICE, {"training.epochs": "9"})
    comparison = compare(["one", "two"], tmp_path / "page.html")
    assert {f.adjusted for f in comparison.outcome.findings} == {1.0}
    assert not comparison.outcome.changes and "None changed." in (tmp_path / "page.html").read_text()


def test_findings_are_those_of_plain_numbers(runs):
    rng = np.random.default_rng(0)
    other = np.round(DICE + rng.normal(0.005, 0.02, 24), 4)
    runs.add("one", DICE)
    runs.add("two", other, {"training.epochs": "9"})
    comparison = compare(["one", "two"])
    dice = next(f for f in comparison.outcome.findings if f.figure.metric == "dice")
    assert dice.difference.value == pytest.approx((other - DICE).mean())
    assert set(comparison.settings) == {"training.epochs", "tracking.experiment"}
    change = comparison.outcome.changes[0]
    assert abs(change.after - change.before) == pytest.approx(np.abs(other - DICE).max())


def test_seeds_of_one_config_are_one_arm(runs):
    for number, shift in enumerate((0.0, 0.02, 0.04)):
        runs.add(f"plain{number}", DICE + shift, {"training.seed": str(number)})
    runs.add("other", DICE + 0.02, {"training.epochs": "9"})
    comparison = compare(["plain0", "other", "plain1", "plain2"])
    assert [arm.runs for arm in comparison.arms] == [("plain0", "plain1", "plain2"), ("other",)]
    dice = comparison.outcome.findings[0]
    assert dice.difference.value == pytest.approx(0, abs=1e-9)  # of the mean over seeds
    assert comparison.outcome.standings[0].spread == {"A": pytest.approx(0.02)}
    noise = compare(["plain0", "plain1", "plain2"])
    assert len(noise.arms) == 3 and any("noise of training" in note for note in noise.notes)


def test_a_page_shows_any_name_as_text_and_asks_nothing(runs, tmp_path):
    cases = [NASTY, "$x_1$", *(f"case {n}" for n in range(22))]
    runs.add("one", DICE, cases=cases)
    runs.add("two", np.append(DICE[:-1] + 0.01, 0.2)[::-1], {"training.epochs": "9"}, cases=cases)
    compare(["one", "two"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Reader(text)
    assert NASTY in page.texts and not {"b", "script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", text))
    assert "default-src &#x27;none&#x27;" in text


@pytest.mark.parametrize(
    ("facts", "rule", "told"),
    [
        (
            {"cases": [f"case {n}" for n in range(24)]},
            "cases-differ",
            "1 only in one .* 1 only here .*case 0.*same patients, on whom alone folds",
        ),
        ({"reference": 2.5}, "references-differ", "24 cases .* and 19 more"),
        ({"data_hash": "f" * 64}, "data-differ", "files of its cases are not those of one"),
        ({"task": "classification"}, "other-task", "it is a classification"),
    ],
)
def test_what_did_not_answer_the_same_is_refused(runs, facts, rule, told):
    runs.add("one", DICE)
    runs.add("two", DICE, **facts)
    with pytest.raises(ConfigError, match=told) as caught:
        compare(["one", "two"])
    assert [(fault.where, fault.rule) for fault in caught.value.faults] == [("two", rule)]


def test_runs_without_judged_cases_and_runs_named_twice_are_refused(runs, clinseg):
    folder = runs.add("one", DICE)
    runs.add("two", DICE)
    answer = clinseg("compare", "one", "one")
    assert answer.code == 2 and "named twice" in answer.err
    assert clinseg("compare", "one").code == 2
    (folder / "cases.csv").unlink()
    answer = clinseg("compare", "one", "two")
    assert answer.code == 2 and "one: it has no judged cases" in answer.err


def test_a_sweep_is_compared_by_its_best_trial_and_that_is_told(runs):
    runs.add("one", DICE)
    trial, sweep = runs.add("many-trial1", DICE + 0.05), runs.add("many", DICE)
    told = json.loads((trial / "run.json").read_text())
    (trial / "run.json").write_text(json.dumps(told | {"parent": "many"}))
    (sweep / "cases.csv").unlink()
    (sweep / "sweep.json").write_text("{}")
    event = {"kind": "tags", "time": 1, "step": 0, "values": {"clinseg.winner": "many-trial1"}}
    with (sweep / "events.jsonl").open("a") as file:
        file.write(json.dumps(event, separators=(",", ":")) + "\n")
    found = compare(["one", "many"])
    assert found.arms[1].runs == ("many-trial1",)
    assert [told for told in found.notes if "chosen by these very cases" in told]


def test_other_training_cases_are_compared_and_told(runs):
    runs.add("one", DICE)
    folder = runs.add("two", DICE, data_hash="f" * 64)
    split = json.loads((folder / "split.json").read_text())
    (folder / "split.json").write_text(json.dumps(split | {"training": ["t", "u"]}))
    assert any("did not train on the same cases" in note for note in compare(["one", "two"]).notes)


def test_a_run_whose_files_are_gone_is_compared_without_pictures(runs, tmp_path):
    folder = runs.add("one", DICE)
    runs.add("two", DICE - 0.3, {"training.epochs": "9"})
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"manifest: .*", "manifest: /gone/dataset.json", config))
    compare(["one", "two"], tmp_path / "page.html")
    page = Reader((tmp_path / "page.html").read_text())
    assert len(page.addresses) == 2 and any("/gone/dataset.json" in text for text in page.texts)


def test_cross_validations_are_compared_over_all_folds(runs, tmp_path):
    for name, shift in (("one", 0.0), ("two", 0.1)):
        parent = runs.add(name, np.append(DICE[:1] + shift, DICE[1:]), {"training.epochs": name})
        (parent / "split.json").unlink()
        for fold in (1, 0):  # the masks lie with the folds
            child = runs.add(f"{name}-fold{fold}", DICE)
            facts = json.loads((child / "run.json").read_text())
            (child / "run.json").write_text(json.dumps(facts | {"parent": name, "created": fold}))
            if fold:
                shutil.rmtree(child / "validation")
        shutil.rmtree(parent / "validation")
    comparison = compare(["one", "two"], tmp_path / "page.html")
    assert [(change.case, change.after - change.before) for change in comparison.outcome.changes] == [
        (runs.real, pytest.approx(0.1))
    ]
    assert len(Reader((tmp_path / "page.html").read_text()).addresses) == 4
    with pytest.raises(ConfigError, match="cases-differ"):
        runs.add("alone", DICE[:3])
        compare(["one", "alone"])
