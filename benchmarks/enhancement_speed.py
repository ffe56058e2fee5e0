"""What an enhancer costs: a step of its training against plain torch, and a whole head.

    OMP_NUM_THREADS=1 python benchmarks/enhancement_speed.py [--model MODEL]

The step: `clinseg train`'s loop with its patches, averages and record of losses, against the order of the
reference (both generators with their cycles, then both discriminators with their pools; Zhu et al. 2017) in
plain torch, with the same networks and losses on one resident batch. After every step of the loop there is
one of plain torch; seconds are of processor, so that other programs change them little, and a ratio is that
of two steps in turn. The head: `clinseg enhance` on a template of 197x233x189 voxels with noise put in, in a
process of its own, with its largest resident memory. Tables are those of
`docs/benchmarks/enhancement/speed.md`; rows of the head that stand there are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import torch
from nilearn.datasets import load_mni152_template
from torch import Tensor, nn

from pipeline.checkpoint import write_checkpoint
from pipeline.config import EnhancementJob, load_job
from pipeline.data.enhancement_images import PairSampler
from pipeline.memory import format_size, freed_memory_kept
from pipeline.networks import build_discriminator, build_generator
from pipeline.signals import StopSignals
from pipeline.training.cyclegan import CycleGANTask
from pipeline.training.loop import Silence, fit
from pipeline.workflows.runs.models import load_model
from pipeline.workflows.tasks.enhancement_material import load_enhancement_material
from transforms.corruption import RicianNoise
from transforms.keys import SOURCE, TARGET

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/benchmarks/enhancement/speed.md"
JOB = ROOT / "configs/enhancement.yaml"
_HEAD = (197, 233, 189)
_WARMING_STEPS = 5
_CLASSIC = (
    *("network.noise_channels=0", "network.noise=free", "training.source_cycle_weight=10"),
    *("training.target_cycle_weight=10", "training.identity_weight=5"),
)
SETTINGS = {
    "the paper's: both cycles, identity": _CLASSIC,
    "the shipped job's: a random way back, one cycle": (),
}


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

    def step(self) -> None:
        """Generators, then discriminators."""
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
        loss: Tensor = (source_critic(made_source) - 1).square().mean()
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
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(len(pool), ()))
                shown.append(pool[place])
                pool[place] = image.clone()
                continue
            shown.append(image)
        return torch.stack(shown)


class Turns(Silence):
    """Lets plain torch take a step after each of the loop's, and clocks both."""

    def __init__(self, plain: Plain) -> None:
        super().__init__(StopSignals())
        self.plain = plain
        self.seconds: list[tuple[float, float]] = []
        self._since = time.process_time()

    def advance(self, progress: float, epoch: int) -> None:
        """The loop has taken a step."""
        ours = time.process_time()
        self.plain.step()
        plain = time.process_time()
        self.seconds.append((plain - ours, ours - self._since))
        self._since = plain


def measure_steps(num_steps: int) -> list[str]:
    """The table of steps."""
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
        turns = Turns(Plain(job, batch[SOURCE], batch[TARGET]))
        budget = {"epochs": 1, "minutes": None, "steps_per_epoch": _WARMING_STEPS + num_steps}
        with freed_memory_kept():
            task = CycleGANTask(job, 1, [], torch.device("cpu"))
            fit(task, sampler, section.model_copy(update=budget), turns)
        told = turns.seconds[_WARMING_STEPS:]
        columns = (*zip(*told, strict=True), [plain / ours for plain, ours in told])
        rows.append(f"| {name} | {' | '.join(map(spread, columns))} |")
        print(rows[-1], file=sys.stderr, flush=True)
    head = f"| {num_steps} steps each | plain torch, s | `clinseg train`, s | throughput, share of plain |"
    return [head, "|---|---|---|---|", *rows]


def spread(values: Sequence[float]) -> str:
    """Median and middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def measure_head(model: str, *, flips: bool) -> str:
    """The row of a head, enhanced by the model with or without mirrored copies."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = load_model(model)
        inference = checkpoint.job["inference"] | {"flips": flips}
        write_checkpoint(
            folder / "model.safetensors", replace(checkpoint, job=checkpoint.job | {"inference": inference})
        )
        template = load_mni152_template(resolution=1)
        image = torch.from_numpy(template.get_fdata(dtype=np.float32)).clamp_min(0)[None]
        assert image.shape[1:] == _HEAD
        noisy = RicianNoise(20.0)(image, (1.0, 1.0, 1.0), 0)[0].numpy()
        nib.save(nib.Nifti1Image(noisy, template.affine), folder / "head.nii.gz")
        command = [sys.executable, "-m", "pipeline", "enhance", str(folder / "model.safetensors")]
        command += [str(folder / "head.nii.gz"), "-o", str(folder / "out")]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        assert os.waitstatus_to_exitcode(status) == 0, "enhanced"
        (case,) = json.loads((folder / "out/report.json").read_text())["cases"]
    spent, peak = usage.ru_utime + usage.ru_stime, format_size(usage.ru_maxrss * 1024)
    label = "mirrored copies" if flips else "no mirrored copies"
    return f"| {label}, {case['num_windows']:,} windows | {spent:.0f} s | {wall:.0f} s | {peak} |"


def main() -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--model", help="an enhancer for the head, which is then measured instead of the step"
    )
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    title = "# Enhancement: speed"
    about = (
        f"One core of a shared machine, torch {torch.__version__}, by `benchmarks/enhancement_speed.py`; "
        "networks, patches and batch are those of `configs/enhancement.yaml`. Steps: processor seconds, "
        "median (middle half)."
    )
    known = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    # Tables stand apart by empty lines: the step's, then the head's.
    tables = [part.split("\n") for part in known.split("\n\n") if "|---" in part]
    steps = [row for table in tables if "plain torch" in table[0] for row in table if row]
    head = [row for table in tables if "plain torch" not in table[0] for row in table if row]

    def write() -> None:
        parts = [title, about, "\n".join(steps), "\n".join(head)]
        PAGE.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")

    if arguments.model:
        head = head or [
            f"| {'x'.join(map(str, _HEAD))} | processor | wall | peak memory |",
            "|---|---|---|---|",
        ]
        for flips in (False, True):
            if not any(row.startswith("| mirrored" if flips else "| no mirrored") for row in head):
                head.append(measure_head(arguments.model, flips=flips))
                write()
    else:
        steps = measure_steps(arguments.steps)
        write()
    print(f"{PAGE} is written")


if __name__ == "__main__":
    main()
