"""What an enhancer costs: a step of its training against plain torch, and a whole head.

    OMP_NUM_THREADS=1 python benchmarks/enhancement_speed.py [--model MODEL]

The step: `clinseg train`'s loop with its patches, averages and record of losses, against the order of the
reference (both generators with their cycles, then both discriminators with their pools; Zhu et al. 2017) in
plain torch, with the same networks and losses on one resident batch. Both take turns in blocks; seconds are of
processor, so that other programs hardly change them, and ratios are those of two blocks in turn. The head:
`clinseg enhance` on a template of 197x233x189 voxels with noise put in, in a process of its own, with its
largest resident memory. The table goes to `docs/benchmarks/enhancement/speed.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import torch
from nilearn.datasets import load_mni152_template
from torch import Tensor, nn

from pipeline.config import EnhancementJob, load_job
from pipeline.data.enhancement_images import PairSampler
from pipeline.memory import format_size, freed_memory_kept
from pipeline.networks import build_discriminator, build_generator
from pipeline.signals import StopSignals
from pipeline.training.cyclegan import CycleGANTask
from pipeline.training.loop import Silence, fit
from pipeline.workflows.enhancement_material import load_enhancement_material
from transforms.corruption import RicianNoise
from transforms.keys import SOURCE, TARGET

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks/enhancement/speed.md"
JOB = ROOT / "configs/enhancement.yaml"
_HEAD = (197, 233, 189)
_CLASSIC = (
    *("network.noise_channels=0", "network.noise=free", "training.source_cycle_weight=10"),
    *("training.target_cycle_weight=10", "training.identity_weight=5"),
)
SETTINGS = {
    "the paper's: both cycles, identity": _CLASSIC,
    "the shipped job's: a random way back, one cycle": (),
}
Method = Callable[[int], None]


class Plain:
    """The reference's order of steps, as short as torch allows: no averages, nothing drawn but noise."""

    def __init__(self, job: EnhancementJob, source: Tensor, target: Tensor) -> None:
        network, self.section = job.network, job.training
        self.num_noise = network.noise_channels
        self.source, self.target = source, target
        self.forward, self.backward = build_generator(network, 1), build_generator(network, 1, self.num_noise)
        self.critics = [build_discriminator(network, 1) for _ in range(2)]
        self.pools: list[list[Tensor]] = [[], []]
        generators = [*self.forward.parameters(), *self.backward.parameters()]
        judges = [parameter for critic in self.critics for parameter in critic.parameters()]
        self.generators = torch.optim.Adam(generators, 1e-4, betas=(0.5, 0.999))
        self.judges = torch.optim.Adam(judges, 1e-4, betas=(0.5, 0.999))
        self.judged = judges

    def __call__(self, num_steps: int) -> None:
        """Takes that many steps."""
        with freed_memory_kept():
            for _ in range(num_steps):
                self._step()

    def _step(self) -> None:
        for parameter in self.judged:
            parameter.requires_grad_(False)
        self.generators.zero_grad(set_to_none=True)
        made_target, made_source = self.forward(self.source), self.backward(self._noisy(self.target))
        self._weigh(made_source, made_target).backward()
        self.generators.step()
        for parameter in self.judged:
            parameter.requires_grad_(True)
        self.judges.zero_grad(set_to_none=True)
        sides = zip(
            self.critics, self.pools, (self.source, self.target), (made_source, made_target), strict=True
        )
        for critic, pool, real, made in sides:
            shown = self._exchange(pool, made.detach())
            loss = (critic(real) - 1).square().mean() + critic(shown).square().mean()
            (loss / 2).backward()
        self.judges.step()

    def _weigh(self, made_source: Tensor, made_target: Tensor) -> Tensor:
        section, l1 = self.section, nn.functional.l1_loss
        source_critic, target_critic = self.critics
        loss = (source_critic(made_source) - 1).square().mean()
        loss = loss + (target_critic(made_target) - 1).square().mean()
        seen = made_source
        if self.num_noise:
            with torch.no_grad():
                seen = self.backward(self._noisy(self.target))
        loss = loss + section.target_cycle_weight * l1(self.forward(seen), self.target)
        if section.source_cycle_weight:
            back = self.backward(self._noisy(made_target))
            loss = loss + section.source_cycle_weight * l1(back, self.source)
        if section.identity_weight:
            same = l1(self.forward(self.target), self.target)
            same = same + l1(self.backward(self._noisy(self.source)), self.source)
            loss = loss + section.identity_weight * same
        return loss

    def _noisy(self, image: Tensor) -> Tensor:
        if not self.num_noise:
            return image
        return torch.cat((image, torch.randn(len(image), self.num_noise, *image.shape[2:])), dim=1)

    def _exchange(self, pool: list[Tensor], images: Tensor) -> Tensor:
        shown = []
        for image in images:
            if len(pool) < self.section.pool_size:
                pool.append(image.clone())
            elif random.random() < 0.5:
                place = random.randrange(len(pool))
                shown.append(pool[place])
                pool[place] = image.clone()
                continue
            shown.append(image)
        return torch.stack(shown)


def loop(job: EnhancementJob, sampler: PairSampler) -> Method:
    """The loop of `clinseg train` on its own patches."""
    task = CycleGANTask(job, 1, [], torch.device("cpu"))

    def train(num_steps: int) -> None:
        budget = {"epochs": 1, "minutes": None, "steps_per_epoch": num_steps}
        with freed_memory_kept():
            fit(task, sampler, job.training.model_copy(update=budget), Silence(StopSignals()))

    return train


def measure_steps(rounds: int, num_steps: int) -> list[str]:
    """Rows of the table of steps."""
    rows = []
    for name, settings in SETTINGS.items():
        job = load_job(JOB, list(settings))
        assert isinstance(job, EnhancementJob)
        material = load_enhancement_material(job)
        section = job.training
        sampler = PairSampler(
            material.sources,
            material.targets,
            section.patch_size,
            neighbours=0,
            mirror_axes=job.augmentation.mirror_axes,
            batch_size=section.batch_size,
            seed=0,
            is_paired=False,
        )
        batch = sampler.draw(0).tensors
        plain, ours = Plain(job, batch[SOURCE], batch[TARGET]), loop(job, sampler)
        for method in (plain, ours):
            method(5)
        times = []
        for number in range(rounds):
            # Who comes first changes, so that what a machine does meanwhile favours nobody.
            order = (plain, ours) if number % 2 else (ours, plain)
            spent = {method: clock(method, num_steps) for method in order}
            times.append((spent[plain], spent[ours]))
            print(name, times[-1], file=sys.stderr, flush=True)
        bare, whole = zip(*times, strict=True)
        shares = [a / b for a, b in times]
        rows.append(f"| {name} | {spread(bare)} | {spread(whole)} | {spread(shares)} |")
    return [
        f"| step, {rounds} blocks of {num_steps} | plain torch, s | `clinseg train`, s | throughput, share of plain |",
        "|---|---|---|---|",
        *rows,
    ]


def clock(method: Method, num_steps: int) -> float:
    start = time.process_time()
    method(num_steps)
    return (time.process_time() - start) / num_steps


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def measure_head(model: str) -> list[str]:
    """Rows of the table of heads: without a budget, and with one."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        template = load_mni152_template(resolution=1)
        image = torch.from_numpy(template.get_fdata(dtype=np.float32)).clamp_min(0)[None]
        assert image.shape[1:] == _HEAD
        noisy = RicianNoise(20.0)(image, (1.0, 1.0, 1.0), 0)[0].numpy()
        nib.save(nib.Nifti1Image(noisy, template.affine), folder / "head.nii.gz")
        for label, budget in (("what is free", []), ("1.5 GiB", ["--max-memory", "1.5GiB"])):
            out = folder / label.replace(" ", "-")
            command = [sys.executable, "-m", "pipeline", "enhance", model, str(folder / "head.nii.gz")]
            process = subprocess.Popen([*command, "-o", str(out), *budget], stdout=sys.stderr)
            start = time.perf_counter()
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            assert os.waitstatus_to_exitcode(status) == 0, "enhanced"
            plan = json.loads((out / "report.json").read_text())["cases"][0].get("plan", "")
            print(label, plan, file=sys.stderr, flush=True)
            spent = usage.ru_utime + usage.ru_stime
            rows.append(
                f"| {label} | {spent:.0f} s | {wall:.0f} s | {format_size(usage.ru_maxrss * 1024)} |"
            )
    shape = "x".join(map(str, _HEAD))
    return [f"| {shape}, allowed | processor | wall | peak memory |", "|---|---|---|---|", *rows]


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", help="an enhancer for the head; without one it is not measured")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = measure_steps(arguments.rounds, arguments.steps)
    page = [
        "# Enhancement: speed",
        f"One core of a shared machine, torch {torch.__version__}, made by `benchmarks/enhancement_speed.py`; "
        "processor seconds, median (smallest to largest). Networks, patches and batch are those of "
        "`configs/enhancement.yaml`.",
        "\n".join(steps),
    ]
    if arguments.model:
        page.append("\n".join(measure_head(arguments.model)))
    PAGE.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
