"""What a checkpoint holds: the weights of one network or of several, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.checkpoint.packing import SEGMENTER, STATE


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an ensemble, with what differs from the others'; see `Checkpoint`."""

    weights: dict[str, Tensor] = field(repr=False)
    intensity: dict[str, Any] | None
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a network, or of an ensemble's networks, and what they mean.

    `job`, `intensity`, `provenance`, `calibration` and `state` are nested dicts, lists and tuples of numbers,
    strings, booleans and None; `state` may hold tensors too. All of it is read back exactly as it was
    written.

    Attributes:
        weights: The network's state dict; empty in an ensemble.
        job: The complete configuration of the training job.
        labels: Label name → value in a label map, background (0) included; empty if images come out.
        structures: Structure → the label values it unites, in the order of the network's output channels;
            empty together with `labels`.
        channels: Names of the input channels, in order.
        intensity: Statistics of the training cases, for normalisation `dataset` and for enhancers; else None,
            as in an ensemble.
        provenance: Where it comes from: versions, hashes of data and code, run, epoch, metrics, cases.
        calibration: What a classifier's logits mean, as `Calibration.to_mapping` gives it; else None.
        state: Optimizer, schedule, random states, whatever a resumption needs; None in a finished model.
        content_hash: SHA-256 (64 hexadecimal digits) of the file it was read from; None before that.
        members: The networks of an ensemble, the mean of whose logits decides; else empty.
        segmenter: The segmentation model that tells a classifier which region to look at, with the hash of
            the file that it was read from; None where there is none.

    Raises:
        ValueError: If labels, structures and channels contradict each other, or an ensemble has weights or a
            state besides its members'.
    """

    weights: dict[str, Tensor] = field(repr=False)
    job: dict[str, Any]
    labels: dict[str, int]
    structures: dict[str, tuple[int, ...]]
    channels: tuple[str, ...]
    intensity: dict[str, Any] | None
    provenance: dict[str, Any]
    calibration: dict[str, Any] | None = None
    state: Any = field(default=None, repr=False)
    content_hash: str | None = None
    members: tuple[Member, ...] = ()
    segmenter: Checkpoint | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_labels()
        if not self.channels or not all(isinstance(name, str) for name in self.channels):
            raise ValueError(f"there is at least one input channel and all have names, not {self.channels}")
        reserved = (STATE, SEGMENTER, "__metadata__")
        if any(name.startswith(reserved) for name in self.weights):
            raise ValueError(f"names of weights beginning with one of {reserved} are reserved")
        if self.members and (self.weights or self.intensity is not None or self.state is not None):
            raise ValueError("weights, intensity and state of an ensemble are those of its members")

    def _check_labels(self) -> None:
        if not self.labels and not self.structures:
            return
        values = set(self.labels.values())
        if 0 not in values or len(values) != len(self.labels) or {type(v) for v in values} != {int}:
            raise ValueError(f"labels give each name its own whole number, one of them 0, not {self.labels}")
        united = list(self.structures.values())
        if not united or not all(united) or not values.issuperset(v for values in united for v in values):
            raise ValueError(f"structures unite values of labels, not {self.structures}")
