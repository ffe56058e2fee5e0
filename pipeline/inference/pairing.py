"""What belongs to which reference or truth: the same case has the same file name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.cases import Case
from pipeline.data.dicom import SeriesRule
from pipeline.data.images import find_inputs
from pipeline.data.nifti import is_nifti, nifti_stem
from pipeline.errors import Fault, InputError


class Pair(NamedTuple):
    """The two label maps of a case."""

    case: str
    prediction: Path
    reference: Path


def pair_up(predictions: Path, references: Path) -> tuple[list[Pair], list[Fault]]:
    """Pairs `<case>.nii.gz` or `<case>.nii` of two folders by name, or two files whatever their names.

    Returns:
        The pairs in the order of their names, and a fault for each case that is left out because it lacks a
        partner or has two files in one folder.

    Raises:
        InputError: If a path does not exist, one is a file and the other a folder, or a folder cannot be read
            or holds no NIfTI file.
    """
    missing = [path for path in (predictions, references) if not path.exists()]
    if missing:
        raise InputError(
            Fault(str(path), "missing-file", "no such file or folder; check the path") for path in missing
        )
    if predictions.is_dir() != references.is_dir():
        message = f"expected two folders or two files, but of this and {references} only one is a folder"
        raise InputError(Fault(str(predictions), "file-and-folder", message))
    if not predictions.is_dir():
        return [Pair(nifti_stem(predictions), predictions, references)], []
    predicted, true = _label_maps(predictions), _label_maps(references)
    faults = [*_unpaired(predicted, true, predictions, references), *_doubled(predicted, true)]
    excluded = {fault.where for fault in faults}
    cases = sorted(predicted.keys() - excluded)
    return [Pair(case, predicted[case][0], true[case][0]) for case in cases], faults


def find_label_maps(cases: Iterable[str], labels: Path) -> tuple[dict[str, Path], list[Fault]]:
    """The label map `<case>.nii.gz` or `<case>.nii` of each case.

    Returns:
        Files by case, and a fault for each case that has none, or two.

    Raises:
        InputError: If `labels` is no folder, or cannot be read, or holds no NIfTI file.
    """
    if not labels.is_dir():
        message = "expected a folder of label maps named <case>.nii.gz or <case>.nii; check the path"
        raise InputError(Fault(str(labels), "missing-folder", message))
    found = _label_maps(labels)
    wanted = {case: found.get(case, []) for case in cases}
    message = f"it has no label map in {labels}; it was not measured"
    faults = [Fault(case, "reference-missing", message) for case, paths in wanted.items() if not paths]
    known = {case: paths[0] for case, paths in wanted.items() if len(paths) == 1}
    return known, [*faults, *_doubled(wanted)]


def _label_maps(folder: Path) -> dict[str, list[Path]]:
    """The NIfTI files of a folder by case; a case that has more than one is doubtful."""
    found: dict[str, list[Path]] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        message = f"the folder cannot be read ({(error.strerror or 'error').lower()}); mend its permissions"
        raise InputError(Fault(str(folder), "unreadable", message)) from error
    for path in paths:
        if is_nifti(path) and not path.name.startswith("."):
            found.setdefault(nifti_stem(path), []).append(path)
    if not found:
        message = "expected label maps named <case>.nii.gz or <case>.nii, but there is none; check the folder"
        raise InputError(Fault(str(folder), "no-images", message))
    return found


def _unpaired(
    predicted: dict[str, list[Path]], true: dict[str, list[Path]], predictions: Path, references: Path
) -> Iterator[Fault]:
    for case in sorted(predicted.keys() - true.keys()):
        message = f"the prediction has no reference in {references}; the case was not evaluated"
        yield Fault(case, "reference-missing", message)
    for case in sorted(true.keys() - predicted.keys()):
        message = (
            f"the reference has no prediction in {predictions}; the case was not evaluated, predict it too"
        )
        yield Fault(case, "prediction-missing", message)


def _doubled(*folders: dict[str, list[Path]]) -> Iterator[Fault]:
    for case, paths in (item for folder in folders for item in sorted(folder.items())):
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            message = f"{names} in {paths[0].parent} claim the same case, which was not evaluated; keep one"
            yield Fault(case, "duplicate-case", message)


def pair_truths(
    cases: Sequence[Case], truth: Path, num_channels: int, rules: Sequence[SeriesRule] = (SeriesRule(),)
) -> tuple[dict[str, Case], list[Fault]]:
    """What each case should look like: the case of the same id, or a single one whatever its name.

    Args:
        cases: Images.
        truth: A file, a folder or a DICOM series, as an input of the same model is given.
        num_channels: Channels of the images.
        rules: Which DICOM series each channel is.

    Returns:
        The true images by id, and a fault for each case that has none.

    Raises:
        InputError: If `truth` is no input.
    """
    found = find_inputs([truth], num_channels, rules)
    if len(cases) == 1 and [set(case.images) for case in found] == [{truth}]:
        return {cases[0].id: found[0]}, []
    known = {case.id: case for case in found}
    faults = [
        Fault(case.id, "truth-missing", f"its truth is not in {truth}; it was enhanced but not compared")
        for case in cases
        if case.id not in known
    ]
    return {case.id: known[case.id] for case in cases if case.id in known}, faults
