"""What every task has of its own in a training; `workflows.tasks.named` has them by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.config import Job
from pipeline.data.cases import Case
from pipeline.data.checks import CheckReport
from pipeline.data.folds import Split
from pipeline.files import write_json
from pipeline.inference.components import Components
from pipeline.inference.metric_table import CaseMetrics
from pipeline.statistics import Estimate
from pipeline.tracking import Record, RunFolder
from pipeline.training.distributed import World
from pipeline.training.loop import Sampler
from pipeline.training.task import AbstractTask
from pipeline.workflows.runs.starting import Start
from transforms.enhancement import Scale
from transforms.preprocessing import IntensityStatistics


class AbstractMaterial(ABC):
    """Everything about the data of a job.

    Attributes:
        split: Who trains and who validates.
        statistics: Intensities of the training cases, if anything needs them.
        data_hash: One hash of the content of all cases.
        segmenter: The model that tells a classifier where to look; None if there is none.
        enhancer_hash: Of the model that made twins of the training images; None if there are none.
    """

    split: Split
    statistics: tuple[IntensityStatistics | Scale, ...]
    data_hash: str
    segmenter: Checkpoint | None = None
    enhancer_hash: str | None = None

    @property
    @abstractmethod
    def labels(self) -> dict[str, int]:
        """Values by name, as a checkpoint keeps them."""

    @property
    @abstractmethod
    def structures(self) -> Mapping[str, tuple[int, ...]]:
        """Values that each output of the network stands for, in their order."""

    @property
    @abstractmethod
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """What its prepared cases take."""

    @property
    @abstractmethod
    def result_bytes(self) -> int:
        """What is written for its validation cases."""

    @property
    @abstractmethod
    def validation_share(self) -> float:
        """Share of the work of a validation that its first case is; 0 if there is none."""

    @abstractmethod
    def with_one_validation(self) -> AbstractMaterial:
        """The same with the first validation case alone."""

    def write_split(self, folder: Path) -> Path:
        """Writes which cases train and which validate to `folder/split.json`."""
        cases = {"training": self.split.training, "validation": self.split.validation}
        names = {part: [case.id for case in members] for part, members in cases.items()}
        path = folder / "split.json"
        write_json(path, names)
        return path


@dataclass(frozen=True)
class Judgement:
    """What came of the validation cases.

    Attributes:
        rows: Metrics per case and structure of a segmentation, on the patients' grids.
        figures: Figures of a classifier over all cases.
        components: Where a cross-validation decided to keep largest components; else None.
        unjudged: Structures that are labelled in no validation case.
        remarks: Why cases are missing from the figures.
    """

    rows: list[CaseMetrics] = field(default_factory=list)
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    components: Components | None = None
    unjudged: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A fold that was trained: its number and its run."""

    fold: int
    run: RunFolder


AnyJob = TypeVar("AnyJob", bound=Job)
AnyMaterial = TypeVar("AnyMaterial", bound=AbstractMaterial)
AnyTask = TypeVar("AnyTask", bound=AbstractTask)


class Column(ABC, Generic[AnyJob, AnyMaterial, AnyTask]):
    """A task's part in every step of a training.

    Attributes:
        command: What applies a model of the task.
        metric: Validation metric by which a training is judged while it runs; None if there is none.
        score: Metric of a finished run by which one is better than another; larger is better.
    """

    command: str
    metric: str | None
    score: str

    @abstractmethod
    def read_cases(self, job: AnyJob) -> Sequence[Case]:
        """The cases that the manifest lists, after all that is said about them was checked."""

    @abstractmethod
    def check(self, job: AnyJob, splits: Sequence[Split], on_case: Callable[[], None]) -> CheckReport:
        """Reads every file of a job once and tells all that is wrong."""

    @abstractmethod
    def load_material(self, job: AnyJob, run: RunFolder | None = None) -> AnyMaterial:
        """Reads the manifest, divides the cases and prepares every one of them.

        Args:
            job: What is trained.
            run: The run to go on with; None for a new one.

        Raises:
            FaultError: With all faults of manifest and cases together.
        """

    @abstractmethod
    def build_task(
        self, job: AnyJob, material: AnyMaterial, device: torch.device, start: Start | None, world: World
    ) -> AnyTask:
        """What a job trains, with fresh weights or those of the model it starts from."""

    @abstractmethod
    def build_sampler(self, job: AnyJob, material: AnyMaterial, task: AnyTask) -> Sampler:
        """Gives the batches of the job's steps."""

    @abstractmethod
    def illustrate(
        self, record: Record, job: AnyJob, material: AnyMaterial, task: AnyTask, epoch: int
    ) -> None:
        """Draws what a task makes of images so far, where metrics would not tell; called every epoch."""

    @abstractmethod
    def judge(self, record: Record, job: AnyJob, material: AnyMaterial, device: torch.device) -> Judgement:
        """Predicts, compares, draws and records the validation cases with the kept checkpoint."""

    @abstractmethod
    def summarise_fold(self, part: Part) -> dict[str, float]:
        """Metrics of a fold, by which folds are compared."""

    @abstractmethod
    def join(self, record: Record, job: AnyJob, parts: Sequence[Part]) -> Judgement:
        """Makes one table and one model of a cross-validation's folds."""
