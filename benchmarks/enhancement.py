"""Enhancers against classical methods on the validation cases of their runs, and what is measured in it.

    pip install scikit-image dipy PyWavelets
    python benchmarks/enhancement.py RUN [RUN …] [--segmenter MODEL]

Every run was trained with `data.corruption`, all with the same on one fold of one study. Filters get the
strength with the best PSNR on eight degraded training cases; nothing is chosen on the validation cases. PSNR
and SSIM are those of `clinseg enhance --truth`; Dice is that of `evaluate --downstream --labels`, with a
segmentation that was trained on the clean images of the same fold, here unless `--segmenter` names one. The
table goes to `docs/benchmarks/enhancement/<corruption>.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
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
from pipeline.export.nifti import write_image
from pipeline.image_metrics import data_range, psnr
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.downstream import measure_case
from pipeline.inference.grids import on_grid
from pipeline.inference.image_evaluation import compare_images
from pipeline.inference.predictor import Predictor, load_predictor
from pipeline.statistics import summarise
from pipeline.tracking import RunFolder, find_run
from pipeline.volume import Volume
from pipeline.workflows.cross_validation import train_folds
from pipeline.workflows.models import load_model
from transforms.resampling import match_axes

ROOT = Path(__file__).parents[1]
_NUM_TUNED = 8
_SEGMENTER_MINUTES = 4
Image = NDArray[np.float64]
Filter = Callable[[Image, float, float], Image]
"""Image, its noise's standard deviation, strength → image."""


def _gaussian(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, strength))


def _median(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(ndimage.median_filter(image, int(strength)))


def _nonlocal_means(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(nlmeans(image, sigma=noise * strength, patch_radius=1, block_radius=3, rician=True))


def _wavelet(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(denoise_wavelet(image, sigma=noise * strength, rescale_sigma=True))


def _variation(image: Image, noise: float, strength: float) -> Image:
    return np.asarray(denoise_tv_chambolle(image / noise, weight=strength) * noise)


FILTERS: Mapping[str, tuple[Filter, tuple[float, ...]]] = {
    "Gaussian": (_gaussian, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)),
    "median": (_median, (2, 3)),
    "non-local means (dipy)": (_nonlocal_means, (0.4, 0.6, 0.8, 1.0, 1.2)),
    "wavelet (scikit-image)": (_wavelet, (0.5, 0.75, 1.0, 1.25, 1.5)),
    "total variation (scikit-image)": (_variation, (0.4, 0.6, 0.8, 1.0, 1.3)),
}


@dataclass(frozen=True)
class Pair:
    """A case of the study: its degraded image, its truth, and the label map of the truth."""

    case: Case
    worse: Volume
    truth: Volume
    label: Path


Images = dict[str, Volume]
"""What a method made of each case, by its id."""


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--segmenter")
    arguments = parser.parse_args()
    runs = [find_run(name) for name in arguments.runs]
    job = _load(runs[0])
    split = json.loads((runs[0].path / "split.json").read_text())
    cases = {case.id: case for case in read_enhancement_study(job.data).cases}
    judged = [_pair(cases[name], job) for name in split["validation"]]
    methods = {"truth": {pair.case.id: pair.truth for pair in judged}}
    assert job.data.corruption is not None, "checked"
    if job.data.corruption.name == "thick_slices":
        methods |= _interpolate(judged, runs[0])
    else:
        tuned = [_pair(cases[name], job) for name in sorted(split["training"])[:_NUM_TUNED]]
        methods |= {"input": {pair.case.id: pair.worse for pair in judged}, **_filter(tuned, judged)}
    for run in runs:
        own = _load(run)
        assert own.data.corruption == job.data.corruption, "one study"
        assert json.loads((run.path / "split.json").read_text())["validation"] == split["validation"], (
            "one fold"
        )
        section = own.training
        budget = f"{section.minutes:g} minutes" if section.minutes else f"{section.epochs} epochs"
        methods[f"**clinseg {section.method}, {budget}**"] = {
            pair.case.id: read_image(_enhanced(run, pair.case.id))[0] for pair in judged
        }
    predictor = _segmenter(arguments.segmenter, job, split)
    rows = {}
    for name, images in methods.items():
        rows[name] = _measure(judged, images, predictor)
        print(name, np.round(np.mean(rows[name], axis=0), 4), flush=True)
    _write(rows, job, len(judged))


def _load(run: RunFolder) -> EnhancementJob:
    job = load_job(run.path / "config.yaml")
    assert isinstance(job, EnhancementJob) and job.data.corruption is not None, "runs with a corruption"
    return job


def _enhanced(run: RunFolder, case: str) -> Path:
    return run.path / "validation/enhanced" / f"{case}.nii.gz"


def _pair(case: Case, job: EnhancementJob) -> Pair:
    assert job.data.corruption is not None, "checked"
    good = read_case_images(case, 1)
    label = case.images[0].parents[1] / "labelsTr" / case.images[0].name
    return Pair(case, corrupt(good, job.data.corruption, case.id)[0], good[0], label)


def _filter(tuned: Sequence[Pair], judged: Sequence[Pair]) -> dict[str, Images]:
    """What each filter makes with the strength that is best on the tuned cases."""

    def run(apply: Filter, pair: Pair, strength: float) -> Volume:
        # With the deviation of the noise as the image itself shows it (finest diagonal wavelets).
        image = pair.worse.array.astype(np.float64)
        return Volume(apply(image, float(estimate_sigma(image)), strength), pair.worse.grid)

    def closeness(apply: Filter, strength: float) -> float:
        found = [
            psnr(run(apply, pair, strength).array, pair.truth.array, data_range(pair.truth.array))
            for pair in tuned
        ]
        return float(np.mean(found))

    methods = {}
    for name, (apply, strengths) in FILTERS.items():
        best = max(strengths, key=lambda strength: closeness(apply, strength))
        methods[f"{name}, {best:g}"] = {pair.case.id: run(apply, pair, best) for pair in judged}
    return methods


def _interpolate(judged: Sequence[Pair], run: RunFolder) -> dict[str, Images]:
    """Thick slices on the grid of the run's results, by lines and by cubic splines."""
    linear, cubic = {}, {}
    for pair in judged:
        grid = read_image(_enhanced(run, pair.case.id))[0].grid
        linear[pair.case.id] = Volume(on_grid(pair.worse, grid), grid)
        axes, positions = match_axes(pair.worse.grid.affine, grid.shape, grid.affine)
        stored = pair.worse.array.transpose(axes).astype(np.float64)
        places = np.meshgrid(*positions, indexing="ij")
        cubic[pair.case.id] = Volume(ndimage.map_coordinates(stored, places, order=3, mode="nearest"), grid)
    return {"linear": linear, "cubic spline": cubic}


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


def _measure(
    judged: Sequence[Pair], images: Images, predictor: Predictor
) -> list[tuple[float, float, float]]:
    """PSNR, SSIM and Dice of every case; of the truth itself the first is infinite."""
    found = []
    with TemporaryDirectory() as folder:
        written = []
        for pair in judged:
            path, image = Path(folder) / f"{pair.case.id}.nii.gz", images[pair.case.id]
            write_image(path, image.array.astype(np.float32), image.grid, {"made_by": "benchmark"})
            written.append(Case(pair.case.id, pair.case.id, (path,)))
        predict_cohort(predictor, written, Path(folder) / "masks")
        for pair in judged:
            name = pair.case.id
            mask = read_label_map(Path(folder) / "masks" / f"{name}.nii.gz")
            figures = compare_images(name, [pair.truth], {"it": [images[name]]})
            structures = predictor.contract.structures
            rows = measure_case(name, {"it": mask}, read_label_map(pair.label), structures)
            dice = float(np.mean([row.figures["it"]["dice"] for row in rows]))
            found.append((figures["psnr_it"], figures["ssim_it"], dice))
    return found


def _write(rows: Mapping[str, Sequence[tuple[float, float, float]]], job: EnhancementJob, num: int) -> None:
    corruption = job.data.corruption
    assert corruption is not None, "checked"
    where = f"{job.data.manifest.parent.name}, fold {job.data.fold}, {num} validation cases"
    lines = [
        f"# Enhancement: {corruption.name.replace('_', ' ')}",
        "",
        f"{where}, {corruption.name} of severity {corruption.severity}; mean and 95 % bootstrap interval. "
        "Made by `benchmarks/enhancement.py`; filters have the strength that is best on eight degraded "
        "training cases, and are told the noise that the image shows. Dice: mean of the structures as drawn, "
        "found by a segmentation that was trained on clean images of the training cases.",
        "",
        "| | PSNR (dB) | SSIM | Dice |",
        "|---|---|---|---|",
    ]
    for name, values in rows.items():
        cells = [_cell([value[k] for value in values], digits) for k, digits in enumerate((2, 3, 3))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    page = ROOT / f"docs/benchmarks/enhancement/{corruption.name}.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{page} is written")


def _cell(values: Sequence[float], digits: int) -> str:
    if not np.isfinite(values).all():
        return "–"
    told = summarise(values)
    return f"{told.mean:.{digits}f} ({told.low:.{digits}f} to {told.high:.{digits}f})"


if __name__ == "__main__":
    main()
