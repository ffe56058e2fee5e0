"""What a training works on: the study, who validates, and every case on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.config import Job, SegmentationJob
from pipeline.data.case_images import slice_faults
from pipeline.data.cases import Study, read_manifest
from pipeline.data.fingerprint import measure_intensities
from pipeline.data.folds import Split, split_cases
from pipeline.data.prepared_cases import PreparedCase, hash_contents, hash_data, prepare_cases
from pipeline.errors import ConfigError, Fault, InputError
from pipeline.inference.predictor import build_preprocessing
from pipeline.labels import LabelContract
from pipeline.progress import progress_bar
from pipeline.sides import without_exchange
from pipeline.workflows.tasks.columns import AbstractMaterial
from pipeline.workflows.tasks.twins import find_twin_maker, make_twins
from transforms.preprocessing import IntensityStatistics


@dataclass(frozen=True)
class SegmentationMaterial(AbstractMaterial):
    """Everything about the data of a job.

    Attributes:
        study: Cases, labels and channels as declared.
        split: Who trains and who validates.
        statistics: Intensities of the training cases, if the normalisation needs them.
        training: Prepared cases to train on.
        validation: Prepared cases held out, possibly none.
        data_hash: One hash of the content of all of them, and of the enhancer that made twins.
        enhancer_hash: Of the model that made the training cases' twins; None if they have none.
    """

    study: Study
    split: Split
    statistics: tuple[IntensityStatistics, ...]
    training: list[PreparedCase]
    validation: list[PreparedCase]
    data_hash: str
    enhancer_hash: str | None = None

    @property
    def contract(self) -> LabelContract:
        """What label values mean."""
        return self.study.contract

    @property
    def unjudged(self) -> tuple[str, ...]:
        """Structures that are labelled in no validation case, if there are such cases."""
        labelled = [prepared.labelled for prepared in self.validation]
        return _unlabelled(self.contract, labelled) if labelled else ()

    @property
    def labels(self) -> dict[str, int]:
        """Values by name, the background's included."""
        return dict(self.contract.labels)

    @property
    def structures(self) -> Mapping[str, tuple[int, ...]]:
        """Values of each structure."""
        return self.contract.structures

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""
        return self.study.channels

    @property
    def cache_bytes(self) -> int:
        """What the prepared cases take."""
        return sum(
            case.image.nbytes + case.label.nbytes + (case.twin.nbytes if case.twin is not None else 0)
            for case in (*self.training, *self.validation)
        )

    @property
    def result_bytes(self) -> int:
        """A byte for every voxel of a mask, before it is compressed."""
        return sum(math.prod(prepared.label.shape) for prepared in self.validation)

    @property
    def validation_share(self) -> float:
        """By voxels."""
        return math.prod(self.validation[0].label.shape) / self.result_bytes if self.validation else 0.0

    def with_one_validation(self) -> SegmentationMaterial:
        """The same with the first validation case alone."""
        return replace(self, validation=self.validation[:1])


def pin_labels(job: Job) -> Job:
    """The job with the labels and regions that only its manifest names.

    A model must know its regions without the manifest, and a run that goes on must mean what it meant.
    """
    if not isinstance(job, SegmentationJob) or job.data.labels is not None or job.data.regions is not None:
        return job
    contract = read_manifest(job.data).contract
    named = {
        "labels": dict(contract.labels),
        "regions": dict(contract.regions) if contract.regions is not None else None,
        "ignore_value": contract.ignore_value,
    }
    return job.model_copy(update={"data": job.data.model_copy(update=named)})


def load_material(job: SegmentationJob) -> SegmentationMaterial:
    """Reads the manifest, divides the cases and prepares every one of them.

    Raises:
        FaultError: With all faults of manifest and cases together.
    """
    study = read_manifest(job.data)
    contract = study.contract
    check_structures(job, contract)
    split = split_cases(study.cases, job.data)
    cases = [*split.training, *split.validation]
    unlabelled = [case for case in cases if case.label is None]
    if unlabelled:
        message = "a case to train on needs a label map; add one or take the case out of the manifest"
        raise InputError(Fault(case.id, "missing-label", message) for case in unlabelled)
    num_channels = len(study.channels)
    enhancer = find_twin_maker(job, num_channels)
    statistics: tuple[IntensityStatistics, ...] = ()
    if job.preprocessing.normalisation == "dataset":
        with progress_bar("Measuring intensities", len(split.training)) as advance:
            statistics = measure_intensities(split.training, contract, num_channels, advance)
    settings = build_preprocessing(job.preprocessing, statistics)
    with progress_bar("Preparing cases", len(cases)) as advance:
        prepared = prepare_cases(cases, contract, num_channels, settings, job.data, advance)
    num_training = len(split.training)
    training, validation = prepared[:num_training], prepared[num_training:]
    shapes = {case.case.id: case.label.shape[1:] for case in prepared}
    faults = [*slice_faults(job.network.dimensions, job.preprocessing.orientation, shapes)]
    if faults := [*faults, *labelled_faults(contract, [case.labelled for case in training])]:
        raise InputError(faults)
    data_hash = hash_data(prepared)
    if enhancer is not None:
        training = make_twins(training, enhancer, job, settings)
        data_hash = hash_contents([data_hash, f"enhancer {enhancer.content_hash}"])
    return SegmentationMaterial(
        study=study,
        split=split,
        statistics=statistics,
        training=training,
        validation=validation,
        data_hash=data_hash,
        enhancer_hash=enhancer.content_hash if enhancer is not None else None,
    )


def labelled_faults(contract: LabelContract, labelled: Sequence[Collection[str] | None]) -> Iterator[Fault]:
    """Faults of structures that are labelled in no training case: nothing would say where they are not.

    Args:
        contract: What the structures are.
        labelled: The structures that are labelled in each training case; None stands for all of them.
    """
    message = "it is labelled in no training case, so it cannot be learned; take it out of the labels"
    for name in _unlabelled(contract, labelled):
        yield Fault(name, "never-labelled", message)


def _unlabelled(contract: LabelContract, labelled: Sequence[Collection[str] | None]) -> tuple[str, ...]:
    return tuple(
        name for name in contract.structures if not any(names is None or name in names for names in labelled)
    )


def check_structures(job: SegmentationJob, contract: LabelContract) -> None:
    """Raises a ConfigError if the job names a structure that the data do not declare, or mixes up sides."""
    faults = _find_unknown(
        "inference.largest_component", job.inference.largest_component, contract.structures
    )
    pairs = job.data.left_right_pairs
    labels = [name for name, value in contract.labels.items() if value != 0]
    unknown = _find_unknown("data.left_right_pairs", [name for pair in pairs for name in pair], labels)
    if not unknown:
        try:
            contract.channel_laterality(job.preprocessing.left_right_axis, pairs)
        except ValueError as error:
            message = f"regions must have both sides or come in pairs as well; {error}"
            faults.append(Fault("data.left_right_pairs", "one-sided-region", message))
        else:
            faults += _mirrored_sides(job, contract)
    if faults or unknown:
        raise ConfigError([*faults, *unknown])


def _mirrored_sides(job: SegmentationJob, contract: LabelContract) -> Iterator[Fault]:
    """A fault if training, and so prediction with flips, would take one side for the other."""
    axis = job.preprocessing.left_right_axis
    if axis not in job.augmentation.mirror_axes:
        return
    alone = without_exchange(contract.labels, contract.structures, job.data.left_right_pairs)
    if alone:
        message = (
            f"axis {axis} runs from left to right, and in a mirrored image nothing changes places with "
            f"{', '.join(alone)}; name the labels of both sides in data.left_right_pairs, or leave {axis} out"
        )
        yield Fault("augmentation.mirror_axes", "mirrored-sides", message)


def _find_unknown(key: str, names: Iterable[str], known: Collection[str]) -> list[Fault]:
    unknown = [name for name in names if name not in known]
    message = f"there is no structure called {', '.join(unknown)}; the data declare: {', '.join(known)}"
    return [Fault(key, "unknown-structure", message)] if unknown else []
