"""What a segmentation's encoder is worth to a classifier: the adrenal job from scratch and from a model.

    python benchmarks/transfer.py MODEL [--steps N]
    python benchmarks/transfer.py --tables

MODEL is a checkpoint of `configs/hippocampus.yaml`. Every training is one `clinseg train` of
`configs/adrenal.yaml` on 5, 25 or 100 % of the training images, the same ones for both arms of a seed, drawn
class by class; all else is the shipped job. Answers go to `docs/benchmarks/transfer/`, and a training is not
made again while its file is there. AUCs are of the file's own validation images, the mean of the seeds;
intervals and p are DeLong's, over cases, with the seeds' terms averaged.

The budget is 3 minutes, or with `--steps`, where other programs run beside, what an idle machine makes
in them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pipeline.config import classification_job, load_job
from pipeline.discrimination import compare_auc, estimate_auc
from pipeline.inference.class_table import read_class_table
from pipeline.tracking import find_run

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "adrenal.yaml"
TABLES = ROOT / "docs" / "benchmarks"
ANSWERS = TABLES / "transfer"
SHARES, SEEDS, ARMS = (5, 25, 100), (0, 1, 2), ("scratch", "encoder")
MINUTES = 3


def write_share(source: Path, share: int, seed: int, target: Path) -> int:
    """Writes the archive with a share of its training images, at least one per class; returns how many."""
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name.startswith(("train_", "val_"))}
    labels = arrays["train_labels"][:, 0]
    draw = np.random.default_rng(seed)
    kept = [
        draw.permutation(np.flatnonzero(labels == label))[
            : max(1, round(share / 100 * (labels == label).sum()))
        ]
        for label in np.unique(labels)
    ]
    rows = np.sort(np.concatenate(kept))
    for name in ("train_images", "train_labels"):
        arrays[name] = arrays[name][rows]
    np.savez(target, allow_pickle=False, **arrays)
    return len(rows)


def train(arm: str, share: int, seed: int, model: Path, steps: int | None) -> None:
    """Trains in a folder of its own and keeps the answers."""
    job = classification_job(load_job(CONFIG))
    budget = [f"training.minutes={MINUTES}"]
    if steps is not None:
        epochs = max(1, round(steps / job.training.steps_per_epoch))
        budget = ["training.minutes=null", f"training.epochs={epochs}"]
    with TemporaryDirectory() as folder:
        manifest = Path(folder) / "images.npz"
        number = write_share(Path(job.data.manifest), share, seed, manifest)
        settings = [*budget, f"data.manifest={manifest}", f"training.seed={seed}"]
        if arm == "encoder":
            settings.append(f"training.start_from={model}")
        print(f"{arm}, {share} %, seed {seed}: {number} training images", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pipeline", "train", str(CONFIG)]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, cwd=folder)
        run = find_run("latest", Path(folder) / "mlruns")
        ANSWERS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.path / "cases.csv", answers_of(arm, share, seed))


def answers_of(arm: str, share: int, seed: int) -> Path:
    return ANSWERS / f"{arm}-{share}-seed-{seed}.csv"


def done_seeds(share: int) -> list[int]:
    """Seeds of which both arms have answered."""
    return [seed for seed in SEEDS if all(answers_of(arm, share, seed).is_file() for arm in ARMS)]


def read_scores(arm: str, share: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probability of hyperplasia by seed and case, `(S, N)`, and which have it."""
    tables = [read_class_table(answers_of(arm, share, seed)) for seed in done_seeds(share)]
    assert all(table.cases == tables[0].cases for table in tables)
    assert tables[0].truth is not None
    positive = np.array([names == (tables[0].classes[1],) for names in tables[0].truth])
    return np.stack([table.probabilities[:, 1] for table in tables]), positive


def rows() -> Iterator[str]:
    for share in SHARES:
        if not (seeds := done_seeds(share)):
            yield f"| {share} % | 0 | not measured | not measured | | |"
            continue
        scratch, encoder = (read_scores(arm, share) for arm in ARMS)
        positive = scratch[1]
        each = np.repeat(positive[:, None], len(seeds), axis=1)
        figures = [estimate_auc(scores.T, each) for scores, _ in (scratch, encoder)]
        difference = compare_auc(scratch[0][..., None], encoder[0][..., None], positive[:, None])
        assert difference is not None
        cells = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in figures if one is not None]
        told = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
        yield f"| {share} % | {len(seeds)} | {' | '.join(cells)} | {told} | {difference.p:.3f} |"


def write_page() -> None:
    lines = [
        "# A segmentation's encoder as the start of a classifier",
        "",
        "`python benchmarks/transfer.py MODEL`: `configs/adrenal.yaml`, from scratch and from the encoder of",
        "an attention U-Net trained on `configs/hippocampus.yaml`. AUC on the validation images of the file,",
        "mean of the seeds (DeLong's 95 % interval over cases); every answer lies in `transfer/`.",
        "",
        (ANSWERS / "remarks.md").read_text(encoding="utf-8"),
        "| training images | seeds | from scratch | from the encoder | difference | p |",
        "|---|---|---|---|---|---|",
        *rows(),
        "",
    ]
    (TABLES / "transfer.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Trains what is not there yet, and writes the page after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="checkpoint to start from")
    parser.add_argument("--steps", type=int, help="of each training, in place of three minutes")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.model is None and not arguments.tables:
        parser.error("name the checkpoint to start from")
    if arguments.model is not None:
        for seed in SEEDS:
            for share in SHARES:
                for arm in ARMS:
                    if not answers_of(arm, share, seed).is_file():
                        train(arm, share, seed, arguments.model.resolve(), arguments.steps)
                        write_page()
    write_page()


if __name__ == "__main__":
    main()
