"""What is refused before a model is applied to cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pipeline.data.cases import Case
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import is_series
from pipeline.errors import ConfigError, Fault
from pipeline.export.audit import NAME, logged_outputs
from pipeline.export.signature import is_ours
from pipeline.files import sha256_of


def refuse_unused_rules(cases: Iterable[Case], rules: Sequence[SeriesRule]) -> None:
    """Nothing that was asked for is passed over: rules for DICOM series need a DICOM input.

    Raises:
        ConfigError: If there are rules, and no image is DICOM.
    """
    if list(rules) == [SeriesRule()] or any(is_series(path) for case in cases for path in case.images):
        return
    option = "--series" if any(rule.pattern for rule in rules) else "--regularise"
    raise ConfigError(Fault(option, "no-dicom", "it is for DICOM, and no input is; leave it out"))


def refuse_without_series(cases: Sequence[Case]) -> None:
    """A DICOM object refers to the patient, the study and the slices that only a DICOM series has.

    Raises:
        ConfigError: With all cases that have none.
    """
    message = (
        "--also makes DICOM objects, which refer to a DICOM series; name its folder or DICOMDIR, or leave "
        "--also out"
    )
    if faults := [Fault(case.id, "not-dicom", message) for case in cases if not is_series(case.images[0])]:
        raise ConfigError(faults)


def refuse_overwriting(
    cases: Sequence[Case],
    outputs_of: Callable[[Case], Collection[Path]],
    what: str,
    folder: Path,
    truths: Iterable[Case] = (),
) -> None:
    """Nothing takes the place of what is read, nor of what people drew or corrected by hand.

    What an earlier command wrote there may be replaced: its log tells the hash, or, where it was killed
    before it could tell, the file itself says whose it is.

    Args:
        cases: What is read.
        outputs_of: Files to be written for a case.
        what: They are, in words.
        folder: That they and their log lie in.
        truths: What is read besides, after the outputs are written.

    Raises:
        ConfigError: With the cases whose files would be lost.
    """
    outputs = {path: case for case in cases for path in outputs_of(case)}
    written = {path.resolve() for path in outputs}
    faults, told = [], set()
    for read, role in [*((case, "image") for case in cases), *((case, "truth") for case in truths)]:
        if lost := [path for path in read.images if path.resolve() in written]:
            message = f"the {what} would replace its {role} {lost[0]}; choose another folder with -o"
            faults.append(Fault(read.id, "would-overwrite", message))
            told |= {path.resolve() for path in lost}
    logged = logged_outputs(folder / NAME)
    for path, case in outputs.items():
        if path.resolve() in told or not path.exists():
            continue
        if not _is_replaceable(path, logged.get(str(path.relative_to(folder)))):
            message = (
                f"{path} is there already and not as clinseg wrote it, perhaps drawn or corrected by "
                "hand; move it elsewhere, or choose another folder with -o"
            )
            faults.append(Fault(case.id, "would-overwrite", message))
    if faults:
        raise ConfigError(faults)


def _is_replaceable(path: Path, known: Collection[str] | None) -> bool:
    if not path.is_file():
        return False
    return is_ours(path) if known is None else sha256_of(path) in known
