"""`clinseg evaluate`: predictions against references."""

from __future__ import annotations

from pathlib import Path

from pipeline.inference.evaluation import Evaluation, evaluate_folders, write_metrics
from pipeline.progress import progress_bar


def evaluate(predictions: Path, references: Path, table: Path | None = None) -> Evaluation:
    """Compares label maps case by case and writes the table if a path for it is given.

    Raises:
        FaultError: If nothing can be compared at all.
    """
    num_cases = len(list(predictions.glob("*.nii*"))) if predictions.is_dir() else 1
    with progress_bar("Comparing cases", num_cases) as advance:
        evaluation = evaluate_folders(predictions, references, None, lambda *_: advance())
    if table is not None:
        write_metrics(table, evaluation.rows)
    return evaluation
