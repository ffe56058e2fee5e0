"""Enhancers against classical methods on the validation cases of their runs, and what is measured in it.

    pip install scikit-image dipy PyWavelets bm4d
    python benchmarks/enhancement.py RUN [RUN …] [--segmenter MODEL|none] [--page NAME]

Every run was trained with `data.corruption`, all with the same on one fold of one study. Filters get the
strength with the best PSNR on eight degraded training cases; nothing is chosen on the validation cases. PSNR
and SSIM are those of `clinseg enhance --truth`; Dice is that of `evaluate --downstream --labels`, with a
segmentation that was trained on the clean images of the same fold, here unless `--segmenter` names one; with
`none` it is left out. The table goes to `docs/benchmarks/enhancement/<corruption>.md`, or to the page that
`--page` names for another study. A row that stands there is kept, and so is what is said below the table;
delete the page to measure all anew.

Doses are lowered in Hounsfield units, and the values of OpenKBP are 1000 too high. `--shift STUDY FOLDER`
writes a study with values that are right, whose runs can be measured; CT is filtered slice by slice.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import torch
from bm4d import bm4d
from dipy.denoise.nlmeans import nlmeans
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle, denoise_wavelet, estimate_sigma

from pipeline.config import EnhancementJob, load_job
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.corrupting import corrupt
from pipeline.data.enhancement_study import read_enhancement_study
from pipeline.data.images import read_image, read_label_map
from pipeline.data.manifests import parse_manifest
from pipeline.export.nifti import write_image
from pipeline.image_metrics import data_range, psnr
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.downstream import measure_case
from pipeline.inference.grids import on_grid
from pipeline.inference.image_evaluation import compare_images
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.statistics import interval_text, summarise
from pipeline.tracking import RunFolder, find_run
from pipeline.volume import Volume
from pipeline.workflows.cross_validation import train_folds
from pipeline.workflows.runs.models import load_model
from transforms.resampling import match_axes

ROOT = Path(__file__).parents[1]
_NUM_TUNED = 8
_TUNED_SLICES = 8  # every which slice of a CT a filter is tuned on
_SEGMENTER_MINUTES = 4
_OFFSET = 1000  # of OpenKBP
_LARGEST = 4095
Image = NDArray[np.float64]
Filter = Callable[[Image, float, float], Image]
"""Image, its noise's standard deviation, strength → image."""


def _gaussian(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, strength))


def _median(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(ndimage.median_filter(image, int(strength)))


def _nonlocal_means(image: Image, noise: float, strength: float) -> Image:
    # A bias of Rician noise is undone where there is no signal below 0. Below 0 dipy gives wrong values.
    lowest = min(0.0, float(image.min()))
    stack = (image if image.ndim == 3 else image[..., None]) - lowest
    made = nlmeans(stack, sigma=noise * strength, patch_radius=1, block_radius=3, rician=lowest == 0)
    return np.asarray(made).reshape(image.shape) + lowest


def _bm4d(image: Image, noise: float, strength: float) -> Image:
    # It knows Gaussian noise; where 0 is no signal, the mean of a magnitude is brought back afterwards.
    stack = image if image.ndim == 3 else image[..., None]
    made = np.asarray(bm4d(stack, noise * strength)).reshape(image.shape)
    return made if image.min() < 0 else np.sqrt(np.maximum(made**2 - noise**2, 0))


def _wavelet(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(denoise_wavelet(image, sigma=noise * strength, rescale_sigma=True))


def _variation(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(denoise_tv_chambolle(image / noise, weight=strength) * noise)


FILTERS: Mapping[str, tuple[Filter, tuple[float, ...]]] = {
    "Gaussian": (_gaussian, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)),
    "median": (_median, (2, 3)),
    "non-local means (dipy)": (_nonlocal_means, (0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0)),
    "BM4D": (_bm4d, (0.8, 1.0, 1.2)),
    "wavelet (scikit-image)": (_wavelet, (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)),
    "total variation (scikit-image)": (_variation, (0.4, 0.6, 0.8, 1.0, 1.3, 1.8, 2.5)),
}


@dataclass(frozen=True)
class Pair:
    """A case of the study: its degraded image, its truth, and the label map of the truth."""

    case: Case
    worse: Volume
    truth: Volume
    label: Path | None


Images = dict[str, Volume]
"""What a method made of each case, by its id."""
Made = tuple[str, Images]
"""What a method is called once its strength is known, and its images."""
Figures = Sequence[tuple[float, ...]]
"""PSNR, SSIM and, where it is measured, Dice of every case."""


class Page:
    """The page of a corruption: its rows are written as they are found, and those that are there stay."""

    def __init__(
        self, job: EnhancementJob, num_cases: int, *, has_dice: bool, name: str | None = None
    ) -> None:
        corruption = job.data.corruption
        assert corruption is not None, "checked"
        self.has_dice = has_dice
        self.path = ROOT / f"docs/benchmarks/enhancement/{name or corruption.name}.md"
        where = f"{job.data.manifest.parent.name}, fold {job.data.fold}, {num_cases} validation cases"
        dice = (
            "Dice: mean of the structures as drawn, found by a segmentation that was trained on clean images"
        )
        head = ["", "PSNR (dB)", "SSIM", *(["Dice"] if has_dice else [])]
        self.above = [
            f"# Enhancement: {corruption.name.replace('_', ' ').replace('rician', 'Rician')}",
            "",
            f"{where}, {corruption.name} of severity {corruption.severity}; mean and 95 % bootstrap "
            "interval. Made by `benchmarks/enhancement.py`; filters have the strength that is best on eight "
            "degraded training cases, and are told the noise that the image shows."
            + (f" {dice} of the training cases." if has_dice else ""),
            "",
            f"|{'|'.join(f' {name} ' if name else ' ' for name in head)}|",
            f"|{'---|' * len(head)}",
        ]
        known = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        self.rows = [line for line in known if line.startswith("| ") and not line.startswith("| |")]
        last = max((place for place, line in enumerate(known) if line.startswith("|")), default=-1)
        self.below = [line for line in known[last + 1 :] if last >= 0]

    def has_row(self, name: str) -> bool:
        """Whether a method of that name stands there, whatever its strength."""
        return any(
            row[2:].split(" | ")[0] in {name, f"**{name}**"} or row.startswith(f"| {name}, ")
            for row in self.rows
        )

    def add_row(self, name: str, figures: Figures) -> None:
        """Adds what a method came to, and writes the page."""
        cells = [
            _cell(values, digits)
            for values, digits in zip(zip(*figures, strict=True), (2, 3, 3), strict=False)
        ]
        self.rows.append(f"| {name} | {' | '.join(cells)} |")
        print(self.rows[-1], flush=True)
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text("\n".join([*self.above, *self.rows, *(self.below or [""])]), encoding="utf-8")


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--segmenter", help="a segmentation, or none")
    parser.add_argument("--page", help="of another study than the one that the corruption's page is about")
    parser.add_argument("--shift", nargs=2, type=Path, metavar=("STUDY", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.shift:
        _shift(*arguments.shift)
        return
    runs = [find_run(name) for name in arguments.runs]
    job = _load(runs[0])
    split = json.loads((runs[0].path / "split.json").read_text())
    has_dice = arguments.segmenter != "none"
    page = Page(job, len(split["validation"]), has_dice=has_dice, name=arguments.page)
    labels = {entry.id: entry.label for entry in parse_manifest(job.data.manifest).entries}
    study = read_enhancement_study(job.data)
    cases = {case.id: replace(case, label=labels[case.id]) for case in study.cases}
    judged = [_pair(cases[name], job) for name in split["validation"]]
    methods = _find_methods(cases, judged, runs, split)
    predictor = None
    for name, make in methods.items():
        if page.has_row(name):
            continue
        if predictor is None and page.has_dice:
            predictor = _segmenter(arguments.segmenter, job, split)
        label, images = make()
        page.add_row(label, _measure(judged, images, predictor))


def _find_methods(
    cases: Mapping[str, Case],
    judged: Sequence[Pair],
    runs: Sequence[RunFolder],
    split: Mapping[str, Sequence[str]],
) -> dict[str, Callable[[], Made]]:
    """All that is compared, by name; nothing is computed yet."""
    job = _load(runs[0])
    assert job.data.corruption is not None, "checked"
    methods: dict[str, Callable[[], Made]] = {
        "truth": lambda: ("truth", {pair.case.id: pair.truth for pair in judged})
    }
    if job.data.corruption.name == "thick_slices":
        methods |= {name: partial(_interpolate, name, judged, runs[0]) for name in ("linear", "cubic spline")}
    else:
        tuned = [_pair(cases[name], job) for name in sorted(split["training"])[:_NUM_TUNED]]
        is_sliced = job.data.corruption.name == "low_dose"
        methods["input"] = lambda: ("input", {pair.case.id: pair.worse for pair in judged})
        methods |= {
            name: partial(_filter, name, tuned, judged, is_sliced)
            for name in FILTERS
            if name != "BM4D" or not is_sliced  # it takes twelve seconds for each of a thousand slices
        }
    for run in runs:
        own = _load(run)
        assert own.data.corruption == job.data.corruption, "one study"
        held_out = json.loads((run.path / "split.json").read_text())["validation"]
        assert held_out == split["validation"], "one fold"
        budget = (
            f"{own.training.minutes:g} minutes" if own.training.minutes else f"{own.training.epochs} epochs"
        )
        name = f"**clinseg {own.training.method}, {budget}**"
        methods[name] = partial(_made_by, name, run, judged)
    return methods


def _load(run: RunFolder) -> EnhancementJob:
    job = load_job(run.path / "config.yaml")
    assert isinstance(job, EnhancementJob) and job.data.corruption is not None, "runs with a corruption"
    return job


def _made_by(name: str, run: RunFolder, judged: Sequence[Pair]) -> Made:
    return name, {pair.case.id: read_image(_enhanced(run, pair.case.id))[0] for pair in judged}


def _enhanced(run: RunFolder, case: str) -> Path:
    return run.path / "validation/enhanced" / f"{case}.nii.gz"


def _pair(case: Case, job: EnhancementJob) -> Pair:
    assert job.data.corruption is not None, "checked"
    good = read_case_images(case, 1)
    return Pair(case, corrupt(good, job.data.corruption, case.id)[0], good[0], case.label)


def _filter(name: str, tuned: Sequence[Pair], judged: Sequence[Pair], is_sliced: bool) -> Made:
    """What a filter makes with the strength that is best on the tuned cases."""
    apply, strengths = FILTERS[name]
    step = _TUNED_SLICES if is_sliced else 1

    def run(image: NDArray[np.generic], strength: float) -> Image:
        # With the deviation of the noise as the image itself shows it (finest diagonal wavelets).
        real = image.astype(np.float64)
        if not is_sliced:
            return apply(real, float(estimate_sigma(real)), strength)
        slices = [real[..., place] for place in range(real.shape[-1])]
        # Air has no noise at all where a CT was cut off.
        return np.stack(
            [apply(each, max(float(estimate_sigma(each)), 1e-3), strength) for each in slices], -1
        )

    def closeness(strength: float) -> float:
        found = []
        for pair in tuned:
            worse, truth = pair.worse.array[..., ::step], pair.truth.array[..., ::step]
            found.append(psnr(run(worse, strength), truth, data_range(truth)))
        return float(np.mean(found))

    best = max(strengths, key=closeness)
    images = {pair.case.id: Volume(run(pair.worse.array, best), pair.worse.grid) for pair in judged}
    return f"{name}, {best:g}", images


def _interpolate(name: str, judged: Sequence[Pair], run: RunFolder) -> Made:
    """Thick slices on the grid of the run's results, by lines or by cubic splines."""
    images = {}
    for pair in judged:
        grid = read_image(_enhanced(run, pair.case.id))[0].grid
        if name == "linear":
            images[pair.case.id] = Volume(on_grid(pair.worse, grid), grid)
            continue
        axes, positions = match_axes(pair.worse.grid.affine, grid.shape, grid.affine)
        stored = pair.worse.array.transpose(axes).astype(np.float64)
        places = np.meshgrid(*positions, indexing="ij")
        images[pair.case.id] = Volume(ndimage.map_coordinates(stored, places, order=3, mode="nearest"), grid)
    return name, images


def _segmenter(model: str | None, job: EnhancementJob, split: Mapping[str, Sequence[str]]) -> Predictor:
    """A segmentation of the clean images that are trained on, made here unless there is one."""
    if model is None:
        settings = [
            f"data.manifest={job.data.manifest}",
            f"data.fold={job.data.fold}",
            f"data.cache_dir={job.data.cache_dir}",
            f"training.minutes={_SEGMENTER_MINUTES}",
        ]
        result = train_folds(ROOT / "configs/hippocampus.yaml", settings)
        assert result is not None, "one process"
        model = result.run
    checkpoint = load_model(model)
    assert set(checkpoint.provenance["validation_cases"]) == set(split["validation"]), "trained on one fold"
    return load_predictor(checkpoint, torch.device("cpu"))


def _measure(judged: Sequence[Pair], images: Images, predictor: Predictor | None) -> Figures:
    """PSNR, SSIM and Dice of every case; of the truth itself the first is infinite."""
    found = []
    for pair in judged:
        figures = compare_images(pair.case.id, [pair.truth], {"it": [images[pair.case.id]]})
        found.append((figures["psnr_it"], figures["ssim_it"]))
    if predictor is None:
        return found
    dice = _measure_dice(judged, images, predictor)
    return [(*figures, one) for figures, one in zip(found, dice, strict=True)]


def _measure_dice(judged: Sequence[Pair], images: Images, predictor: Predictor) -> list[float]:
    found = []
    with TemporaryDirectory() as folder:
        written = []
        for pair in judged:
            path, image = Path(folder) / f"{pair.case.id}.nii.gz", images[pair.case.id]
            write_image(path, image.array.astype(np.float32), image.grid, {"made_by": "benchmark"})
            written.append(Case(pair.case.id, pair.case.id, (path,)))
        predict_cohort(predictor, written, Path(folder) / "masks")
        for pair in judged:
            mask = read_label_map(Path(folder) / "masks" / f"{pair.case.id}.nii.gz")
            structures = predictor.contract.structures
            assert pair.label is not None, "or it was told to measure no Dice"
            rows = measure_case(pair.case.id, {"it": mask}, read_label_map(pair.label), structures)
            found.append(float(np.mean([row.figures["it"]["dice"] for row in rows])))
    return found


def _shift(study: Path, folder: Path) -> None:
    """Writes a study whose values are Hounsfield units."""
    shutil.copytree(study, folder)
    for path in sorted(folder.glob("images*/*.nii.gz")):
        image = nib.Nifti1Image.from_filename(path)
        # What is brighter than twelve bits is metal, and would be the range that PSNR is relative to.
        values = np.asarray(image.dataobj, dtype=np.float32).clip(0, _LARGEST) - _OFFSET
        nib.save(nib.Nifti1Image(values.round().astype(np.int16), image.affine), path)
    print(f"{folder / 'dataset.json'} is written")


def _cell(values: Sequence[float], digits: int) -> str:
    if not np.isfinite(values).all():
        return "–"
    told = summarise(values)
    mean = f"{told.mean:.{digits}f}"
    return f"{mean} ({interval_text(told, f'.{digits}f')})" if told.num > 1 else mean


if __name__ == "__main__":
    main()
