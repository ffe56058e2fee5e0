"""Starting a network from another one's weights: what fits is taken over, the rest stays as initialised.

Knows networks and their tensors, not what these mean. `docs/fine-tuning.md` has the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.networks.monai_segmenter import MonaiSegmenter

# But for MONAI's segmentation networks, all read the image in the first level of `encoder`, and answer in
# `heads` or in `classifier`.
ENCODER: Final = "encoder."
READERS: Final = (
    "encoder.0.0.weight",  # plain block
    "encoder.0.body.0.weight",  # residual block
    "encoder.0.shortcut.0.weight",
    "encoder.0.conv1.weight",  # ResNet
    "encoder.0.conv0.weight",  # DenseNet
    "encoder.0._conv_stem.weight",  # EfficientNet
)
_HEADS: Final = ("heads.", "classifier.")


@dataclass(frozen=True, eq=False)
class Source:
    """Another network's weights, and what its inputs and outputs are to the network that starts from them.

    Attributes:
        weights: Its state dict.
        inputs: For each image channel of the new network, the source's of the same meaning, or None.
        outputs: For each output channel of the new network, the source's of the same meaning, or None.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


@dataclass(frozen=True)
class Transfer:
    """What became of every tensor of a network, and of its source.

    Attributes:
        loaded: Equal to the source's.
        adapted: Made from the source's; the value says how.
        new: As initialised.
        unused: Tensors of the source that nothing was taken from.
    """

    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line for people."""
        total = len(self.loaded) + len(self.adapted) + len(self.new)
        told = (
            f"{len(self.loaded)} of {total} tensors loaded, {len(self.adapted)} adapted, {len(self.new)} new"
        )
        return f"{told}; {len(self.unused)} of the model's unused"


@torch.no_grad()
def load_pretrained(network: nn.Module, source: Source) -> Transfer:
    """Takes over what fits by name and shape; kernels that read the image and heads are fitted by meaning.

    An image channel that the source has not gets the mean of its kernels. All kernels that read the image
    are multiplied by the source's number of channels over ours, so that what they answer keeps its scale.
    A head takes over the rows of outputs that mean the same; its other rows stay as initialised. MONAI's
    segmentation networks have neither apart: unless all channels or outputs mean the same, what has their
    number in its size stays as initialised.

    Args:
        network: With fresh weights; changed in place.
        source: What it starts from.
    """
    loaded: list[str] = []
    adapted: dict[str, str] = {}
    new: list[str] = []
    unlike = _tensors_of_other_meaning(network, source)
    for name, target in network.state_dict().items():  # its tensors are the network's own
        how = None if name in unlike else _take_over(name, target, source)
        if how is None:
            new.append(name)
        elif how:
            adapted[name] = how
        else:
            loaded.append(name)
    unused = sorted(source.weights.keys() - {*loaded, *adapted})
    return Transfer(tuple(loaded), adapted, tuple(new), tuple(unused))


def head_kernels(network: nn.Module) -> set[str]:
    """Names of the kernels that a network answers by."""
    if isinstance(network, MonaiSegmenter):
        names = network.tensors_sized_by(outputs=True)
    else:
        names = {name for name in network.state_dict() if name.startswith(_HEADS)}
    return {name for name, tensor in network.state_dict().items() if name in names and tensor.ndim > 1}


def _tensors_of_other_meaning(network: nn.Module, source: Source) -> set[str]:
    if not isinstance(network, MonaiSegmenter):
        return set()  # its readers and heads are known by name, and fitted
    return network.tensors_sized_by(
        inputs=not _is_same(source.inputs, len(source.inputs)),
        outputs=not _is_same(source.outputs, len(source.outputs)),
    )


def _take_over(name: str, target: Tensor, source: Source) -> str | None:
    """Changes `target`; says how, with nothing to say of a plain copy, or None if nothing fits."""
    found = source.weights.get(name)
    if found is None or found.ndim != target.ndim:
        return None
    if name.startswith(_HEADS):
        return _take_rows(target, found, source.outputs)
    if name in READERS:
        return _take_kernels(target, found, source.inputs)
    if found.shape != target.shape:
        return None
    target.copy_(found)
    return ""


def _take_rows(target: Tensor, found: Tensor, outputs: tuple[int | None, ...]) -> str | None:
    known = [(ours, theirs) for ours, theirs in enumerate(outputs) if theirs is not None]
    if found.shape[1:] != target.shape[1:] or not known:
        return None
    for ours, theirs in known:
        target[ours].copy_(found[theirs])
    if _is_same(outputs, len(found)):
        return ""
    rows = ", ".join(str(ours) for ours, _ in known)
    return f"outputs {rows} of {len(outputs)} taken over"


def _take_kernels(target: Tensor, found: Tensor, inputs: tuple[int | None, ...]) -> str | None:
    if (len(found), found.shape[2:]) != (len(target), target.shape[2:]):
        return None
    num_channels = found.shape[1]
    if _is_same(inputs, num_channels):
        target.copy_(found)
        return ""
    mean, scale = found.mean(1), num_channels / len(inputs)
    kernels = [mean if theirs is None else found[:, theirs] for theirs in inputs]
    target.copy_(torch.stack(kernels, 1) * scale)
    sources = ", ".join("the mean" if theirs is None else str(theirs) for theirs in inputs)
    return f"image channels made from the model's {sources}, times {scale:g}"


def _is_same(channels: Iterable[int | None], num: int) -> bool:
    return list(channels) == list(range(num))
