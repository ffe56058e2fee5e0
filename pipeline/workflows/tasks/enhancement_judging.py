"""A trained enhancer on the validation cases: applied as to any image, then held against the truth."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from pipeline.checkpoint import read_checkpoint
from pipeline.config import EnhancementJob
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.corrupting import corrupt
from pipeline.data.enhancement_study import find_truths
from pipeline.data.images import read_image
from pipeline.errors import InputError
from pipeline.export.nifti import write_image
from pipeline.files import atomic_path
from pipeline.image_metrics import IMAGE_METRICS
from pipeline.inference.downstream import ENHANCED as AFTER
from pipeline.inference.downstream import ORIGINAL
from pipeline.inference.enhancer import load_enhancer
from pipeline.inference.enhancing import EnhancementReport, enhance_cohort, output_names
from pipeline.inference.grids import on_grid
from pipeline.labels import MEAN
from pipeline.progress import progress_bar
from pipeline.report.enhancement import draw_sheet
from pipeline.report.figures import draw_curves
from pipeline.statistics import Estimate, summarise
from pipeline.tracking import Record, RunFolder, read_metrics
from pipeline.workflows import downstream
from pipeline.workflows.downstream import find_segmenter, measure_downstream
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import kept_epoch, record_best
from pipeline.workflows.tasks.enhancement_material import EnhancementMaterial

INPUTS, ENHANCED = Path("validation/inputs"), Path("validation/enhanced")
TABLE = Path("cases.csv")
"""What validation cases looked like, what was made of them, and figures per case, in a run's folder."""


def judge_enhancer(
    record: Record, job: EnhancementJob, material: EnhancementMaterial, device: torch.device
) -> dict[str, Estimate]:
    """Enhances, compares, draws and records the validation cases with the kept checkpoint.

    This is the path of `clinseg enhance --truth`, so its numbers are that one's; what cannot be compared is
    left out of them and stands in the table with the reason.

    Returns:
        Means of PSNR and SSIM, before and after, over the cases whose truth is known, and of the Dice of what
        `inference.downstream` finds in them; none if there is none.
    """
    folder = record.folder
    record.log_artifact(folder / BEST, "model")
    draw_curves(folder / "curves.png", read_metrics(record.run), record.name)
    record.log_artifact(folder / "curves.png")
    if not material.split.validation:
        return {}
    cases = [_write_source(case, job, material, folder) for case in material.split.validation]
    truths = find_truths(material.study, job.data)
    checkpoint = read_checkpoint(folder / BEST)
    enhancer = load_enhancer(checkpoint, device)
    with progress_bar("Enhancing validation cases", len(cases)) as advance:
        reports = enhance_cohort(
            enhancer,
            cases,
            folder / ENHANCED,
            model=str(checkpoint.content_hash),
            truths=truths,
            on_case=lambda report: advance(),
        )
    if faults := [fault for report in reports if report.files is None for fault in report.faults]:
        raise InputError(faults)
    figures = _write_table(folder / TABLE, reports)
    record.log_artifact(folder / TABLE)
    _draw_cases(record, job.tracking.overlays, cases, reports, truths)
    if job.inference.downstream is not None:
        figures |= _judge_downstream(record, job, cases, truths, device)
    record_best(record, figures, kept_epoch(record, checkpoint))
    return figures


def _judge_downstream(
    record: Record, job: EnhancementJob, cases: Sequence[Case], truths: dict[str, Case], device: torch.device
) -> dict[str, Estimate]:
    """Mean Dice of a segmentation before and after, of the cases whose truth is known."""
    segmenter = find_segmenter("inference.downstream", str(job.inference.downstream), job.tracking.uri)
    folder = record.folder / ENHANCED
    made = [
        replace(case, images=tuple(folder / name for name in output_names(case.id, num)[:num]))
        for case in cases
        if (num := len(case.images)) and case.id in truths
    ]
    result = measure_downstream(segmenter, made, truths, folder, device)
    for name in downstream.TABLE, downstream.REPORT:
        record.log_artifact(folder / name)
    if not result.effects:
        return {}
    images = result.effects[MEAN]["dice"].images
    moments = {"before": images[ORIGINAL], "after": images[AFTER]}
    return {
        f"downstream_dice_{moment}": Estimate(found.mean, found.low, found.high)
        for moment, found in moments.items()
    }


def gather_figures(runs: Sequence[RunFolder]) -> dict[str, Estimate]:
    """Means over all cases that runs judged, each by those that it was not trained on.

    A run that knew no truth has no such columns, whichever it is.
    """
    rows = _read_rows(runs)
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(IMAGE_METRICS))
    found = {name: [float(row[name]) for row in rows if row.get(name)] for name in names}
    return {name: summarise(values).estimate for name, values in found.items() if values}


def gather_remarks(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """Why validation cases of runs are missing from their figures."""
    return tuple(row["remark"] for row in _read_rows(runs) if row.get("remark"))


def count_judged(runs: Sequence[RunFolder]) -> int:
    """How many of their cases runs hold against a truth."""
    return sum(
        any(row.get(name) for name in row if name.startswith(IMAGE_METRICS)) for row in _read_rows(runs)
    )


def _read_rows(runs: Sequence[RunFolder]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for run in runs:
        if (run.path / TABLE).is_file():
            with (run.path / TABLE).open(encoding="utf-8", newline="") as file:
                rows += csv.DictReader(file)
    return rows


def _write_source(case: Case, job: EnhancementJob, material: EnhancementMaterial, folder: Path) -> Case:
    """The case as it is to be enhanced: where a corruption makes it, in files of its own."""
    if job.data.corruption is None:
        return case
    volumes = corrupt(read_case_images(case, len(material.channels)), job.data.corruption, case.id)
    stems = [case.id] if len(volumes) == 1 else [f"{case.id}_{k:04d}" for k in range(len(volumes))]
    paths = tuple(folder / INPUTS / f"{stem}.nii.gz" for stem in stems)
    for path, volume in zip(paths, volumes, strict=True):
        write_image(path, volume.array, volume.grid, {"corrupted_by": job.data.corruption.name})
    return replace(case, images=paths)


def _write_table(path: Path, reports: Sequence[EnhancementReport]) -> dict[str, Estimate]:
    """A line per case; empty where an image equals its truth, whose PSNR is infinite, or has no figures."""
    names = list(next((report.figures for report in reports if report.figures), {}))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", *names, "mean_change", "largest_change", "remark"])
        for report in reports:
            known = report.figures or {}
            shown = [*(known.get(name) for name in names), report.mean_change, report.largest_change]
            texts = ["" if value is None else f"{value:.6g}" for value in shown]
            writer.writerow([report.case, *texts, "; ".join(map(str, report.faults))])
    found = {
        name: [value for report in reports if (value := (report.figures or {}).get(name)) is not None]
        for name in names
    }
    return {name: summarise(values).estimate for name, values in found.items() if values}


def _draw_cases(
    record: Record,
    num: int,
    cases: Sequence[Case],
    reports: Sequence[EnhancementReport],
    truths: dict[str, Case],
) -> None:
    """Cases from worst to best SSIM at even steps: with three, the worst, the median and the best.

    What no truth judges is drawn only if none is judged.
    """
    found = [(report.figures or {}).get("ssim_after") for report in reports]
    judged = [place for place, value in enumerate(found) if value is not None] or range(len(reports))
    order = sorted(judged, key=lambda place: found[place] or 0.0)
    picked = sorted({round(p) for p in np.linspace(0, len(order) - 1, num)}) if num else []
    if not picked:
        return
    known = {report.case: truths[report.case] for report in reports if report.figures}
    rows = [_slices(cases[order[place]], record.folder, known) for place in picked]
    path = record.folder / "overlays" / "enhanced.png"
    named = ", ".join(cases[order[place]].id for place in picked)
    told = "From worst to best SSIM" if known else "Not judged"
    note = f"{told}: {named}. The middle axial slice. Change: red is brighter, blue darker."
    draw_sheet(path, rows, record.name, note)
    record.log_artifact(path, "overlays")


def _slices(case: Case, folder: Path, truths: dict[str, Case]) -> dict[str, NDArray[np.generic]]:
    """Middle axial slices of a case's first channel, upright, all on the grid of the enhanced image."""
    given = read_image(*case.sources[0])[0]
    stem = case.id if len(case.images) == 1 else f"{case.id}_0000"
    enhanced = read_image(folder / ENHANCED / f"{stem}.nii.gz")[0]
    before, after = on_grid(given, enhanced.grid), enhanced.array
    shown = {"input": before, "enhanced": after}
    if case.id in truths:
        truth = read_image(*truths[case.id].sources[0])[0]
        shown["truth"] = on_grid(truth, enhanced.grid)
    shown["change"] = np.subtract(after, before, dtype=np.float32)
    turn = io_orientation(enhanced.grid.affine)
    return {name: _middle(apply_orientation(array, turn)) for name, array in shown.items()}


def _middle(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Of an array in RAS order the axial slice, the patient's right on the left."""
    return array[:, :, array.shape[2] // 2].T[::-1, ::-1]
