"""Denoising against classical filters, on the validation cases of enhancement runs.

    pip install scikit-image dipy
    python benchmarks/enhancement.py RUN [RUN …]

Every run was trained with `data.corruption`, all on one fold of one study. Filters get the strength with
the best PSNR on eight degraded training cases; nothing is chosen on the validation cases. PSNR and SSIM are
those of `clinseg enhance --truth`. The table goes to `docs/benchmarks/enhancement.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from dipy.denoise.nlmeans import nlmeans
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle, denoise_wavelet, estimate_sigma

from pipeline.config import EnhancementJob, load_job
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case
from pipeline.data.corrupting import corrupt
from pipeline.data.enhancement_study import read_enhancement_study
from pipeline.image_metrics import data_range, psnr, ssim
from pipeline.statistics import summarise
from pipeline.tracking import find_run

PAGE = Path(__file__).parents[1] / "docs/benchmarks/enhancement.md"
_NUM_TUNED = 8
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


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+")
    runs = [find_run(name) for name in parser.parse_args().runs]
    job = load_job(runs[0].path / "config.yaml")
    assert isinstance(job, EnhancementJob) and job.data.corruption is not None, "runs with a corruption"
    split = json.loads((runs[0].path / "split.json").read_text())
    cases = {case.id: case for case in read_enhancement_study(job.data).cases}
    tuned = [_pair(cases[name], job) for name in sorted(split["training"])[:_NUM_TUNED]]
    judged = [_pair(cases[name], job) for name in split["validation"]]
    rows = {"input": [_judge(noisy, truth) for noisy, truth in judged]}
    for name, (apply, strengths) in FILTERS.items():
        best = max(strengths, key=lambda s: np.mean([_judge(_run(apply, n, s), t)[0] for n, t in tuned]))
        rows[f"{name}, {best:g}"] = [_judge(_run(apply, noisy, best), truth) for noisy, truth in judged]
        print(name, best, np.mean(rows[f"{name}, {best:g}"], axis=0), flush=True)
    for run in runs:
        own = load_job(run.path / "config.yaml")
        assert isinstance(own, EnhancementJob) and own.data.corruption == job.data.corruption, "one study"
        with (run.path / "cases.csv").open(encoding="utf-8", newline="") as file:
            figures = {row["case"]: row for row in csv.DictReader(file)}
        assert set(figures) == set(split["validation"]), "runs on one fold"
        section = own.training
        budget = f"{section.minutes:g} minutes" if section.minutes else f"{section.epochs} epochs"
        rows[f"clinseg {section.method}, {budget}"] = [
            (float(figures[name]["psnr_after"]), float(figures[name]["ssim_after"]))
            for name in split["validation"]
        ]
    _write(rows, job, len(judged))


def _pair(case: Case, job: EnhancementJob) -> tuple[Image, Image]:
    """A degraded image and its truth."""
    assert job.data.corruption is not None, "checked"
    good = read_case_images(case, 1)
    worse = corrupt(good, job.data.corruption, case.id)[0].array
    return worse.astype(np.float64), good[0].array.astype(np.float64)


def _run(apply: Filter, image: Image, strength: float) -> Image:
    """A filter with the deviation of the noise as the image itself shows it (finest diagonal wavelets)."""
    return apply(image, float(estimate_sigma(image)), strength)


def _judge(image: Image, truth: Image) -> tuple[float, float]:
    peak = data_range(truth)
    return psnr(image, truth, peak), ssim(image, truth, peak)


def _write(rows: Mapping[str, Sequence[tuple[float, float]]], job: EnhancementJob, num: int) -> None:
    corruption = job.data.corruption
    assert corruption is not None, "checked"
    where = f"{job.data.manifest.parent.name}, fold {job.data.fold}, {num} validation cases"
    lines = [
        "# Enhancement: denoising",
        "",
        f"{where}, {corruption.name} of severity {corruption.severity}; mean and 95 % bootstrap "
        "interval. Made by `benchmarks/enhancement.py`; filters have the strength that is best on eight "
        "degraded training cases, and are told the noise that the image shows.",
        "",
        "| | PSNR (dB) | SSIM |",
        "|---|---|---|",
    ]
    for name, values in rows.items():
        told = [summarise([value[k] for value in values]) for k in (0, 1)]
        peak, likeness = told
        lines.append(
            f"| {name} | {peak.mean:.2f} ({peak.low:.2f} to {peak.high:.2f}) | "
            f"{likeness.mean:.3f} ({likeness.low:.3f} to {likeness.high:.3f}) |"
        )
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
