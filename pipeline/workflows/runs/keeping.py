"""What a training keeps while it runs: checkpoints, the record, a bar for who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.checkpoint import Checkpoint, write_checkpoint
from pipeline.config import Job, job_to_mapping
from pipeline.environment import code_version, environment
from pipeline.signals import StopSignals
from pipeline.tracking import Record
from pipeline.training.task import AbstractTask
from pipeline.workflows.runs.models import BEST, LAST
from pipeline.workflows.tasks.columns import AbstractMaterial


class Keeper:
    """The surroundings of a training loop: see `pipeline.training.loop.Surroundings`.

    Args:
        record: Where metrics go.
        job: What is trained.
        material: On what.
        task: Whose weights are kept.
        illustrate: Called after every epoch with its number.
        show: Told the share of the budget used up and a word.
        signals: Whether to stop.
        is_hopeless: Asked of each validation, with the task's metric and the epoch, whether to give up.
    """

    def __init__(
        self,
        record: Record,
        job: Job,
        material: AbstractMaterial,
        task: AbstractTask,
        illustrate: Callable[[int], None],
        show: Callable[[float, str], None],
        signals: StopSignals,
        is_hopeless: Callable[[float, int], bool] = lambda metric, epoch: False,
    ) -> None:
        self.record = record
        self.job = job
        self.material = material
        self.task = task
        self.illustrate = illustrate
        self.show = show
        self.signals = signals
        self.is_hopeless = is_hopeless
        self._is_given_up = False
        self._process = psutil.Process()
        self._best = ""
        self._environment = environment() | {"code": code_version() or "unknown"}

    def log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Records an epoch, with what it took of the machine."""
        self.record.log_metrics({**values, **self._measure_system()}, epoch)
        if self.task.metric is not None and self.task.metric in values:
            self._is_given_up = self.is_hopeless(values[self.task.metric], epoch)
        self.illustrate(epoch)

    def save_best(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Keeps the weights as the best so far."""
        assert self.task.metric is not None, "what is best was judged by it"
        self._best = f", best {metrics[self.task.metric]:.4f}"
        self._write(BEST, metrics, epoch, state=None)

    def save_last(self, state: Mapping[str, Any], epoch: int) -> None:
        """Keeps everything to go on from here."""
        self._write(LAST, {}, epoch, state=state)
        self.record.flush()

    def keep_something(self) -> None:
        """Without validation cases there is no best: the final weights are kept in its place."""
        if not (self.record.folder / BEST).is_file():
            self._write(BEST, {}, epoch=None, state=None)

    def advance(self, progress: float, epoch: int) -> None:
        """Shows the budget."""
        self.show(progress, f": epoch {epoch + 1}{self._best}")

    def is_stop_requested(self) -> bool:
        """Whether a signal arrived."""
        return self.signals.is_requested

    def is_given_up(self) -> bool:
        """Whether the last validation was hopeless."""
        return self._is_given_up

    def _write(self, name: Path, metrics: Mapping[str, float], epoch: int | None, state: Any) -> None:  # noqa: ANN401 - the task's own
        material = self.material
        statistics = [asdict(channel) for channel in material.statistics]
        checkpoint = Checkpoint(
            weights=self.task.weights(),
            job=job_to_mapping(self.job),
            labels=material.labels,
            structures=dict(material.structures),
            channels=material.channels,
            intensity={"channels": statistics} if statistics else None,
            provenance={
                "run": self.record.name,
                "epoch": epoch,
                "metrics": dict(metrics),
                "data_hash": material.data_hash,
                **({"enhancer_sha256": material.enhancer_hash} if material.enhancer_hash else {}),
                "training_cases": [case.id for case in material.split.training],
                "validation_cases": [case.id for case in material.split.validation],
                "names_patients": material.split.names_patients,
                "environment": self._environment,
            },
            state=state,
            segmenter=material.segmenter,
        )
        write_checkpoint(self.record.folder / name, checkpoint)

    def _measure_system(self) -> dict[str, float]:
        """Under names that MLflow shows as system metrics."""
        measured = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
            "system/process_memory_megabytes": self._process.memory_info().rss / 1e6,
        }
        if torch.cuda.is_available():
            measured["system/gpu_0_memory_usage_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
        return measured
