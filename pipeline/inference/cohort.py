"""Many cases: each is checked, predicted and written, or refused; `relay` has them side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.cases import Case
from pipeline.data.checks import read_checked_case
from pipeline.data.dicom import series_frames
from pipeline.data.images import source_hash
from pipeline.errors import Fault
from pipeline.export.dicom_source import Source, read_source
from pipeline.export.exporters import export_path
from pipeline.export.nifti import write_label_map
from pipeline.export.prediction import Prediction
from pipeline.export.probabilities import write_probabilities
from pipeline.files import remove_files, sha256_of
from pipeline.inference.budget import Plan
from pipeline.inference.exporting import Exports, export, further_paths, probabilities_path
from pipeline.inference.labelling import LabelMap
from pipeline.inference.predictor import Predictor, check_preparing
from pipeline.inference.relay import Steps, relay
from pipeline.volume import Grid, measure_volumes
from transforms.preprocessing import Prepared


@dataclass(frozen=True, slots=True)
class CaseReport:
    """What became of one case.

    Attributes:
        case: Its id.
        mask: File name of the label map, or None if there is none.
        mask_hash: SHA-256 of that file.
        volumes_ml: Millilitres of each structure.
        seconds: Of work on it, from reading to the verified mask.
        num_windows: Windows that were blended, mirrored copies not counted.
        num_skipped: Of these, how many were empty and needed no forward pass.
        plan: How the volume was cut.
        exports: SHA-256 of the case in each further form, by the form's name.
        input_hashes: SHA-256 of each input file.
        warnings: What was odd about the input.
        faults: Why there is no mask, or one of its further forms.
    """

    case: str
    mask: str | None = None
    mask_hash: str | None = None
    volumes_ml: dict[str, float] | None = None
    seconds: float = 0.0
    num_windows: int = 0
    num_skipped: int = 0
    plan: str | None = None
    exports: dict[str, str] | None = None
    input_hashes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A case that was read and brought to the network's grid."""

    prepared: Prepared
    grid: Grid
    source: Source | None
    report: CaseReport


def predict_cohort(
    predictor: Predictor,
    cases: Sequence[Case],
    folder: Path,
    on_case: Callable[[CaseReport], None] = lambda report: None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
    *,
    with_probabilities: bool = False,
    exports: Exports | None = None,
) -> list[CaseReport]:
    """Predicts every case and writes `folder/<case>.nii.gz`.

    Under a memory budget a case is read only when the one before has left memory.

    Args:
        predictor: A trained network.
        cases: What to predict; a label of a case is not looked at.
        folder: Where masks go; made if it is not there.
        on_case: Is told each report as soon as its mask is on disk.
        on_plan: Is told each case's plan before its first window.
        with_probabilities: Whether to write `folder/probabilities/<case>.nii` as well.
        exports: Further forms of each mask, whose images have to be DICOM series then. Of forms and
            probabilities that are not asked for, those of the mask before are removed.

    Returns:
        One report per case, in their order; a refused case is one with faults.

    Raises:
        ResourceError: If a mask cannot be written; what was finished stays.
    """

    def write(predicted: _Predicted) -> CaseReport:
        case, forms = predicted.report.case, exports.forms if exports is not None else ()
        kept = {export_path(folder, form, case) for form in forms}
        kept |= {probabilities_path(folder, case)} if with_probabilities else set()
        remove_files(path for path in further_paths(folder, case) if path not in kept)
        return _write(predictor, predicted, folder, exports)

    steps = Steps[_Loaded, _Predicted, CaseReport](
        load=lambda case: _load(predictor, case, has_source=exports is not None),
        make=lambda loaded: _label(
            predictor,
            loaded,
            probabilities_path(folder, loaded.report.case) if with_probabilities else None,
            on_plan,
        ),
        write=write,
        refuse=lambda case, faults: CaseReport(case.id, faults=faults),
    )
    return relay(steps, cases, on_case, is_sequential=predictor.max_memory is not None)


@dataclass(frozen=True, eq=False)
class _Predicted:
    """A case whose mask is to be written."""

    label_map: LabelMap
    grid: Grid
    source: Source | None
    report: CaseReport


def _load(predictor: Predictor, case: Case, *, has_source: bool) -> _Loaded:
    start = time.monotonic()
    image_only = Case(case.id, case.patient, case.images, series=case.series)
    checked = read_checked_case(image_only, predictor.contract, predictor.num_channels)
    report = CaseReport(
        case=case.id,
        input_hashes=hash_inputs(case),
        warnings=tuple(str(warning) for warning in checked.warnings),
    )
    check_preparing(case.id, predictor.preparing_bytes(checked.images[0].grid), predictor.max_memory)
    grid = checked.images[0].grid
    source = None
    if has_source:
        frames = series_frames(*case.sources[0])
        source = read_source(case.id, list(frames), grid, frames)
    prepared = predictor.prepare(checked.images)
    return _Loaded(prepared, grid, source, replace(report, seconds=time.monotonic() - start))


def _label(
    predictor: Predictor,
    loaded: _Loaded,
    probabilities: Path | None,
    on_plan: Callable[[str, Plan], None],
) -> _Predicted:
    start, case = time.monotonic(), loaded.report.case

    def tell(plan: Plan) -> None:
        on_plan(case, plan)

    if probabilities is None:
        label_map = predictor.predict(loaded.prepared, loaded.grid, tell)
    else:
        with write_probabilities(probabilities, loaded.grid, predictor.contract.channel_names) as file:
            label_map = predictor.predict(loaded.prepared, loaded.grid, tell, file.put)
    report = replace(
        loaded.report,
        num_windows=label_map.plan.num_windows,
        num_skipped=label_map.num_skipped,
        plan=str(label_map.plan),
        seconds=loaded.report.seconds + time.monotonic() - start,
    )
    return _Predicted(label_map, loaded.grid, loaded.source, report)


def _write(predictor: Predictor, predicted: _Predicted, folder: Path, exports: Exports | None) -> CaseReport:
    start, report = time.monotonic(), predicted.report
    mask = folder / f"{report.case}.nii.gz"
    write_label_map(mask, predicted.label_map.array, predicted.grid, predictor.contract.labels)
    array, contract = predicted.label_map.array, predictor.contract
    exported: dict[str, str] | None = None
    faults: tuple[Fault, ...] = ()
    if exports is not None and predicted.source is not None:
        prediction = Prediction(array, predicted.grid, contract, predicted.source, exports.maker)
        exported, faults = export(report.case, prediction, folder, exports.forms)
    return replace(
        report,
        mask=mask.name,
        mask_hash=sha256_of(mask),
        volumes_ml=measure_volumes(array, predicted.grid, contract.structures),
        exports=exported,
        faults=faults,
        seconds=round(report.seconds + time.monotonic() - start, 3),
    )


def hash_inputs(case: Case) -> tuple[str, ...]:
    """SHA-256 of each image; of a series one of all its files, whatever they are called."""
    return tuple(source_hash(path, rule) for path, rule in case.sources)
