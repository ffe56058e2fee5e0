"""Several networks as one: what is blended of each, and how a label is decided of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.inference.window_runner import Network
from pipeline.labels import LabelContract
from pipeline.networks import MonaiSegmenter, Segmenter
from transforms.postprocessing import Decision


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What is blended over windows, for the mean of the logits of one or more networks.

    Attributes:
        networks: Windows to scores, for each member.
        decision: How the scores that were blended become a label.
        num_scores: Their number per voxel.
        joins: Whether the members' scores stand side by side; else their mean is blended.
    """

    networks: tuple[Network, ...]
    decision: Decision
    num_scores: int
    joins: bool


def build_ensemble(
    networks: Sequence[Segmenter],
    contract: LabelContract,
    *,
    shares_image: bool,
    keeps_logits: bool,
    compiles: bool,
) -> Ensemble:
    """Chooses what is blended: logits, or the last features of every network if those are fewer.

    A head is linear, and so are blending, mirroring, resampling and the mean over networks: heads may as well
    come last, as one, once per voxel instead of once per window and network. With 104 classes and a single
    network of 16 features that is a sixth of the memory.

    Args:
        networks: Of one shape, trained.
        contract: Names and values of the labels.
        shares_image: Whether all see the same channels; else each sees its own part of them, in turn.
        keeps_logits: Whether logits are blended in any case: features have no sides that could be exchanged.
        compiles: Whether `torch.compile` makes every network's forward pass; at its first call.
    """
    values, is_regions = contract.channel_values, contract.regions is not None
    num, ours = len(networks), [network for network in networks if not isinstance(network, MonaiSegmenter)]
    num_logits = len(contract.channel_values)
    num_features = ours[0].head.weight.shape[1] if len(ours) == num else num_logits
    joins = num_logits > num * num_features and not keeps_logits
    calls: list[Network] = [network.forward_features for network in ours] if joins else list(networks)
    if compiles:
        calls = [torch.compile(call, dynamic=False) for call in calls]  # windows are all of one size
    if not shares_image:
        calls = [_on_part(call, k, num) for k, call in enumerate(calls)]
    if not joins:
        return Ensemble(tuple(calls), Decision(values, is_regions), num_logits, joins)
    weight = torch.cat([network.head.weight.detach() / num for network in ours], dim=1)
    bias = torch.stack([network.head.bias.detach() / num for network in ours]).sum(0)
    return Ensemble(tuple(calls), Decision(values, is_regions, weight, bias), num * num_features, joins)


def _on_part(network: Network, number: int, num_parts: int) -> Network:
    return lambda windows: network(windows.chunk(num_parts, dim=1)[number])
