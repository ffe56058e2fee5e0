"""`clinseg compare`: whether one run is better than another, where, and whether the difference is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.comparison import Comparison, remarks
from pipeline.errors import ConfigError, Fault
from pipeline.files import check_output
from pipeline.report.comparison import write_comparison
from pipeline.workflows.comparisons.classification import read_classifications
from pipeline.workflows.comparisons.contenders import (
    AbstractAnswers,
    Contender,
    check_comparable,
    differing_settings,
    find_contenders,
    group,
    tell_doubts,
)
from pipeline.workflows.comparisons.enhancement import read_enhancements
from pipeline.workflows.comparisons.segmentation import read_segmentations

READERS: Mapping[str, Callable[[Sequence[Contender]], AbstractAnswers]] = {
    "segmentation": read_segmentations,
    "classification": read_classifications,
    "enhancement": read_enhancements,
}
"""What reads a task's answers."""


def compare(names: Sequence[str], page: Path | None = None) -> Comparison:
    """Compares runs on their common validation cases, and writes a page of it if a path for it is given.

    Args:
        names: Runs, the first being what the others are compared with.
        page: HTML file to write.

    Raises:
        FaultError: If runs are unknown, or did not answer the same cases; all faults together.
    """
    if page is not None:
        check_output(page)
    contenders = find_contenders(names)
    answers = _read_answers(contenders)
    check_comparable(contenders, answers.truths)
    arms = group(contenders)
    outcome = answers.compare(arms)
    num_cases = len(answers.truths[contenders[0].name])
    comparison = Comparison(
        arms,
        num_cases,
        differing_settings(contenders, arms),
        outcome,
        (*remarks(arms, num_cases), *tell_doubts(contenders), *outcome.left_out),
    )
    if page is not None:
        with TemporaryDirectory() as folder:
            charts, views = answers.draw(Path(folder), arms, outcome.changes)
            write_comparison(page, comparison, charts, views)
    return comparison


def _read_answers(contenders: Sequence[Contender]) -> AbstractAnswers:
    task = contenders[0].run.task
    if task not in READERS:
        message = f"runs of {task} cannot be compared, those of {', '.join(READERS)} can"
        raise ConfigError(Fault(contenders[0].name, "task", message))
    return READERS[task](contenders)
