"""`clinseg report`: one HTML file about a run or a folder of predictions, which opens offline."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pipeline.data.cases import Case
from pipeline.data.images import find_inputs
from pipeline.data.nifti import is_nifti, nifti_stem
from pipeline.errors import Fault, InputError
from pipeline.files import check_output
from pipeline.progress import progress_bar
from pipeline.report.case_tables import case_table, confusion_table, segmentation_figures, structure_strips
from pipeline.report.content import Report, View
from pipeline.report.report_page import write_report
from pipeline.tracking import Record, RunFolder, find_run
from pipeline.workflows.evaluation import evaluate
from pipeline.workflows.reports.folders import read_folder
from pipeline.workflows.reports.material import ReportMaterial
from pipeline.workflows.reports.noting import set_note
from pipeline.workflows.reports.runs import read_run
from pipeline.workflows.reports.sweeps import read_sweep
from pipeline.workflows.reports.views import choose_cases, read_views
from pipeline.workflows.runs.resuming import SWEEP

NAME: Final = "report.html"
_PATIENCE_S: Final = 60.0


def report(
    source: str,
    output: Path | None = None,
    cases: Sequence[str] = (),
    images: Sequence[Path] = (),
    references: Path | None = None,
) -> Path:
    """Writes the page of a run, or of a folder that `clinseg predict` or `evaluate` wrote.

    Args:
        source: A folder, or a run by name, MLflow id or `latest`.
        output: Where to write; None takes `report.html` in the folder of the run or the predictions.
        cases: Ids of the cases to look at; empty takes the worst, the median and the best.
        images: Where the images are, as `clinseg predict` takes them; a run knows those of its own data.
        references: Folder of reference label maps, with which a folder of predictions is compared; a run is
            judged already, and only shown with them.

    Returns:
        The page.

    Raises:
        FaultError: If there is no such run, folder or case, or no place to write.
    """
    folder = Path(source)
    is_run = not folder.is_dir() or (folder / "run.json").is_file()
    name = _absolute(folder).name if folder.is_dir() else source
    run = find_run(name, *_store_of(folder)) if is_run else None
    path = output or (run.path if run is not None else folder) / NAME
    check_output(path)
    material = _read(run) if run is not None else read_folder(folder)
    if images:
        material = _with_images(material, images)
    if references is not None:
        material = _with_references(material, references)
        material = material if run is not None else _compared(material, folder, references)
    _write(path, material, cases)
    return path


def keep_report(record: Record) -> None:
    """Makes page and note of a run that has ended well and records them; no failure reaches the training.

    Cases that are not read within a minute are left out of the page.
    """
    try:
        path = record.folder / NAME
        page = _write(path, _read(record.run), (), time.monotonic() + _PATIENCE_S)
        record.log_artifact(path)
        set_note(record, page, NAME)
    except Exception as error:  # whatever it is: the training is done, and its results count
        record.set_tags({"clinseg.report": f"not made: {type(error).__name__}: {error}"[:400]})


def _read(run: RunFolder) -> ReportMaterial:
    return read_sweep(run) if (run.path / SWEEP).is_file() else read_run(run)


def _store_of(folder: Path) -> tuple[Path, ...]:
    return (_absolute(folder).parent.parent,) if folder.is_dir() else ()


def _absolute(folder: Path) -> Path:
    """Its place by name: where `runs` is a link to another disk, the store is not beside what it leads to."""
    return Path(os.path.abspath(folder))  # noqa: PTH100 - pathlib either follows links or keeps `..`


def _write(path: Path, material: ReportMaterial, cases: Sequence[str], end: float = float("inf")) -> Report:
    remarks = list(material.remarks)
    chosen = choose_cases(material, cases)
    views: list[View] = []
    with progress_bar("Reading cases for the report", len(chosen)) as advance:
        for view in read_views(material, chosen, remarks):
            views.append(view)
            advance()
            if time.monotonic() > end:
                remarks.append("Reading cases took long, so fewer are shown; `clinseg report` shows all.")
                break
    confused = confusion_table(material.confusions, {row.structure for row in material.rows})
    page = Report(
        title=material.title,
        lead=material.lead,
        figures=[*segmentation_figures(material.rows), *material.figures],
        strips=structure_strips(material.rows, material.labels.by_structure),
        cases=material.table or case_table(material.rows, material.entries),
        tables=[table for table in (*material.tables, confused) if table is not None],
        views=views,
        charts=material.charts,
        pictures=material.pictures,
        facts=material.facts,
        remarks=remarks,
    )
    write_report(path, page)
    return page


def _with_images(material: ReportMaterial, images: Sequence[Path]) -> ReportMaterial:
    return replace(material, cases={case.id: case for case in find_inputs(images, 1)})


def _with_references(material: ReportMaterial, references: Path) -> ReportMaterial:
    """The same with label maps of that folder; those that are not there stay the ones that are known."""
    if not references.is_dir():
        message = "there is no such folder; name one with label maps called as the predictions are"
        raise InputError(Fault(str(references), "missing-file", message))
    labels = {nifti_stem(path): path for path in sorted(references.glob("*")) if is_nifti(path)}
    if not labels.keys() & material.masks.keys():
        message = "it holds no label map that is called as one of the predictions is; check the folder"
        raise InputError(Fault(str(references), "reference-missing", message))
    known = {case: material.cases.get(case, Case(case, case, ())) for case in material.masks}
    cases = {case: replace(found, label=labels.get(case, found.label)) for case, found in known.items()}
    return replace(material, cases=cases)


def _compared(material: ReportMaterial, folder: Path, references: Path) -> ReportMaterial:
    """The same with figures of these very masks, whatever tables of the folder say."""
    evaluation = evaluate(folder, references)
    told = [str(fault) for fault in (*evaluation.faults, *evaluation.warnings)]
    return replace(
        material,
        lead=material.lead.replace("not compared with any reference", "compared with references"),
        rows=evaluation.rows,
        confusions=evaluation.confusions,
        figures=(),
        remarks=[*material.remarks, *told],
    )
