"""The shipped classification jobs against MONAI's networks in its tutorial's loop, the same minutes.

    python benchmarks/classification.py -o PAGE [--only pneumonia adrenal] [--minutes N] [--rates A B C]

Ours is `clinseg train` as a user runs it, validations within its budget. The peers, DenseNet121 and
ResNet-18, are trained as `mednist_tutorial.ipynb` of MONAI's tutorials trains: Adam, cross-entropy, its
random rotation, flip and zoom by MONAI's DataLoader, the epoch with the best validation AUC kept; their
validations do not count as time. They see 32 voxels along each axis, the least that DenseNet121 takes.
Where other programs run beside, `--rates` gives each method, ours first, the images that an idle machine
trains in its minutes instead: so many per second. Figures are of the validation images, AUC with DeLong's
interval; accuracy of the peers is that of the most probable class.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from monai.data import DataLoader
from monai.networks.nets import DenseNet121, resnet18
from monai.transforms import Compose, EnsureType, RandFlip, RandRotate, RandZoom, Resize, ScaleIntensity
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import ClassificationJob, classification_job, load_job
from pipeline.data.class_inputs import read_references
from pipeline.discrimination import judge_classes
from pipeline.inference.class_table import class_targets, read_class_table
from pipeline.statistics import Estimate
from pipeline.tracking import find_run, read_metrics

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
JOBS = ("pneumonia", "adrenal")
_BATCH = 64
_SIDE = 32


@dataclass(frozen=True)
class Result:
    """What a training reached.

    Attributes:
        name: Of the method.
        figures: On the validation images.
        images_per_second: In training.
    """

    name: str
    figures: dict[str, Estimate]
    images_per_second: float

    def __str__(self) -> str:
        """A row of the table."""
        cells = [told(self.figures[name]) for name in ("auc", "accuracy", "balanced_accuracy")]
        return f"| {self.name} | {' | '.join(cells)} | {self.images_per_second:.0f} |"


@dataclass(frozen=True)
class Budget:
    """How long a method may train.

    Attributes:
        minutes: On an idle machine.
        rate: Images per second there; None to look at the clock.
    """

    minutes: float
    rate: float | None

    @property
    def images(self) -> float:
        """How many may be seen."""
        return math.inf if self.rate is None else 60 * self.minutes * self.rate

    @property
    def seconds(self) -> float:
        """How long it may take."""
        return 60 * self.minutes if self.rate is None else math.inf


def told(figure: Estimate) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


def train_ours(config: Path, job: ClassificationJob, budget: Budget) -> Result:
    """`clinseg train` in a folder of its own."""
    settings = [f"data.manifest={job.data.manifest}", f"training.minutes={budget.minutes}"]
    per_epoch = job.training.steps_per_epoch * job.training.batch_size
    if budget.rate is not None:
        epochs = round(budget.images / per_epoch)
        settings[1:] = ["training.minutes=null", f"training.epochs={epochs}"]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline", "train", str(config)]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run(command, check=True, cwd=folder)
        run = find_run("latest", Path(folder) / "mlruns")
        table = read_class_table(run.path / "cases.csv")
        num_epochs = len(read_metrics(run)["training/loss"])
    rate = budget.rate or num_epochs * per_epoch / (60 * budget.minutes)
    known = read_references(Path(f"{job.data.manifest}#val"), table.classes, is_multi_label=False)
    truth = [known[case.removeprefix("val-")] for case in table.cases]
    return Result("clinseg", judge(table.probabilities, table.predicted, truth, table.classes), rate)


def judge(
    probabilities: NDArray[np.float64],
    predicted: Sequence[Sequence[str]],
    truth: Sequence[Sequence[str]],
    classes: Sequence[str],
) -> dict[str, Estimate]:
    answers, targets = (class_targets(names, classes, is_multi_label=False) for names in (predicted, truth))
    return judge_classes(probabilities, answers, targets, classes, multi_label=False)


def train_peer(
    name: str, build: Callable[[int], nn.Module], job: ClassificationJob, budget: Budget
) -> Result:
    """The tutorial's loop."""
    assert job.data.classes is not None
    torch.manual_seed(0)
    with np.load(job.data.manifest, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    resize = Resize((_SIDE,) * job.network.dimensions)
    chain = Compose(
        [
            resize,
            ScaleIntensity(),
            RandRotate(range_x=math.pi / 12, prob=0.5, keep_size=True),
            RandFlip(spatial_axis=0, prob=0.5),
            RandZoom(min_zoom=0.9, max_zoom=1.1, prob=0.5),
            EnsureType(track_meta=False),
        ]
    )
    still = Compose([resize, ScaleIntensity(), EnsureType(track_meta=False)])
    images = arrays["train_images"][:, None].astype(np.float32)
    labels = arrays["train_labels"][:, 0].astype(np.int64)
    pairs = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
    loader = DataLoader(Images(pairs, chain), batch_size=_BATCH, shuffle=True)
    held_out = torch.stack([still(image) for image in arrays["val_images"][:, None].astype(np.float32)])
    truth = [(job.data.classes[label],) for label in arrays["val_labels"][:, 0]]
    network = build(job.network.dimensions).to(DEVICE)
    optimizer, loss = torch.optim.Adam(network.parameters(), 1e-3), nn.CrossEntropyLoss()
    best: dict[str, Estimate] = {}
    num_images, seconds = 0, 0.0
    while seconds < budget.seconds and num_images < budget.images:
        network.train()
        start = time.monotonic()
        for image, label in loader:
            optimizer.zero_grad()
            loss(network(image.to(DEVICE)), label.to(DEVICE)).backward()
            optimizer.step()
            num_images += len(image)
            if seconds + time.monotonic() - start >= budget.seconds or num_images >= budget.images:
                break
        seconds += time.monotonic() - start
        figures = judge_network(network, held_out, truth, job.data.classes)
        if not best or figures["auc"].value > best["auc"].value:
            best = figures
    return Result(name, best, budget.rate or num_images / seconds)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """As the tutorial's data set: an image changed at random, and its class."""

    def __init__(self, pairs: Sequence[tuple[NDArray[np.float32], int]], chain: Compose) -> None:
        self.pairs, self.chain = pairs, chain

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.pairs[index]
        return self.chain(image), label


@torch.inference_mode()
def judge_network(
    network: nn.Module, images: Tensor, truth: Sequence[Sequence[str]], classes: Sequence[str]
) -> dict[str, Estimate]:
    network.eval()
    logits = torch.cat([network(batch.to(DEVICE)).cpu() for batch in images.split(_BATCH)])
    predicted = [(classes[index],) for index in logits.argmax(1).tolist()]
    return judge(logits.double().softmax(1).numpy(), predicted, truth, classes)


def measure(name: str, minutes: float | None, rates: Sequence[float | None]) -> list[str]:
    config = ROOT / "configs" / f"{name}.yaml"
    job = classification_job(load_job(config))
    allowed = minutes or job.training.minutes
    assert allowed is not None
    peers: dict[str, Callable[[int], nn.Module]] = {
        "MONAI DenseNet121": lambda dims: DenseNet121(spatial_dims=dims, in_channels=1, out_channels=2),
        "MONAI ResNet-18": lambda dims: resnet18(spatial_dims=dims, n_input_channels=1, num_classes=2),
    }
    ours, *others = (Budget(allowed, rate) for rate in rates)
    rows = [train_ours(config, job, ours)]
    rows += [
        train_peer(peer, build, job, budget)
        for (peer, build), budget in zip(peers.items(), others, strict=True)
    ]
    return [
        f"`configs/{name}.yaml`, {allowed:g} minutes each, one seed:",
        "",
        "| method | AUC | accuracy | balanced accuracy | training images/s |",
        "|---|---|---|---|---|",
        *map(str, rows),
        "",
    ]


def main() -> None:
    """Trains all and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/benchmarks/classification.md"))
    parser.add_argument("--only", nargs="+", choices=JOBS, default=[*JOBS])
    parser.add_argument("--minutes", type=float, help="of each training; else those of the config")
    parser.add_argument("--rates", nargs=3, type=float, default=[None] * 3, help="images/s when idle")
    arguments = parser.parse_args()
    machine = (
        torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    )
    page = [
        "# Classification against MONAI's networks in its tutorial's loop",
        "",
        f"Measured on {machine} with torch {torch.__version__} by",
        f"`python benchmarks/classification.py {' '.join(sys.argv[1:])}`;",
        "value (95 % interval) on the validation images, by which each method also chose what it kept.",
        "",
        *(line for name in arguments.only for line in measure(name, arguments.minutes, arguments.rates)),
    ]
    arguments.output.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
