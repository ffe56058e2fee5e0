"""Which inputs and outputs of two models mean the same, and what a job's network has of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.checkpoint import Checkpoint
from pipeline.config import ClassificationJob, SegmentationJob, classification_job, segmentation_job
from pipeline.data.cases import read_manifest
from pipeline.data.class_study import read_class_study
from pipeline.labels import LabelContract
from pipeline.networks import build_classifier, build_network

FittedJob = SegmentationJob | ClassificationJob
"""The jobs that may start from another's model."""


@dataclass(frozen=True)
class Answers:
    """What the outputs of a network mean.

    Attributes:
        names: Of each.
        kind: Only rows of outputs of one kind can be exchanged: classes compete, regions and labels do not.
    """

    names: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Receiver:
    """What is to start from another model.

    Attributes:
        channels: Names of its image channels.
        answers: What its outputs mean.
        network: Its names and shapes alone.
    """

    channels: tuple[str, ...]
    answers: Answers
    network: nn.Module


def _segmentation_receiver(job: FittedJob) -> Receiver:
    job = segmentation_job(job)
    study = read_manifest(job.data)
    with torch.device("meta"):
        network = build_network(job.network, len(study.channels), len(study.contract.channel_names))
    return Receiver(study.channels, _contract_answers(study.contract), network)


def _classification_receiver(job: FittedJob) -> Receiver:
    job = classification_job(job)
    study = read_class_study(job.data)
    channels = job.preprocessing.seen_channels(study.channels)
    with torch.device("meta"):
        network = build_classifier(job.network, len(channels), len(study.classes))
    return Receiver(channels, _class_answers(study.classes, job), network)


RECEIVERS: Mapping[str, Callable[[FittedJob], Receiver]] = {
    "segmentation": _segmentation_receiver,
    "classification": _classification_receiver,
}


def _class_answers(classes: Sequence[str], job: ClassificationJob) -> Answers:
    return Answers(tuple(classes), "labels of images" if job.data.multi_label else "classes of images")


def _contract_answers(contract: LabelContract) -> Answers:
    return Answers(contract.channel_names, "classes" if contract.regions is None else "regions")


def answers_of(former: FittedJob, checkpoint: Checkpoint) -> Answers:
    """What the outputs of a model mean that was trained by a job."""
    if isinstance(former, ClassificationJob):
        return _class_answers(tuple(checkpoint.structures), former)
    return _contract_answers(LabelContract(checkpoint.labels, former.data.regions))


def match_inputs(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int | None, ...]:
    """For each channel of ours the number of theirs that it starts from; None for none.

    By name, of several alike one after the other; where both have as many channels, those left over one after
    the other.
    """
    matched: list[int | None] = []
    for number, name in enumerate(ours):
        alike = [index for index, other in enumerate(theirs) if other == name]
        turn = ours[:number].count(name)
        matched.append(alike[min(turn, len(alike) - 1)] if alike else None)
    if len(ours) == len(theirs):
        left = iter([index for index in range(len(theirs)) if index not in matched])
        matched = [next(left) if index is None else index for index in matched]
    return tuple(matched)


def match_outputs(ours: Answers, theirs: Answers) -> tuple[int | None, ...]:
    """For each output of ours the number of theirs that it starts from; None for none.

    By name, among outputs of one kind.
    """
    names = theirs.names if ours.kind == theirs.kind else ()
    return tuple(names.index(name) if name in names else None for name in ours.names)
