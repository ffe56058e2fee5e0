"""What every run tells in a report, judged or not: curves and charts, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pipeline.checkpoint import Checkpoint
from pipeline.report.content import Picture
from pipeline.report.figures import draw_curves
from pipeline.tracking import RunFolder, RunSummary, read_metrics
from pipeline.workflows.reports.material import Entry, version_facts, work_facts

_CHARTS: Final = {
    "discrimination.png": "How well the classes are told apart on the validation cases.",
    "overlays/enhanced.png": "Cases from worst to best SSIM: what went in, what came out, the truth.",
    "calibration.png": "Whether probabilities come true, and what review gains, on the validation cases.",
}
_OF_PARTS: Final = ("/mean", "/loss", "/auc", "/ssim")
"""What is drawn of each of several runs; all would be too many lines."""


def run_charts(run: RunFolder, parts: Sequence[RunFolder]) -> list[Picture]:
    """Curves of a run and of its parts over each other, and what else was drawn of the run.

    Args:
        run: The run.
        parts: Those of whom curves are drawn, itself and its parts.
    """
    series = {
        f"{part.name.removeprefix(run.name).strip('-')} {name}".strip(): points
        for part in parts
        for name, points in read_metrics(part).items()
        if name.startswith(("training/", "validation/")) and (len(parts) == 1 or name.endswith(_OF_PARTS))
    }
    charts = []
    if any(len(points) > 1 for points in series.values()):
        with TemporaryDirectory() as folder:
            draw_curves(Path(folder) / "curves.png", series, "")
            png = (Path(folder) / "curves.png").read_bytes()
        charts.append(Picture("Training: losses, and metrics of the validation cases.", png, is_chart=True))
    for name, caption in _CHARTS.items():
        if (run.path / name).is_file():
            charts.append(Picture(caption, (run.path / name).read_bytes(), is_chart=True))
    return charts


def run_facts(
    run: RunFolder,
    settings: Mapping[str, str],
    summary: RunSummary,
    checkpoint: Checkpoint | None,
    entries: Mapping[str, Entry],
) -> dict[str, dict[str, str]]:
    """Where a run comes from, as names and values by heading.

    Args:
        run: The run.
        settings: Its parameters and tags.
        summary: What it has come to.
        checkpoint: That it is judged by; None if it has none.
        entries: What `report.json` says of each case.
    """
    manifest = Path(settings.get("data.manifest", ""))
    data = {
        "Manifest": "/".join(manifest.parts[-2:]),  # the rest is about this disk
        "Training cases": settings.get("clinseg.num_training_cases"),
        "Validation cases": settings.get("clinseg.num_validation_cases"),
        "Fold": settings.get("clinseg.fold"),
        "Image channels": ", ".join(checkpoint.channels) if checkpoint else None,
        "Content, SHA-256": settings.get("clinseg.data_hash"),
    }
    provenance = checkpoint.provenance if checkpoint else {}
    model = {
        "Task": run.task,
        "Network": settings.get("network.name"),
        "Kept from epoch": str(provenance["epoch"]) if provenance.get("epoch") is not None else None,
        "Networks": str(len(checkpoint.members)) if checkpoint and checkpoint.members else None,
        "SHA-256": checkpoint.content_hash if checkpoint else None,
    }
    work = {
        "Experiment": run.experiment,
        "Began": f"{summary.started:%Y-%m-%d %H:%M %Z}",
        "Worked": f"{summary.minutes:.1f} minutes",
        "Device": settings.get("clinseg.device"),
        "Learned in": settings.get("clinseg.precision"),
        **_speed_facts(run),
        **work_facts(entries),
    }
    environment = {
        name.removeprefix("environment."): value
        for name, value in settings.items()
        if name.startswith("environment.")
    }
    code = {"Code": settings.get("mlflow.source.git.commit"), **version_facts(environment)}
    groups = {"Data": data, "Model": model, "Work": work, "Made with": code}
    return {
        heading: {name: value for name, value in facts.items() if value}
        for heading, facts in groups.items()
        if any(facts.values())
    }


def _speed_facts(run: RunFolder) -> dict[str, str]:
    metrics = read_metrics(run)
    facts = {}
    if epochs := [value for _, value in metrics.get("training/epoch_seconds", ())]:
        facts["Epochs"] = f"{len(epochs)}, {sorted(epochs)[len(epochs) // 2]:.1f} s each in the median"
    if memory := [value for _, value in metrics.get("system/process_memory_megabytes", ())]:
        facts["Memory, highest seen"] = f"{max(memory):.0f} MB"
    return facts
