"""The training loop against the bare network and against its peers, in one run.

    python benchmarks/training.py -o docs/benchmarks/training.md [--only PART…] [--clock wall]

`loop`: our whole loop (patches, augmentation, averaged weights) as a share of the bare forward, backward and
step on a resident random batch. `layout`: the bare step with `channels_last_3d`, and compiled.
`precision`: the bare step of shipped jobs in float32 and in the type with fewer bits that this device learns
in. `gates`: what attention gates cost, in the bare step and in prediction. `beside`: the bare step where
other programs have cores, as OpenMP waits by itself and as it waits here. `peers`: the trainer of nnU-Net
and a loop as in MONAI's tutorials, each with its own patches, augmentation, loss and optimizer, and with our
network; nnU-Net is left out where `nnunetv2` is not installed (constrained, or it replaces torch). Times are
taken in rounds, every method once a round; ratios are those of a round. Beside other programs
`--clock processor` counts seconds of processor, workers included, which those hardly change; but it does not
see who waits for whom, so let threads wait for nobody then (`OMP_NUM_THREADS=1`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from monai import transforms as monai_transforms
from monai.data import CacheDataset, DataLoader
from monai.losses import DeepSupervisionLoss, DiceCELoss
from nnunet import CONFIGURATION, build_trainer, prepare_study
from torch import Tensor, nn

from pipeline.config import SegmentationJob, load_job, segmentation_job
from pipeline.data.cases import Case, read_manifest
from pipeline.data.patches import PatchSampler
from pipeline.data.prepared_cases import prepare_cases
from pipeline.inference.predictor import build_preprocessing
from pipeline.memory import freed_memory_kept
from pipeline.networks import build_network
from pipeline.precision import training_dtype
from pipeline.signals import StopSignals
from pipeline.training.loop import Silence, fit
from pipeline.training.segmentation import SegmentationTask
from transforms.keys import IMAGE, LABEL

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).parents[1]
NUM_CASES = 40
PER = 250
_WARMING_STEPS = 3
Method = Callable[[int], None]
Clock = Callable[[], float]


def reference_job(name: str = "hippocampus", **training: object) -> SegmentationJob:
    """A shipped job, with what the training section shall have instead."""
    job = segmentation_job(load_job(ROOT / f"configs/{name}.yaml"))
    section = job.training.model_copy(update=training)
    return job.model_copy(update={"training": section})


def load_cases(job: SegmentationJob) -> Sequence[Case]:
    return read_manifest(job.data).cases[:NUM_CASES]


def build_task(job: SegmentationJob) -> SegmentationTask:
    return SegmentationTask(job, read_manifest(job.data).contract, 1, [], DEVICE)


class Bare:
    """Forward, backward and step of a task's network on a batch that lies on the device."""

    def __init__(self, job: SegmentationJob) -> None:
        self.task = build_task(job)
        size = job.training.patch_size
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(job.training.batch_size, 1, *size, generator=generator)
        target = torch.randint(0, 3, (job.training.batch_size, *size), generator=generator)
        self.image, self.target = image.to(DEVICE), target.to(DEVICE)
        self.task.network.train()

    def __call__(self, num_steps: int) -> None:
        """Takes that many steps."""
        task = self.task
        with freed_memory_kept():
            for _ in range(num_steps):
                task.fitter.optimizer.zero_grad(set_to_none=True)
                with task.fitter.autocast():
                    loss = task.loss(task.forward_deep(self.image), self.target)
                task.fitter.scaler.scale(loss).backward()
                task.fitter.scaler.unscale_(task.fitter.optimizer)
                nn.utils.clip_grad_norm_(task.network.parameters(), 12)
                task.fitter.scaler.step(task.fitter.optimizer)
                task.fitter.scaler.update()


class Ours:
    """The loop of `clinseg train`."""

    def __init__(self, job: SegmentationJob, folder: Path) -> None:
        data = job.data.model_copy(update={"cache_dir": folder / "cache"})
        contract = read_manifest(job.data).contract
        chain = build_preprocessing(job.preprocessing, ())
        prepared = prepare_cases(load_cases(job), contract, 1, chain, data)
        self.task, self.section = build_task(job), job.training
        patch, source = job.training.patch_size, self.task.augmentation.source_size
        fraction = job.training.foreground_fraction
        self.sampler = PatchSampler(prepared, patch, source, job.training.batch_size, fraction, seed=0)

    def __call__(self, num_steps: int) -> None:
        """Trains for that many steps, from its first to its last."""
        budget = {"epochs": 1, "minutes": None, "steps_per_epoch": num_steps}
        with freed_memory_kept():
            fit(self.task, self.sampler, self.section.model_copy(update=budget), Silence(StopSignals()))


class Monai:
    """A loop as in MONAI's tutorials: cached cases, dictionary transforms, workers, losses read at once."""

    def __init__(self, job: SegmentationJob) -> None:
        cases = [{IMAGE: str(case.images[0]), LABEL: str(case.label)} for case in load_cases(job)]
        dataset = CacheDataset(cases, monai_chain(job), progress=False)
        self.loader: Any = DataLoader(
            dataset, batch_size=job.training.batch_size, shuffle=True, num_workers=2
        )
        self.network = build_network(job.network, 1, 3).to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3)
        self.loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, batch=True))

    def __call__(self, num_steps: int) -> None:
        """Takes that many steps, epoch after epoch."""
        total = 0.0
        self.network.train()
        for batch in self._iterate(num_steps):
            self.optimizer.zero_grad()
            logits = self.network.forward_deep(batch[IMAGE].as_tensor().to(DEVICE))
            loss = self.loss(logits, batch[LABEL].as_tensor().to(DEVICE))
            loss.backward()
            self.optimizer.step()
            total += loss.item()

    def _iterate(self, num_steps: int) -> Iterator[dict[str, Any]]:
        while True:
            for batch in self.loader:
                yield batch
                num_steps -= 1
                if not num_steps:
                    return


def monai_chain(job: SegmentationJob) -> monai_transforms.Compose:
    """Our preprocessing and augmentation in MONAI's dictionary transforms, as far as it has them."""
    both, size = [IMAGE, LABEL], job.training.patch_size
    a, t = job.augmentation, monai_transforms
    sigma = a.blur_sigma
    angle = a.rotation_degrees / 57.3
    return t.Compose(
        [
            t.LoadImaged(both, ensure_channel_first=True),
            t.Orientationd(both, axcodes="RAS", labels=None),
            t.NormalizeIntensityd(IMAGE),
            t.SpatialPadd(both, size),
            t.RandCropByPosNegLabeld(both, LABEL, size, pos=1, neg=2, num_samples=1),
            # It takes one probability for both, ours has one for each.
            t.RandAffined(
                both,
                prob=0.75,
                rotate_range=[angle] * 3,
                scale_range=[(low - 1, high - 1) for low, high in [a.scaling_range] * 3],
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            t.RandGaussianNoised(IMAGE, prob=a.noise_probability, std=a.noise_deviation),
            t.RandGaussianSmoothd(IMAGE, sigma, sigma, sigma, prob=a.blur_probability),
            t.RandScaleIntensityd(IMAGE, 0.25, prob=a.brightness_probability),
            t.RandScaleIntensityFixedMeand(IMAGE, factors=0.25, prob=a.contrast_probability),
            t.RandAdjustContrastd(IMAGE, prob=a.gamma_probability, gamma=a.gamma_range),
        ]
    )


class DeepNetwork(nn.Module):
    """Our network, which nnU-Net's trainer calls for all its outputs at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of every supervised level."""
        deep: list[Tensor] = self.network.forward_deep(image)  # type: ignore[operator]  # a module, to mypy
        return deep


class NnUnet:
    """nnU-Net's trainer: its data, workers, augmentation, loss and optimizer, with our network."""

    def __init__(self, job: SegmentationJob, folder: Path) -> None:
        plans = prepare_study(load_cases(job), folder)
        plans["configurations"][CONFIGURATION]["patch_size"] = list(job.training.patch_size)
        plans["configurations"][CONFIGURATION]["batch_size"] = job.training.batch_size
        self.trainer = build_trainer(plans, folder, DEVICE)
        network = DeepNetwork(build_network(job.network, 1, 3))
        self.trainer.build_network_architecture = lambda plans_manager, *_: network
        self.trainer.initialize()
        self.batches, self.others = self.trainer.get_dataloaders()
        self.trainer.network.train()

    def __call__(self, num_steps: int) -> None:
        """Takes that many steps."""
        for _ in range(num_steps):
            self.trainer.train_step(next(self.batches))

    def close(self) -> None:
        """Ends its workers."""
        for loader in self.batches, self.others:
            loader._finish()


def read_wall() -> float:
    """Seconds, with all done that was begun."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def read_processor() -> float:
    """Seconds of processor by this process and its workers."""
    process = psutil.Process()
    spent = [process.cpu_times(), *(child.cpu_times() for child in process.children(recursive=True))]
    # Children that have ended are counted by their parent.
    own = spent[0].children_user + spent[0].children_system
    return own + sum(times.user + times.system for times in spent)


CLOCKS: Mapping[str, Clock] = {"wall": read_wall, "processor": read_processor}


def clock(methods: Mapping[str, Method], rounds: int, num_steps: int, read: Clock) -> dict[str, list[float]]:
    """Seconds per step of every method in every round, after a few that warm up."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(-1, rounds):
        for name, method in methods.items():
            start = read()
            method(num_steps if number >= 0 else _WARMING_STEPS)
            seconds = (read() - start) / num_steps
            print(f"  round {number + 1}: {name} {seconds:.3f} s a step", file=sys.stderr, flush=True)
            if number >= 0:
                times[name].append(seconds)
    return times


def spread(values: Sequence[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})"


def measure_loop(rounds: int, num_steps: int, read: Clock) -> list[str]:
    job = reference_job()
    with TemporaryDirectory() as name:
        methods: dict[str, Method] = {"bare": Bare(job), "ours": Ours(job, Path(name))}
        times = clock(methods, rounds, num_steps, read)
    share = [bare / ours for bare, ours in zip(times["bare"], times["ours"], strict=True)]
    return [
        "| hippocampus job | bare step | our loop | our loop's throughput as a share of the bare one's |",
        "|---|---|---|---|",
        f"| seconds a step | {spread(times['bare'])} | {spread(times['ours'])} | {spread(share)} |",
    ]


def measure_layout(rounds: int, num_steps: int, read: Clock) -> list[str]:
    plain, last, compiled = (Bare(reference_job(compile=c)) for c in (False, False, True))
    last.image = last.image.to(memory_format=torch.channels_last_3d)
    # torch's own types forget that a module takes a layout alone.
    last.task.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    start = read()
    compiled(1)
    compiling = read() - start
    methods: dict[str, Method] = {"plain": plain, "channels last": last, "compiled": compiled}
    times = clock(methods, rounds, num_steps, read)
    ratios = {name: [a / b for a, b in zip(times[name], times["plain"], strict=True)] for name in times}
    return [
        "| bare step | seconds | ratio to the plain one |",
        "|---|---|---|",
        *(f"| {name} | {spread(times[name])} | {spread(ratios[name])} |" for name in times),
        f"\nCompiling took {compiling:.0f} s.",
    ]


def measure_precision(rounds: int, num_steps: int, read: Clock) -> list[str]:
    few = str(training_dtype(DEVICE, mixed=True)).removeprefix("torch.")
    lines = [f"| bare step of | float32 | {few} | ratio |", "|---|---|---|---|"]
    for name in ("hippocampus", "openkbp"):
        jobs = (reference_job(name, mixed_precision=mixed) for mixed in (False, True))
        steps: dict[str, Method] = {
            f"{name} in {t}": Bare(job) for t, job in zip(("float32", few), jobs, strict=True)
        }
        full, mixed = clock(steps, rounds, num_steps, read).values()
        ratio = [b / a for a, b in zip(full, mixed, strict=True)]
        lines.append(f"| {name} | {spread(full)} | {spread(mixed)} | {spread(ratio)} |")
    return lines


def measure_gates(rounds: int, num_steps: int, read: Clock) -> list[str]:
    job = reference_job()
    steps = {"on": Bare(job), "off": Bare(with_gates(job, False))}
    forward = {name: partial(predict_windows, step) for name, step in steps.items()}
    step_times = clock({f"gates {name}": step for name, step in steps.items()}, rounds, num_steps, read)
    times = clock({f"forward, gates {name}": one for name, one in forward.items()}, rounds, num_steps, read)
    lines = ["| gates | parameters | seconds a step | prediction alone |", "|---|---|---|---|"]
    columns = list(step_times.values()), list(times.values())
    for number, (name, step) in enumerate(steps.items()):
        parameters = sum(parameter.numel() for parameter in step.task.network.parameters())
        lines.append(f"| {name} | {parameters:,} | {' | '.join(spread(c[number]) for c in columns)} |")
    ratios = [[a / b for a, b in zip(*column, strict=True)] for column in columns]
    return [*lines, f"| on / off | | {' | '.join(map(spread, ratios))} |"]


def with_gates(job: SegmentationJob, is_on: bool) -> SegmentationJob:
    return job.model_copy(update={"network": job.network.model_copy(update={"attention_gates": is_on})})


def predict_windows(step: Bare, num_steps: int) -> None:
    """Applies a network to the batch that often, in 32 bits as `clinseg predict` does on a CPU."""
    with torch.inference_mode(), freed_memory_kept():
        for _ in range(num_steps):
            step.task.network(step.image)


def measure_beside(rounds: int, num_steps: int, _: Clock) -> list[str]:
    """On the wall alone, which shows who waits for whom."""
    as_here = dict(os.environ)  # `pipeline` has added how long to spin, for processes begun from here on
    by_itself = {name: value for name, value in as_here.items() if name != "GOMP_SPINCOUNT"}
    lines = [
        "| busy programs beside | OpenMP by itself | as `clinseg` has it wait | ratio |",
        "|---|---|---|---|",
    ]
    for num_busy in range(torch.get_num_threads() + 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_busy)]
        try:
            pairs = [[step_elsewhere(e, num_steps) for e in (by_itself, as_here)] for _ in range(rounds)]
        finally:
            for one in busy:
                one.kill()
        spun, waited = ([pair[number] for pair in pairs] for number in (0, 1))
        ratio = [here / alone for alone, here in pairs]
        lines.append(f"| {num_busy} | {spread(spun)} | {spread(waited)} | {spread(ratio)} |")
    return lines


def step_elsewhere(environment: Mapping[str, str], num_steps: int) -> float:
    """Seconds of a bare step in a process of its own: OpenMP reads the environment once."""
    code = (
        "from training import Bare, read_wall, reference_job; step = Bare(reference_job()); "
        f"step({_WARMING_STEPS}); start = read_wall(); step({num_steps}); print(read_wall() - start)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=dict(environment), capture_output=True, text=True, check=True
    )
    return float(done.stdout) / num_steps


def measure_peers(rounds: int, num_steps: int, read: Clock) -> list[str]:
    job = reference_job()
    with TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        methods: dict[str, Method] = {
            "ours": Ours(job, Path(name)),
            "ours, SGD as in nnU-Net": Ours(reference_job(optimizer="sgd"), Path(name)),
            "MONAI's tutorial loop": Monai(job),
        }
        theirs = NnUnet(job, Path(name)) if find_spec("nnunetv2") else None
        if theirs is not None:
            methods[f"nnU-Net {metadata.version('nnunetv2')}'s trainer"] = theirs
        times = clock(methods, rounds, num_steps, read)
        if theirs is not None:
            theirs.close()
    ratios = {name: [b / a for a, b in zip(times["ours"], times[name], strict=True)] for name in times}
    return [
        f"| same network, patch and batch | seconds per {PER} steps | ratio to ours |",
        "|---|---|---|",
        *(f"| {n} | {spread([PER * t for t in times[n]])} | {spread(ratios[n])} |" for n in times),
        *([] if theirs is not None else ["| nnU-Net's trainer | not measured: not installed | |"]),
    ]


PARTS = {
    "loop": measure_loop,
    "layout": measure_layout,
    "precision": measure_precision,
    "gates": measure_gates,
    "beside": measure_beside,
    "peers": measure_peers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The training loop against its peers.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/benchmarks/training.md"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    settings = (arguments.rounds, arguments.steps, CLOCKS[arguments.clock])
    measure = {part: partial(PARTS[part], *settings) for part in arguments.only}
    is_gpu = DEVICE.type == "cuda"
    machine = torch.cuda.get_device_name() if is_gpu else f"{torch.get_num_threads()} CPU cores"
    command = f"--only {' '.join(arguments.only)} --rounds {arguments.rounds} --steps {arguments.steps} "
    command += f"--clock {arguments.clock}"
    page = [
        "# The training loop against the bare network and its peers",
        f"Measured on {machine} with torch {torch.__version__} and MONAI {metadata.version('monai')} by "
        f"`python benchmarks/training.py {command}`, on {NUM_CASES} cases of the hippocampus; median "
        "(smallest to largest)." + ("" if is_gpu else " On a GPU: not measured."),
        *("\n".join(part()) for part in measure.values()),
    ]
    arguments.output.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
