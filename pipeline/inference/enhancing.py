"""Many images to enhance: each is read, enhanced, written beside its changes and compared, or refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.data.case_images import read_case_images, read_case_with_warnings
from pipeline.data.cases import Case
from pipeline.errors import Fault, FaultError
from pipeline.export.nifti import write_image, write_map
from pipeline.files import remove_files, sha256_of
from pipeline.inference.budget import Plan
from pipeline.inference.cohort import hash_inputs
from pipeline.inference.enhancer import Enhanced, Enhancer
from pipeline.inference.grids import on_grid
from pipeline.inference.image_evaluation import compare_images
from pipeline.inference.predictor import check_preparing
from pipeline.inference.relay import Steps, relay
from pipeline.volume import Volume
from transforms.enhancement import Scaled
from transforms.restoring import subtract, to_stored_type

CHANGES, UNCERTAINTY = "changes", "uncertainty"
"""Folders beside the enhanced images."""


@dataclass(frozen=True, slots=True)
class EnhancementReport:
    """What became of one case.

    Attributes:
        case: Its id.
        files: SHA-256 of each file that was written, by its path in the folder.
        mean_change: Mean absolute change over all voxels, in the unit of the images, of what was written.
        largest_change: Largest absolute one.
        num_clipped: Voxels beyond what the stored type holds.
        figures: `psnr_before`, `psnr_after`, `ssim_before`, `ssim_after` against the truth, if there is one;
            a PSNR is None where nothing differs.
        truth_hashes: SHA-256 of each file of the truth.
        seconds: Of work on it, from reading to the verified files.
        num_windows: Windows that were blended, mirrored copies not counted.
        num_skipped: Of these, how many were empty and needed no forward pass.
        plan: How the volume was cut.
        input_hashes: SHA-256 of each input file.
        warnings: What was odd about the input.
        faults: Why there is no image, or no comparison.
    """

    case: str
    files: dict[str, str] | None = None
    mean_change: float | None = None
    largest_change: float | None = None
    num_clipped: int = 0
    figures: dict[str, float | None] | None = None
    truth_hashes: tuple[str, ...] = ()
    seconds: float = 0.0
    num_windows: int = 0
    num_skipped: int = 0
    plan: str | None = None
    input_hashes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class _Loaded:
    images: tuple[Volume, ...]
    scaled: Scaled
    report: EnhancementReport


@dataclass(frozen=True, eq=False)
class _Made:
    images: tuple[Volume, ...]
    enhanced: Enhanced
    report: EnhancementReport


def enhance_cohort(
    enhancer: Enhancer,
    cases: Sequence[Case],
    folder: Path,
    *,
    model: str,
    truths: Mapping[str, Case] | None = None,
    on_case: Callable[[EnhancementReport], None] = lambda report: None,
    on_plan: Callable[[str, Plan], None] = lambda case, plan: None,
) -> list[EnhancementReport]:
    """Enhances every case and writes its images, what was changed, and where it is uncertain, to `folder`.

    Under a memory budget a case is read only when the one before has left memory. What an earlier
    enhancement left of a case is removed, also if the case is refused: a folder never shows maps of one image
    beside another.

    Args:
        enhancer: Trained generators.
        cases: What to enhance.
        folder: Where `<case>.nii.gz` goes, and `changes/` and `uncertainty/` beside it.
        model: Hash of the model, which is written into the images.
        truths: What each case should look like, by its id.
        on_case: Is told each report as soon as its files are on disk.
        on_plan: Is told each case's plan before its first window.

    Returns:
        One report per case, in their order; of a refused case without files.

    Raises:
        ResourceError: If a file cannot be written; what was finished stays.
    """
    truths = truths or {}

    def refuse(case: Case, faults: tuple[Fault, ...]) -> EnhancementReport:
        _discard(folder, case.id, len(enhancer.channels))
        return EnhancementReport(case.id, faults=faults)

    steps = Steps[_Loaded, _Made, EnhancementReport](
        load=lambda case: _load(enhancer, case),
        make=lambda loaded: _enhance(enhancer, loaded, on_plan),
        write=lambda made: _write(enhancer, made, folder, model, truths.get(made.report.case)),
        refuse=refuse,
    )
    return relay(steps, cases, on_case, is_sequential=enhancer.max_memory is not None)


def output_names(case: str, num_channels: int) -> list[str]:
    """Paths of everything that may be written for a case; its images stand first."""
    names = _image_names(case, num_channels)
    return [*names, *(f"{place}/{name}" for place in (CHANGES, UNCERTAINTY) for name in names)]


def _load(enhancer: Enhancer, case: Case) -> _Loaded:
    start = time.monotonic()
    reading = read_case_with_warnings(case, len(enhancer.channels))
    check_preparing(case.id, enhancer.preparing_bytes(reading.volumes[0].grid), enhancer.max_memory)
    scaled = enhancer.prepare(case.id, reading.volumes)
    report = EnhancementReport(
        case=case.id,
        input_hashes=hash_inputs(case),
        warnings=tuple(str(warning) for warning in reading.warnings),
        seconds=time.monotonic() - start,
    )
    return _Loaded(reading.volumes, scaled, report)


def _enhance(enhancer: Enhancer, loaded: _Loaded, on_plan: Callable[[str, Plan], None]) -> _Made:
    start, case = time.monotonic(), loaded.report.case
    enhanced = enhancer.enhance(loaded.scaled, loaded.images[0].grid, lambda plan: on_plan(case, plan))
    report = replace(
        loaded.report,
        num_windows=enhanced.plan.num_windows,
        num_skipped=enhanced.num_skipped,
        plan=str(enhanced.plan),
        seconds=loaded.report.seconds + time.monotonic() - start,
    )
    return _Made(loaded.images, enhanced, report)


def _write(
    enhancer: Enhancer, made: _Made, folder: Path, model: str, truth: Case | None
) -> EnhancementReport:
    start, case = time.monotonic(), made.report.case
    _discard(folder, case, len(made.images))
    written = [
        _write_channel(made, index, folder, name, model, keeps_unit=enhancer.keeps_unit)
        for index, name in enumerate(_image_names(case, len(made.images)))
    ]
    report = replace(
        made.report,
        files={name: digest for channel in written for name, digest in channel.files.items()},
        mean_change=float(np.mean([channel.mean_change for channel in written])),
        largest_change=max(channel.largest_change for channel in written),
        num_clipped=sum(channel.num_clipped for channel in written),
    )
    if truth is not None:
        before = made.images if enhancer.keeps_unit else ()  # in another unit there is nothing to compare
        report = _compare(report, truth, before, [channel.image for channel in written])
    return replace(report, seconds=round(report.seconds + time.monotonic() - start, 3))


@dataclass(frozen=True, eq=False)
class _Channel:
    """A channel as it was written."""

    image: Volume
    files: dict[str, str]
    mean_change: float
    largest_change: float
    num_clipped: int


def _write_channel(
    made: _Made, index: int, folder: Path, name: str, model: str, *, keeps_unit: bool
) -> _Channel:
    image, grid = made.images[index], made.enhanced.grid
    dtype = image.array.dtype if keeps_unit else np.dtype(np.float32)
    stored, num_clipped = to_stored_type(made.enhanced.images[index], dtype)
    write_image(folder / name, stored, grid, {"enhanced_by": model})
    names = [name, f"{CHANGES}/{name}"]
    change = subtract(stored, on_grid(image, grid))
    write_map(folder / names[1], change, grid, {"map": "enhanced minus input"})
    if made.enhanced.deviations:
        names.append(f"{UNCERTAINTY}/{name}")
        deviation = made.enhanced.deviations[index]
        write_map(folder / names[2], deviation, grid, {"map": "standard deviation of the answers"})
    np.abs(change, out=change)
    return _Channel(
        Volume(stored, grid),
        {written: sha256_of(folder / written) for written in names},
        float(change.mean(dtype=np.float64)),
        float(change.max()),
        num_clipped,
    )


def _discard(folder: Path, case: str, num_channels: int) -> None:
    """Removes what an earlier enhancement left of a case."""
    remove_files(folder / name for name in output_names(case, num_channels))


def _image_names(case: str, num_channels: int) -> list[str]:
    """File names of the channels of a case, as inputs are named."""
    stems = [case] if num_channels == 1 else [f"{case}_{index:04d}" for index in range(num_channels)]
    return [f"{stem}.nii.gz" for stem in stems]


def _compare(
    report: EnhancementReport, truth: Case, images: Sequence[Volume], written: Sequence[Volume]
) -> EnhancementReport:
    """The report with PSNR and SSIM, or why there are none."""
    candidates = {"before": images, "after": written} if images else {"after": written}
    try:
        truths = read_case_images(truth, len(written))
        figures = compare_images(report.case, truths, candidates)
    except FaultError as error:
        return replace(report, faults=error.faults)
    known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return replace(report, figures=known, truth_hashes=hash_inputs(truth))
