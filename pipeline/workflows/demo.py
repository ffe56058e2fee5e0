"""`clinseg demo`: the main job from nothing, on heads made from the MNI152 template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.data.images import read_image, read_label_map
from pipeline.data.synthetic import write_head_study
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.export.signature import read_label_names
from pipeline.inference.metric_table import CaseMetrics
from pipeline.progress import progress_bar
from pipeline.report.figures import draw_overlay
from pipeline.workflows.cross_validation import train_folds
from pipeline.workflows.evaluation import evaluate
from pipeline.workflows.prediction import predict
from pipeline.workflows.training import TrainingResult

_CONFIG = Path(pipeline.__file__).parents[1] / "configs" / "demo.yaml"
_NUM_TRAINING = 5
_NUM_HELD_OUT = 2
_SEED = 20


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        folder: Where it lies: `images`, `references`, `predictions`, `metrics.csv`, `overlays`.
        training: The run.
        rows: Metrics of the held-out heads.
    """

    folder: Path
    training: TrainingResult
    rows: list[CaseMetrics]


def demo(folder: Path) -> DemoResult:
    """Makes a labelled study, trains on it, predicts heads that were held out, compares and draws them.

    Raises:
        FaultError: If the folder cannot be written or the extra `demo` is not installed.
    """
    if not _CONFIG.is_file():
        message = "the demo runs from a checkout of the project; clone it and run `make demo`"
        raise ConfigError(Fault("demo", "no-checkout", message))
    with progress_bar("Making heads", _NUM_TRAINING + _NUM_HELD_OUT) as advance:
        manifest = write_head_study(
            folder, num_training=_NUM_TRAINING, num_held_out=_NUM_HELD_OUT, seed=_SEED, on_case=advance
        )
    training = train_folds(_CONFIG, [f"data.manifest={manifest}"])
    assert training is not None, "a demo is one process"
    reports = predict(training.run, [folder / "images"], folder / "predictions")
    faults = [fault for report in reports for fault in report.faults]
    if faults:
        raise InputError(faults)
    evaluation = evaluate(folder / "predictions", folder / "references", folder / "metrics.csv")
    _draw(folder)
    return DemoResult(folder, training, evaluation.rows)


def _draw(folder: Path) -> None:
    masks = sorted((folder / "predictions").glob("*.nii.gz"))
    with progress_bar("Drawing overlays", len(masks)) as advance:
        for mask in masks:
            case = mask.name.removesuffix(".nii.gz")
            draw_overlay(
                folder / "overlays" / f"{case}.png",
                image=read_image(folder / "images" / mask.name)[0],
                prediction=read_label_map(mask),
                reference=read_label_map(folder / "references" / mask.name),
                labels=read_label_names(mask) or {},
                title=case,
            )
            advance()
