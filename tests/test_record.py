"""The page about the record names all that is in real runs of each task, and nothing that is not."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pipeline.tracking.store import connect

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/record.md").read_text(encoding="utf-8")
SECTIONS = {"tags": "Tags", "metrics": "Metrics", "artifacts": "Artifacts"}


def told(section):
    """Pattern, tasks and condition of each name in a table of the page."""
    text = PAGE[PAGE.index(f"## {SECTIONS[section]}") :].split("\n## ")[0]
    for row in re.findall(r"^\| `([^`]+)` \| ([^|]*)\|([^|]*)\|", text, re.MULTILINE):
        name, tasks, when = (cell.strip() for cell in row)
        pattern = re.sub(r"<\w+>", ".+", re.sub(r"[.](?![+])", r"[.]", name))
        yield re.compile(pattern), tasks, when


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def names(run, section):
    found = [event for event in events(run) if event["kind"] in (section, section.removesuffix("s"))]
    if section == "artifacts":
        return {
            "/".join(filter(None, (e["values"]["folder"], Path(e["values"]["path"]).name))) for e in found
        }
    return {name for event in found for name in event["values"]}


def check(run, task):
    for section in SECTIONS:
        real, table = names(run, section), list(told(section))
        assert len(table) > 5
        own = [pattern for pattern, tasks, _ in table if tasks == "all" or task in tasks]
        unknown = {name for name in real if not any(pattern.fullmatch(name) for pattern in own)}
        assert unknown == set(), f"{section} that the page does not tell of"
        for pattern, tasks, when in table:
            is_there = any(pattern.fullmatch(name) for name in real)
            if task not in tasks and tasks != "all":
                assert not is_there or ".+" in pattern.pattern, f"{pattern.pattern} of {task}"
            elif not when:
                assert is_there, f"{pattern.pattern} is missing in {task}"


def check_steps(run, num_epochs):
    for event in events(run):
        if event["kind"] == "metrics":
            assert 0 < event["step"] <= num_epochs, event


def check_data(run, name, num_training, num_validation):
    sets = {e["values"]["context"]: e["values"] for e in events(run) if e["kind"] == "dataset"}
    assert {context: int(values["num_cases"]) for context, values in sets.items()} == {
        "training": num_training,
        "validation": num_validation,
    }
    assert {values["name"] for values in sets.values()} == {name}
    assert sets["training"]["digest"] != sets["validation"]["digest"]


def train(clinseg, config, **settings):
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    answer = clinseg("train", ROOT / "configs/smoke" / config, *arguments)
    assert answer.code == 0, answer.err
    (run,) = Path("mlruns/runs").iterdir()
    return run


def test_a_segmentation_leaves_what_the_page_tells(trained):
    check(trained.run, "segmentation")
    check_steps(trained.run, 3)
    check_data(trained.run, "study", 4, 1)
    tags = {k: v for e in events(trained.run) if e["kind"] == "tags" for k, v in e["values"].items()}
    assert (
        tags["clinseg.command"].startswith("clinseg train ")
        and "network.features=" in tags["clinseg.command"]
    )
    assert (tags["clinseg.ending"], tags["clinseg.data"]) == ("finished", "study")


def test_mlflow_has_the_data_and_a_note_that_begins_with_figures(trained):
    client = connect(f"sqlite:///{trained.folder}/mlruns/mlflow.db")
    run_id = json.loads((trained.run / "delivery.json").read_text())["run_id"]
    run = client.get_run(run_id)
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert set(inputs) == {"training", "validation"}
    assert json.loads(inputs["training"].source)["uri"] == str(trained.manifest)
    assert json.loads(inputs["training"].profile)["num_rows"] == 4
    note = run.data.tags["mlflow.note.content"]
    dice = run.data.metrics["best/dice/mean"]
    assert note.splitlines()[2] == "| figure | value |  |" and f"| Dice | {dice:.4f} |" in note
    assert f"(get-artifact?path=report.html&run_uuid={run_id})" in note
    assert "| training.learning\\_rate | 0.02 |" in note
    assert list(run.data.params)[:2] == ["network.name", "network.features"]
    picture = re.search(r"!\[.*\]\(get-artifact\?path=(\S+)&run", note)[1].replace("%2F", "/")
    assert picture in {f.path for f in client.list_artifacts(run_id, "overlays")}
    assert "unknown from one case" in note and "best_low/dice/mean" not in run.data.metrics


@pytest.mark.slow
def test_a_classification_leaves_what_the_page_tells(clinseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(16):
        kind = "disc" if number % 2 else "ring"
        picture = generator.integers(0, 90, (16, 16)).astype(np.uint8)
        picture[4:12, 4:12] += 120
        picture[6:10, 6:10] -= 100 * (kind == "ring")
        (tmp_path / "study" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "study" / kind / f"{number:02d}.png")
    settings = {
        "data.manifest": "study",
        "data.classes": "[disc, ring]",
        "data.split": "new",
        "preprocessing.size": "[16, 16]",
        "network.features": "[4, 8]",
        "training.epochs": 2,
        "training.steps_per_epoch": 2,
        "training.batch_size": 4,
        "tracking.overlays": 1,
    }
    run = train(clinseg, "pneumonia.yaml", **settings)
    check(run, "classification")
    check_steps(run, 2)


@pytest.mark.slow
def test_an_enhancement_leaves_what_the_page_tells(clinseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    place = np.indices((18, 18, 18))
    for number in range(6):
        values = 300 + 100 * np.sin(place[0] / 3 + number) + 20 * place[2]
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([1, 1.5, 2, 1]))
        nib.save(image, tmp_path / f"images/p{number}.nii.gz")
    run = train(clinseg, "enhancement.yaml", **{"data.manifest": "images", "training.epochs": 2})
    check(run, "enhancement")
    check_steps(run, 2)


@pytest.mark.slow
def test_a_cross_validation_leaves_what_the_page_tells(trained, tmp_path, clinseg_in):
    settings = [
        "data.num_folds=2",
        "training.epochs=1",
        "training.steps_per_epoch=2",
        "network.features=[4,8]",
    ]
    settings += [f"data.manifest={trained.manifest}", f"data.cache_dir={trained.folder / 'cache'}"]
    options = [f"--set={setting}" for setting in settings]
    clinseg_in(tmp_path, "train", ROOT / "configs/smoke/hippocampus.yaml", "--fold", "all", *options)
    runs = sorted(Path(tmp_path / "mlruns/runs").iterdir(), key=lambda run: len(run.name))
    for run in runs:
        for section in SECTIONS:
            table = list(told(section))
            unknown = {n for n in names(run, section) if not any(row[0].fullmatch(n) for row in table)}
            assert unknown == set()
    assert {"folds/dice/mean", "best_low/dice/mean", "components_before/dice/core"} <= names(
        runs[0], "metrics"
    )
    contexts = [e["values"]["context"] for e in events(runs[0]) if e["kind"] == "dataset"]
    assert contexts == ["cross-validation"]


@pytest.mark.slow
def test_a_sweep_leaves_what_the_page_tells_with_its_trials_in_its_note(
    clinseg, trained, tmp_path, monkeypatch
):
    (tmp_path / "mlruns").mkdir()
    shutil.copy(trained.folder / "mlruns/mlflow.db", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    settings = {
        "data.manifest": trained.manifest,
        "data.cache_dir": trained.folder / "cache",
        "training.epochs": 2,
        "training.steps_per_epoch": 3,
        "network.features": "[4, 8]",
        "tracking.overlays": 0,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    grid = ("--set-grid", "training.learning_rate=0.00001,0.02")
    answer = clinseg("sweep", ROOT / "configs/smoke/hippocampus.yaml", *grid, *options)
    assert answer.code == 0, answer.err
    parent, *trials = sorted(Path("mlruns/runs").iterdir(), key=lambda run: (len(run.name), run.name))
    assert [trial.name for trial in trials] == [f"{parent.name}-trial{number}" for number in range(2)]
    for section in SECTIONS:
        table, real = list(told(section)), names(parent, section)
        assert {n for n in real if not any(row[0].fullmatch(n) for row in table)} == set()
        wanted = [pattern for pattern, _, when in table if when == "sweep"]
        assert wanted and [p.pattern for p in wanted if not any(p.fullmatch(n) for n in real)] == []
    for trial in trials:
        check(trial, "segmentation")

    tags = {k: v for e in events(parent) if e["kind"] == "tags" for k, v in e["values"].items()}
    winner = tags["clinseg.winner"]
    scores = [e["values"]["trials/dice/mean"] for e in events(parent) if "trials/dice/mean" in e["values"]]
    assert winner == trials[scores.index(max(scores))].name
    note = tags["mlflow.note.content"]
    best, other = (note.index(f"| trial{n} |") for n in sorted(range(2), key=lambda n: -scores[n]))
    assert best < other and f"| {max(scores):.4f} |" in note and "looks better than it is" in note
    page = (parent / "report.html").read_text()
    assert "<h2>Trials</h2>" in page and "trial1" in page and "data:image/png" in page
    # A sweep's model is that of its winner.
    assert clinseg("card", "latest", "-o", "card.md").code == 0
    assert winner in Path("card.md").read_text()
    assert clinseg("register", "latest", "swept").code == 0
    assert winner in clinseg("models").out.replace("\n", "")
