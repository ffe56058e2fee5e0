"""What the reports of applied models have in common, and which of their cases are finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import TypeAdapter

from pipeline import __version__
from pipeline.checkpoint import Checkpoint
from pipeline.data.cases import Case, exists
from pipeline.data.medmnist import split_part
from pipeline.environment import environment
from pipeline.errors import ConfigError, Fault, FaultError, InputError
from pipeline.export.exporters import export_path
from pipeline.export.prediction import Maker
from pipeline.files import check_writable, sha256_of
from pipeline.inference.cohort import CaseReport, hash_inputs
from pipeline.inference.predictor import select_device
from pipeline.memory import parse_size
from pipeline.workflows.runs.models import load_model


class Report(Protocol):
    """What every case's report tells."""

    @property
    def case(self) -> str:
        """Its id."""

    @property
    def input_hashes(self) -> tuple[str, ...]:
        """SHA-256 of each input file."""


_Report = TypeVar("_Report", bound=Report)
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Means:
    """With what a model is applied.

    Attributes:
        checkpoint: The model.
        device: Where to compute.
        max_memory: Bytes that it may take; None for what is free.
    """

    checkpoint: Checkpoint
    device: torch.device
    max_memory: int | None


def find_means(
    model: str, device: str, max_memory: str | None, inputs: Iterable[Path], folder: Path
) -> Means:
    """Looks at all that is given by hand and does not depend on one another.

    Args:
        model: Any of its names.
        device: `auto`, `cpu` or `cuda`.
        max_memory: A size; None for what is free.
        inputs: Files and folders that have to be there.
        folder: Where results go; nothing is made yet.

    Raises:
        FaultError: With all that is wrong, of the kind of the first.
    """
    errors: list[FaultError] = []

    def attempt(call: Callable[[], _Found]) -> _Found | None:
        try:
            return call()
        except FaultError as error:
            errors.append(error)
            return None

    limit = attempt(lambda: parse_size(max_memory) if max_memory is not None else None)
    checkpoint = attempt(lambda: load_model(model))
    place = attempt(lambda: select_device(device))
    message = "no such file or folder; check the path"
    missing = [
        Fault(str(path), "missing-file", message) for path in inputs if not exists(split_part(path)[0])
    ]
    if missing:
        errors.append(InputError(missing))
    if exists(folder) and not folder.is_dir():
        attempt(lambda: check_writable(folder))
    if errors or checkpoint is None or place is None:
        raise type(errors[0])(fault for error in errors for fault in error.faults)
    return Means(checkpoint, place, limit)


def describe_model(checkpoint: Checkpoint, device: torch.device) -> dict[str, object]:
    """By what, and where, something was made."""
    config = json.dumps(checkpoint.job, sort_keys=True).encode()
    return {
        "model_sha256": checkpoint.content_hash,
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "run": checkpoint.provenance.get("run"),
        "device": str(device),
        "environment": environment(),
    }


def describe_maker(checkpoint: Checkpoint, kind: str) -> Maker:
    """The same in what DICOM objects say; a model without a run is called what kind of thing it is."""
    name = str(checkpoint.provenance.get("run") or kind)
    return Maker(name, checkpoint.content_hash or "", __version__)


def export_hashes(case: str, exports: Mapping[str, str] | None) -> dict[str, str]:
    """SHA-256 of a case's DICOM objects, by their names in the folder of results.

    Args:
        case: Its id.
        exports: The hashes by form; None if there are no objects.
    """
    return {str(export_path(Path(), form, case)): known for form, known in (exports or {}).items()}


def mask_hashes(report: CaseReport) -> dict[str, str]:
    """The same of all that a segmentation wrote of a case: the mask, where there is one, and objects."""
    mask = {report.mask: report.mask_hash or ""} if report.mask else {}
    return mask | export_hashes(report.case, report.exports)


def find_finished(
    path: Path,
    expected: Mapping[str, object],
    cases: Sequence[Case],
    parse: Callable[[Mapping[str, Any]], _Report | None],
    files_of: Callable[[_Report], Mapping[str, str]],
) -> dict[str, _Report]:
    """Reports of the cases that were made in the same way of the same files, and still are what was written.

    Args:
        path: The report of the time before.
        expected: What it must say; otherwise nothing is finished.
        cases: To be made now.
        parse: The report of a case that was made, or None.
        files_of: SHA-256 of each of its files, by path in the folder.

    Raises:
        ConfigError: If the report cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if any(content[name] != value for name, value in expected.items()):
            return {}
        told = {entry["case"]: parse(entry) for entry in content["cases"]}
    except (LookupError, TypeError, ValueError, OSError) as error:
        message = "this report cannot be read, so nothing can be resumed; leave --resume out to start anew"
        raise ConfigError(Fault(str(path), "report-unreadable", message)) from error
    finished = {}
    for case in cases:
        report = told.get(case.id)
        if report is not None and _is_finished(report, files_of(report), case, path.parent):
            finished[case.id] = report
    return finished


def parse_report(kind: type[_Report], entry: Mapping[str, Any]) -> _Report:
    """A report of the class `kind`, a dataclass without faults, as `asdict` and JSON left it.

    Raises:
        LookupError: If a field is missing.
        ValueError: If one holds what it cannot.
    """
    content = {field.name: entry[field.name] for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass, to the caller
    return TypeAdapter(kind).validate_python(content)


def _is_finished(report: Report, files: Mapping[str, str], case: Case, folder: Path) -> bool:
    try:
        is_same = all(
            (folder / name).is_file() and sha256_of(folder / name) == known for name, known in files.items()
        )
        return is_same and hash_inputs(case) == report.input_hashes
    except (OSError, FaultError):
        return False  # what cannot be read now is told when it is made
