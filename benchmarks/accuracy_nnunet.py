"""What nnU-Net reaches in the minutes of our hippocampus job, on the same fold and the same machine.

    python benchmarks/accuracy_nnunet.py [--minutes 10] [--steps N]

nnU-Net's own plan, network, trainer and prediction, without mirroring, as in ours; its learning rate falls
over the minutes instead of 1,000 epochs. The machine has to be idle; beside other programs `--steps` gives
the steps that an idle one makes in the minutes. Judged by `clinseg evaluate`; the table goes where those of
`accuracy.py` are, which shows it. At the end nnU-Net's own Dice of validation patches is told, by which one
sees that what is predicted is what was learnt.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accuracy import CONFUSION, LEDGER, RESULTS, ROOT
from nnunet import CONFIGURATION, NAME, build_trainer, prepare_study

from pipeline.config import load_job, segmentation_job
from pipeline.data.cases import read_manifest
from pipeline.data.folds import Split, split_cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = ROOT / "configs/hippocampus.yaml"
_NUM_JUDGED = 20


def train(trainer: Any, minutes: float, num_steps: int | None) -> int:  # noqa: ANN401  # untyped
    """Trains for so many steps, or else for so long, and returns the number of steps."""
    batches, others = trainer.get_dataloaders()
    trainer.network.train()
    steps, begun = 0, time.perf_counter()

    def share() -> float:
        return steps / num_steps if num_steps else (time.perf_counter() - begun) / (60 * minutes)

    while (done := share()) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - done) ** 0.9
        loss = trainer.train_step(next(batches))["loss"]
        steps += 1
        print(f"step {steps}, {done:.0%}: loss {float(loss):.3f}", file=sys.stderr, flush=True)
    trainer.network.eval()
    judged = [trainer.validation_step(next(others)) for _ in range(_NUM_JUDGED)]
    hits, false, missed = (sum(one[f"{name}_hard"] for one in judged) for name in ("tp", "fp", "fn"))
    print(f"Dice of validation patches: {2 * hits / (2 * hits + false + missed)}", file=sys.stderr)
    for loader in batches, others:
        loader._finish()
    return steps


def predict(trainer: Any, images: list[Path], folder: Path) -> None:  # noqa: ANN401  # untyped
    """Writes nnU-Net's label maps of the images, `<case>.nii.gz`, without mirrored copies."""
    trainer.set_deep_supervision_enabled(False)
    kind: Any = import_module("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor
    predictor = kind(use_mirroring=False, perform_everything_on_device=DEVICE.type == "cuda", device=DEVICE)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    names = [str(folder / path.name) for path in images]
    predictor.predict_from_files_sequential([[str(path)] for path in images], names)


def judge(masks: Path, references: Path, target: Path) -> None:
    """Writes the tables of `clinseg evaluate`: per case, and what was taken for what."""
    confusion = target.parent / CONFUSION / target.name
    confusion.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["evaluate", str(masks), str(references), "--config", str(CONFIG), "-o", str(target)]
    subprocess.run([sys.executable, "-m", "pipeline", *arguments], check=True)
    target.with_name(f"{target.stem}_confusion.csv").rename(confusion)


def measure(split: Split, minutes: float, num_steps: int | None, folder: Path) -> None:
    """Prepares, trains, predicts, judges and notes it in the ledger."""
    cases = [*split.training, *split.validation]
    plans = prepare_study(cases, folder)
    trainer = build_trainer(plans, folder, DEVICE)
    parts = {"train": split.training, "val": split.validation}
    splits = [{part: [case.id for case in own] for part, own in parts.items()}]
    (folder / "preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    trainer.initialize()
    begun = time.perf_counter()
    steps = train(trainer, minutes, num_steps)
    taken = round((time.perf_counter() - begun) / 60, 1)
    arm = f"nnunet-{minutes:g}"
    masks, references = folder / "masks", folder / "references"
    masks.mkdir()
    references.mkdir()
    for case in split.validation:
        assert case.label is not None
        (references / f"{case.id}.nii.gz").symlink_to(case.label.resolve())
    predict(trainer, [case.images[0] for case in split.validation], masks)
    judge(masks, references, RESULTS / arm / "fold-0.csv")
    with LEDGER.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(
            [arm, "fold-0", steps, minutes, taken, f"nnU-Net's {CONFIGURATION}"]
        )


def main() -> None:
    """Measures the first fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--steps", type=int, help="instead of the minutes, which are told all the same")
    arguments = parser.parse_args()
    job = segmentation_job(load_job(CONFIG))
    split = split_cases(read_manifest(job.data).cases, job.data)
    with TemporaryDirectory() as name:
        measure(split, arguments.minutes, arguments.steps, Path(name))


if __name__ == "__main__":
    main()
