"""What a run or a folder holds that a report can tell of; the same of both, whatever they lack."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.cases import Case
from pipeline.errors import Fault, InputError
from pipeline.inference.confusion import Confusion
from pipeline.inference.metric_table import CaseMetrics
from pipeline.memory import parse_size
from pipeline.report.content import Figure, Picture, Table
from pipeline.terminology import fill_colours
from pipeline.tracking import RunFolder

Entry = Mapping[str, Any]
_PEAK = re.compile(r"peak ([\d.]+ \w+)$")
_FOLDERS = re.compile(r"(?:[^\s:;,'\"()]*/)+(?=[^\s/])")


@dataclass(frozen=True)
class Labels:
    """What values of label maps mean.

    Attributes:
        names: Name → value, background included.
        structures: What is measured, as unions of values.
        ignore_value: What references hold where nobody knows.
        colours: `#rrggbb` by value; of some values or none.
    """

    names: Mapping[str, int] = field(default_factory=dict)
    structures: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ignore_value: int | None = None
    colours: Mapping[int, str] = field(default_factory=dict)

    @property
    def by_structure(self) -> dict[str, str]:
        """A colour for each structure, by name."""
        firsts = {name: values[0] for name, values in self.structures.items() if values}
        colours = fill_colours(self.colours.get(value) for value in firsts.values())
        return dict(zip(firsts, colours, strict=True))


@dataclass(frozen=True)
class ReportMaterial:
    """See the module.

    Attributes:
        title: Name of the run or folder.
        lead: What it is, in a sentence.
        labels: Of label maps.
        rows: Metrics of segmented cases.
        confusions: Which structure was taken for which, in each case.
        entries: What `report.json` says of each case.
        masks: Predictions by case.
        cases: Images, and references as `label`, by case, where they are at hand.
        overlays: Pictures of cases that were drawn before.
        figures: Headlines, if they do not come from `rows`.
        table: Of cases, if it does not come from `rows` and `entries`.
        tables: What else there is in tables.
        charts: Curves, calibration and the like.
        pictures: Of single cases, where there are no masks.
        facts: Names and values by heading.
        remarks: Faults and warnings, and what is lacking.
    """

    title: str
    lead: str
    labels: Labels = field(default_factory=Labels)
    rows: Sequence[CaseMetrics] = ()
    confusions: Sequence[Confusion] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    masks: Mapping[str, Path] = field(default_factory=dict)
    cases: Mapping[str, Case] = field(default_factory=dict)
    overlays: Mapping[str, Path] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    table: Table | None = None
    tables: Sequence[Table] = ()
    charts: Sequence[Picture] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def read_prediction_report(path: Path) -> dict[str, Any]:
    """The `report.json` of a prediction.

    Raises:
        InputError: If it cannot be understood.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for entry in content["cases"]:
            entry["case"], entry["faults"], entry["warnings"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        message = "a report.json as `clinseg predict` writes it was expected, but it cannot be understood"
        raise InputError(Fault(str(path), "report-unreadable", message)) from error
    return content


def entries_of(content: Mapping[str, Any]) -> dict[str, Entry]:
    """What a `report.json` says of each case."""
    return {str(entry["case"]): entry for entry in content["cases"]}


def case_remarks(entries: Mapping[str, Entry]) -> list[str]:
    """Faults and warnings of cases, the refused ones first."""
    told = [
        (kind, case, text)
        for kind in ("faults", "warnings")
        for case, entry in entries.items()
        for text in map(str, entry[kind])
    ]
    return [
        f"{case}, {'refused' if kind == 'faults' else 'warning'}: {without_folders(text)}"
        for kind, case, text in told
    ]


def without_folders(text: str) -> str:
    """What is told of a case, with only the last part of paths: pages travel, and folders may be names."""
    return _FOLDERS.sub("", text)


def work_facts(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Time and memory of a prediction."""
    seconds = [float(entry["seconds"]) for entry in entries.values() if entry.get("seconds")]
    peaks = [match[1] for e in entries.values() if (match := _PEAK.search(str(e.get("plan") or "")))]
    facts = {}
    if seconds:
        facts["Prediction"] = (
            f"{sum(seconds):.1f} s for {len(seconds)} cases, median {statistics.median(seconds):.2f} s, "
            f"longest {max(seconds):.2f} s"
        )
    if peaks:
        facts["Memory, highest plan"] = max(peaks, key=parse_size)
    return facts


def version_facts(environment: Mapping[str, str]) -> dict[str, str]:
    """Versions in one line, and the machine."""
    libraries = [f"{name} {environment[name]}" for name in environment if name not in ("platform", "cpus")]
    facts = {"Versions": ", ".join(libraries)} if libraries else {}
    if "platform" in environment:
        facts["Machine"] = f"{environment['platform']}, {environment.get('cpus', '?')} CPUs"
    return facts


def existing_masks(folder: Path, entries: Mapping[str, Entry]) -> dict[str, Path]:
    """The masks of a folder that its report tells of."""
    return {
        case: folder / str(entry["mask"])
        for case, entry in entries.items()
        if entry.get("mask") and (folder / str(entry["mask"])).is_file()
    }


def drawn_cases(runs: Sequence[RunFolder]) -> dict[str, Path]:
    """The pictures of cases that judging drew, as `001-of-042-<case>.png`."""
    return {
        path.stem.split("-", 3)[3]: path
        for run in runs
        for path in sorted((run.path / "overlays").glob("*-of-*-*.png"))
        if path.stem.count("-") >= 3
    }
