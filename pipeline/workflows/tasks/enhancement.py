"""Enhancement's part in a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from pipeline.checkpoint import read_checkpoint
from pipeline.config import EnhancementJob
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.enhancement_images import PairSampler
from pipeline.data.enhancement_study import read_enhancement_study
from pipeline.data.folds import Split
from pipeline.errors import ConfigError, Fault
from pipeline.report.enhancement import draw_sheet
from pipeline.tracking import Record, RunFolder
from pipeline.training.cyclegan import CycleGANTask
from pipeline.training.distributed import World
from pipeline.training.supervised import SupervisedEnhancementTask
from pipeline.workflows.downstream import find_segmenter
from pipeline.workflows.runs.joining import write_ensemble
from pipeline.workflows.runs.models import BEST
from pipeline.workflows.runs.recording import record_best
from pipeline.workflows.runs.starting import Start
from pipeline.workflows.tasks.columns import Column, Judgement, Part
from pipeline.workflows.tasks.enhancement_checks import check_enhancement
from pipeline.workflows.tasks.enhancement_judging import gather_figures, gather_remarks, judge_enhancer
from pipeline.workflows.tasks.enhancement_material import EnhancementMaterial, load_enhancement_material

EnhancementTask = CycleGANTask | SupervisedEnhancementTask
_TASKS: Mapping[str, type[EnhancementTask]] = {
    "cyclegan": CycleGANTask,
    "supervised": SupervisedEnhancementTask,
}


class EnhancementColumn(Column[EnhancementJob, EnhancementMaterial, EnhancementTask]):
    """See `Column`."""

    command = "enhance"
    metric = None
    score = "best/ssim_after"

    def read_cases(self, job: EnhancementJob) -> Sequence[Case]:
        """See `Column`."""
        return read_enhancement_study(job.data).cases

    def check(self, job: EnhancementJob, splits: Sequence[Split], on_case: Callable[[], None]) -> CheckReport:
        """See `Column`."""
        return check_enhancement(job, splits, on_case)

    def load_material(self, job: EnhancementJob, run: RunFolder | None = None) -> EnhancementMaterial:
        """See `Column`."""
        if job.inference.downstream is not None:  # known before the training, not found missing behind it
            num_channels = len(read_enhancement_study(job.data).channels)
            name, uri = str(job.inference.downstream), job.tracking.uri
            find_segmenter("inference.downstream", name, uri, num_channels)
        return load_enhancement_material(job)

    def build_task(
        self,
        job: EnhancementJob,
        material: EnhancementMaterial,
        device: torch.device,
        start: Start | None,
        world: World,
    ) -> EnhancementTask:
        """See `Column`."""
        if world.size > 1:
            message = "an enhancer is trained in one process; leave torchrun out"
            raise ConfigError(Fault("task", "one-process", message))
        return _TASKS[job.training.method](job, len(material.channels), material.validation, device)

    def build_sampler(
        self, job: EnhancementJob, material: EnhancementMaterial, task: EnhancementTask
    ) -> PairSampler:
        """See `Column`."""
        return _build_sampler(job, material, job.training.batch_size)

    def illustrate(
        self,
        record: Record,
        job: EnhancementJob,
        material: EnhancementMaterial,
        task: EnhancementTask,
        epoch: int,
    ) -> None:
        """The same patches whenever it validates: what is made of them, and of that again."""
        num = job.tracking.overlays
        if not num or epoch % job.training.validate_every:
            return
        batch = _build_sampler(job, material, num).draw(0)
        pictures = task.render(batch)
        rows = [
            {name: _middle_slice(image[sample]) for name, image in pictures.items()} for sample in range(num)
        ]
        path = record.folder / "samples" / f"epoch-{epoch:05d}.png"
        note = "Patches of training cases, their middle slice. Change: red is brighter, blue darker."
        draw_sheet(path, rows, f"{record.name}, epoch {epoch}", note)
        record.log_artifact(path, "samples")

    def judge(
        self, record: Record, job: EnhancementJob, material: EnhancementMaterial, device: torch.device
    ) -> Judgement:
        """See `Column`."""
        figures = judge_enhancer(record, job, material, device)
        return Judgement(figures=figures, remarks=gather_remarks([record.run]))

    def summarise_fold(self, part: Part) -> dict[str, float]:
        """See `Column`."""
        figures = gather_figures([part.run])
        return {f"folds/{name}": figure.value for name, figure in figures.items()}

    def join(self, record: Record, job: EnhancementJob, parts: Sequence[Part]) -> Judgement:
        """One model of all folds; its figures are what each said of the cases that it had not seen."""
        checkpoints = [read_checkpoint(part.run.path / BEST) for part in parts]
        write_ensemble(record, job, checkpoints)
        runs = [part.run for part in parts]
        figures = gather_figures(runs)
        record_best(record, figures, len(parts))
        return Judgement(figures=figures, remarks=gather_remarks(runs))


def _build_sampler(job: EnhancementJob, material: EnhancementMaterial, batch_size: int) -> PairSampler:
    return PairSampler(
        material.sources,
        material.targets,
        job.training.patch_size,
        neighbours=job.network.neighbours,
        mirror_axes=job.augmentation.mirror_axes,
        batch_size=batch_size,
        seed=job.training.seed,
        is_paired=job.training.method == "supervised",
    )


def _middle_slice(image: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Of the first channel of `(C, H, W)` or `(C, H, W, D)`, upright."""
    plane = image[0] if image.ndim == 3 else image[0, ..., image.shape[-1] // 2]
    return plane.float().cpu().numpy().T[::-1]
