"""Enhancers are compared by what they made of the same images."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from pipeline.errors import ConfigError, InputError
from pipeline.workflows.comparing import compare

RNG = np.random.default_rng(0)
NUM = 20
BEFORE = RNG.uniform(20, 22, NUM)
GOOD = BEFORE + RNG.uniform(4, 6, NUM)
POOR = GOOD - RNG.uniform(0.2, 1, NUM)


def add_run(name, psnr, settings=None, before=BEFORE):
    """A run as its folder tells of it, which is all that a comparison reads."""
    folder = Path("mlruns/runs") / name
    folder.mkdir(parents=True)
    facts = {"name": name, "experiment": "noise", "task": "enhancement", "uri": "", "created": 1}
    (folder / "run.json").write_text(json.dumps(facts | {"parent": None}))
    values = {"training.seed": "0", **(settings or {})}
    events = [
        {"kind": "parameters", "time": 1, "step": 0, "values": values},
        {"kind": "tags", "time": 1, "step": 0, "values": {"clinseg.data_hash": "0" * 64}},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    header = "case,psnr_before,ssim_before,psnr_after,ssim_after,mean_change,largest_change"
    rows = [
        f"c{n:02d},{b:.6g},{b / 40:.6g},{p:.6g},{p / 40:.6g},1,2"
        for n, (b, p) in enumerate(zip(before, psnr, strict=True))
    ]
    (folder / "cases.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_worse_enhancer_is_found_told_and_drawn(clinseg, tmp_path):
    add_run("good", GOOD)
    add_run("poor", POOR, {"training.cycle_weight": "1"})
    found = {finding.figure.metric: finding for finding in compare(["good", "poor"]).outcome.findings}
    good, poor = ([float(f"{value:.6g}") for value in values] for values in (GOOD, POOR))
    assert found["psnr"].difference.p == pytest.approx(wilcoxon(good, poor).pvalue)
    assert found["psnr"].difference.value == pytest.approx(np.mean(POOR - GOOD), abs=1e-4)
    assert found["psnr"].is_shown and not found["psnr"].is_better and found["ssim"].is_shown
    answer = clinseg("compare", "good", "poor", "-o", "page.html")
    assert answer.code == 0 and "training.cycle_weight" in answer.out
    assert "PSNR (dB) of every case" in Path("page.html").read_text()


def test_enhancers_of_other_images_are_not_compared():
    add_run("one", GOOD)
    add_run("other", POOR, before=BEFORE - 1)
    with pytest.raises(ConfigError, match="other"):
        compare(["one", "other"])


def test_cases_without_a_truth_are_left_out():
    for name, values in (("one", GOOD), ("other", POOR)):
        add_run(name, values)
        table = Path(f"mlruns/runs/{name}/cases.csv")
        lines = table.read_text().splitlines()
        lines[3:5] = ["c02,,,,,1,2", "c03,,,,,1,2"]
        table.write_text("\n".join(lines) + "\n")
    found = compare(["one", "other"]).outcome.findings[0]
    assert found.difference.value == pytest.approx(np.mean(np.delete(POOR - GOOD, [2, 3])), abs=1e-4)
    table.write_text("case,mean_change,largest_change\nc00,1,2\n")
    with pytest.raises(ConfigError, match="nothing is known of what is true"):
        compare(["one", "other"])


def test_images_in_the_unit_of_the_targets_are_compared_by_what_they_are_like_after():
    for name, values in (("one", GOOD), ("other", POOR)):
        add_run(name, values)
    table = Path("mlruns/runs/other/cases.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("".join(",".join([row[0], *row[3:]]) + "\n" for row in rows))
    found = compare(["one", "other"]).outcome.findings[0]
    assert found.difference.value == pytest.approx(np.mean(POOR - GOOD), abs=1e-4)


def test_a_damaged_table_is_told_with_its_line():
    add_run("one", GOOD)
    add_run("other", np.where(np.arange(NUM) == 3, np.nan, POOR))
    with pytest.raises(InputError, match=r"cases\.csv:5"):
        compare(["one", "other"])
