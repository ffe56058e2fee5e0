"""What a model card says of results: figures on held-out cases, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pipeline.checkpoint import Checkpoint
from pipeline.inference.metric_table import read_table, summarise_structures
from pipeline.statistics import interval_text
from pipeline.tracking import RunFolder, read_children
from pipeline.workflows.papers.markdown import table
from pipeline.workflows.reports.runs import downstream_remarks
from pipeline.workflows.runs.recording import read_estimates
from pipeline.workflows.tasks.enhancement_judging import count_judged
from pipeline.workflows.tasks.segmentation_judging import TABLE
from pipeline.workflows.tasks.subgroups import GROUP_NOTE, judge_subgroups

_METRICS: Final = ("dice", "nsd", "hd95_mm", "sensitivity", "precision")
_MOST_FIGURES: Final = 200
_WARNING: Final = "Warning: "


def tell_results(checkpoint: Checkpoint, run: RunFolder | None) -> Iterator[str]:
    """The part of a card about results.

    Args:
        checkpoint: The model.
        run: Its run, where it is on this disk.
    """
    yield from ("", "## Results", "")
    rows = _figures(checkpoint, run) if run is not None else []
    if rows:
        grids = "" if checkpoint.job.get("task") == "classification" else ", on the patients' own grids"
        yield f"On the held-out cases of the same study{grids}; 95 % intervals."
        if checkpoint.members:
            yield "Each case was answered by the network that did not see it; their mean has seen all."
        yield ""
        yield from table(("figure", "value", "interval", "cases"), rows[:_MOST_FIGURES])
        assert run is not None, "figures are those of a run"
        yield from _groups(run)
        yield from _downstream(run)
        return
    metrics = checkpoint.provenance.get("metrics") or {}
    if not metrics:
        yield _unknown(checkpoint, run)
        return
    why = "The run's record is not on this disk" if run is None else "The run has not judged its cases yet"
    which = (
        "all folds together"
        if checkpoint.members
        else "the moment when the network was kept: on its own grid"
    )
    yield f"{why}, so these are the figures of {which}, without intervals."
    yield ""
    yield from table(("figure", "value"), [(name, f"{value:.4g}") for name, value in metrics.items()])


def num_held_out(checkpoint: Checkpoint) -> int:
    """How many cases can judge a model; of an ensemble each network has those that it did not see."""
    made = (checkpoint.provenance, *(member.provenance for member in checkpoint.members))
    return len({case for one in made for case in one.get("validation_cases") or ()})


def _unknown(checkpoint: Checkpoint, run: RunFolder | None) -> str:
    """Why there is no figure."""
    if "imported" in checkpoint.provenance:
        return "Not judged here."
    if not num_held_out(checkpoint):
        return "Nothing was held out, so nothing is known."
    if run is None:
        return "The run's record is not on this disk; write the card beside it to have the figures here."
    return "The run has no figures: it has not judged its held-out cases, or no truth of them is known."


def _groups(run: RunFolder) -> Iterator[str]:
    """Figures of groups of patients, where the job names columns of its manifest."""
    rows = judge_subgroups(run, run.path / TABLE)
    if not rows:
        return
    yield from ("", "### In groups of patients", "")
    yield GROUP_NOTE
    yield ""
    yield from table(
        ("column", "group", "cases", "figure", "value", "interval"),
        [
            (column, group, num, figure, f"{e.value:.4g}", interval_text(e, ".4g"))
            if e is not None
            else (column, group, num, figure, "too few cases", "")
            for column, group, num, figure, e in rows
        ],
    )


def _downstream(run: RunFolder) -> Iterator[str]:
    """What a segmentation finds in what an enhancer makes, warnings first of all."""
    told = downstream_remarks([run, *read_children(run)])
    if told:
        yield from ("", "### What is measured on its images", "")
        yield from (
            f"- {'**Warning:** ' if t.startswith(_WARNING) else ''}{t.removeprefix(_WARNING)}" for t in told
        )


def _figures(checkpoint: Checkpoint, run: RunFolder) -> list[tuple[str, str, str, str]]:
    """Each figure with its interval and the number of cases; of segmentations per structure."""
    if checkpoint.job.get("task") == "segmentation" and (run.path / TABLE).is_file():
        summaries = summarise_structures(read_table(run.path / TABLE), _METRICS)
        return [
            (f"{metric}, {name}", f"{s.mean:.4g}", interval_text(s, ".4g"), str(s.num))
            for name, metrics in summaries.items()
            for metric, s in metrics.items()
        ]
    is_enhancer = checkpoint.job.get("task") == "enhancement"  # of some cases no truth may be known
    num = str(count_judged([run, *read_children(run)]) if is_enhancer else num_held_out(checkpoint))
    return [(name, f"{e.value:.4g}", interval_text(e, ".4g"), num) for name, e in read_estimates(run).items()]
