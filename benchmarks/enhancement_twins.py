"""Whether noisy twins help a segmentation that was trained on clean images to bear noise.

    python benchmarks/enhancement_twins.py ENHANCER [--steps N]
    python benchmarks/enhancement_twins.py --tables

ENHANCER is a run of `configs/enhancement.yaml`, or its checkpoint. Every training is one `clinseg train` of
`configs/hippocampus.yaml` on clean images, without the patients that ENHANCER was judged by, and the same but
for noise: without, with Gaussian noise of up to one deviation in every other patch, or with every other patch
taken from a twin that ENHANCER's way back made noisy. Those patients judge it by Dice, clean and with the
corruption that ENHANCER met. Figures per case go to `docs/benchmarks/enhancement/twins/`, and a training is
not made again while its file is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.checkpoint import Checkpoint
from pipeline.config import enhancement_job, job_from_mapping, load_job, segmentation_job
from pipeline.data.case_images import read_case_images
from pipeline.data.cases import Case, read_manifest
from pipeline.data.corrupting import corrupt
from pipeline.data.images import read_label_map
from pipeline.export.nifti import write_image
from pipeline.inference.cohort import predict_cohort
from pipeline.inference.downstream import measure_case
from pipeline.inference.predictor import load_predictor
from pipeline.statistics import compare_means, summarise
from pipeline.tracking import find_run
from pipeline.workflows.runs.models import load_model

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/hippocampus.yaml"
PAGE = ROOT / "docs/benchmarks/enhancement/augmentation.md"
ANSWERS = PAGE.parent / "twins"
SEEDS = (0, 1, 2)
IMAGES = ("noisy", "clean")
_CLEAN = "augmentation.noise_probability=0"
ARMS: Mapping[str, tuple[str, ...]] = {
    "without noise": (_CLEAN,),
    "Gaussian noise": ("augmentation.noise_probability=0.5", "augmentation.noise_deviation=1"),
    "twins": (_CLEAN, "augmentation.enhancer_reverse=true", "augmentation.enhancer_probability=0.5"),
}


def train(arm: str, seed: int, enhancer: str, steps: int) -> None:
    """Trains in a folder of its own and keeps the figures."""
    checkpoint = load_model(enhancer)
    enhancing = enhancement_job(job_from_mapping(checkpoint.job))
    job = segmentation_job(load_job(CONFIG))
    per_epoch = min(steps, job.training.steps_per_epoch)
    settings = [
        *ARMS[arm],
        *(f"data.{key}={getattr(enhancing.data, key)}" for key in ("fold", "num_folds")),
        f"training.seed={seed}",
        "training.minutes=null",
        f"training.epochs={round(steps / per_epoch)}",
        f"training.steps_per_epoch={per_epoch}",
        "training.validate_every=1000",  # once, at the end
        "tracking.overlays=0",
    ]
    with TemporaryDirectory() as folder:
        if arm == "twins":
            settings.append(f"augmentation.from_enhancer={find_file(enhancer)}")
        command = [sys.executable, "-m", "pipeline", "train", str(CONFIG)]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
        run = find_run("latest", Path(folder) / "mlruns")
        segmenter = load_model(str(run.path / "checkpoints/best.safetensors"))
        held_out = segmenter.provenance["validation_cases"]
        assert set(held_out) == set(checkpoint.provenance["validation_cases"]), "one fold"
        cases = [case for case in read_manifest(job.data).cases if case.id in held_out]
        answers = {"steps": steps} | judge(segmenter, checkpoint, cases, Path(folder))
    ANSWERS.mkdir(parents=True, exist_ok=True)
    answers_of(arm, seed).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


def find_file(enhancer: str) -> Path:
    """The checkpoint itself, which a training in another folder finds."""
    path = Path(enhancer)
    return path.resolve() if path.is_file() else find_run(enhancer).path / "checkpoints/best.safetensors"


def judge(
    segmenter: Checkpoint, enhancer: Checkpoint, cases: Sequence[Case], folder: Path
) -> dict[str, dict[str, float]]:
    """Dice of every case, mean of its structures, by what its image was."""
    corruption = enhancement_job(job_from_mapping(enhancer.job)).data.corruption
    assert corruption is not None, "an enhancer of images made worse"
    predictor = load_predictor(segmenter, torch.device("cpu"))
    found: dict[str, dict[str, float]] = {name: {} for name in IMAGES}
    for name in IMAGES:
        written = []
        for case in cases:
            volume = read_case_images(case, 1)[0]
            image = corrupt([volume], corruption, case.id)[0] if name == "noisy" else volume
            path = folder / name / f"{case.id}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            write_image(path, image.array.astype(np.float32), image.grid, {"made_by": "benchmark"})
            written.append(Case(case.id, case.patient, (path,)))
        predict_cohort(predictor, written, folder / f"{name}-masks")
        for case in cases:
            assert case.label is not None, "labelled"
            mask = read_label_map(folder / f"{name}-masks" / f"{case.id}.nii.gz")
            rows = measure_case(
                case.id, {"it": mask}, read_label_map(case.label), predictor.contract.structures
            )
            found[name][case.id] = float(np.mean([row.figures["it"]["dice"] for row in rows]))
    return found


def answers_of(arm: str, seed: int) -> Path:
    return ANSWERS / f"{arm.replace(' ', '-')}-seed-{seed}.json"


def read_dice(arm: str, name: str) -> NDArray[np.float64] | None:
    """By seed and case, `(S, N)`, of the seeds that are there; None if there is none."""
    told = [
        json.loads(answers_of(arm, seed).read_text()) for seed in SEEDS if answers_of(arm, seed).is_file()
    ]
    return np.array([[each[name][case] for case in sorted(each[name])] for each in told]) if told else None


def rows() -> Iterator[str]:
    plain = {name: read_dice("without noise", name) for name in IMAGES}
    for arm in ARMS:
        cells = []
        for name in IMAGES:
            dice, without = read_dice(arm, name), plain[name]
            if dice is None or without is None:
                cells += ["not measured", ""]
                continue
            told = summarise(dice.mean(axis=0).tolist())
            seeds = ", ".join(f"{value:.3f}" for value in dice.mean(axis=1))
            cells.append(f"{told.mean:.3f} ({told.low:.3f} to {told.high:.3f}); {seeds}")
            if arm == "without noise" or len(dice) != len(without):
                cells.append("")
                continue
            change = compare_means(without.mean(axis=0).tolist(), dice.mean(axis=0).tolist())
            cells.append(f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})")
        yield f"| {arm} | {' | '.join(cells)} |"


def write_page() -> None:
    """The table of what is there; what is said below it stays."""
    known = PAGE.read_text(encoding="utf-8").split("\n") if PAGE.exists() else []
    last = max((place for place, line in enumerate(known) if line.startswith("|")), default=-1)
    told = [json.loads(path.read_text()) for path in sorted(ANSWERS.glob("*.json"))]
    steps = ", ".join(sorted({f"{each['steps']:,}" for each in told}))
    lines = [
        "# A segmentation that learns from noisy twins",
        "",
        f"`python benchmarks/enhancement_twins.py ENHANCER --steps N`: `configs/hippocampus.yaml`, {steps}",
        "steps a training, on clean images of fold 0. Dice on its 42 validation cases, with Rician noise of",
        "severity 5 and clean: mean of structures and seeds with 95 % bootstrap interval over cases, then",
        "each seed's. Changes are from the training without noise, paired. Every answer lies in `twins/`.",
        "",
        "| training | noisy | change | clean | change |",
        "|---|---|---|---|---|",
        *rows(),
        *(known[last + 1 :] if last >= 0 else [""]),
    ]
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Trains what is not there yet, and writes the page after each training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("enhancer", nargs="?", help="a run of configs/enhancement.yaml, or its checkpoint")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.enhancer is None and not arguments.tables:
        parser.error("name the enhancer that makes twins")
    if arguments.enhancer is not None:
        for seed in SEEDS:
            for arm in ARMS:
                if not answers_of(arm, seed).is_file():
                    train(arm, seed, arguments.enhancer, arguments.steps)
                    write_page()
    write_page()


if __name__ == "__main__":
    main()
