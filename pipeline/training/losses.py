"""Dice and cross-entropy in one pass over the logits, with little memory beyond them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

IGNORED = -1
"""The target of a voxel that counts for nothing."""

_SMOOTH = 1e-5


class DiceCrossEntropy(nn.Module):
    """Cross-entropy plus one minus the soft Dice of the foreground, equally weighted, as in nnU-Net.

    The Dice sums run over the whole batch, so that a patch without a structure does not punish every
    uncertain voxel. No one-hot target is ever built: one mask per class, a byte a voxel, stands in for it.

    Nothing is asked about structures that are not labelled in a sample:

    * Classes: a background voxel may as well belong to any class that is unlabelled in its sample, so its
      probability is the sum of the background's and theirs (the marginal loss of Shi et al., Medical Image
      Analysis 2021, doi:10.1016/j.media.2021.101979). Cross-entropy is the mean over voxels.
    * Regions: cross-entropy is the mean over the pairs of voxel and region whose region is labelled.
    * Dice: the sums of a structure run over the samples in which it is labelled, the mean runs over the
      structures that are labelled in at least one.

    Ignored voxels are left out of all sums and means. A mean over nothing is 0.

    Args:
        is_regions: Whether channels are independent regions (sigmoid) instead of classes (softmax).
        has_ignored: Whether targets may hold `IGNORED`.
        total: Adds up sums of this batch and of those that other processes have of the same step.
    """

    def __init__(
        self,
        *,
        is_regions: bool,
        has_ignored: bool = False,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        super().__init__()
        self.total = total
        self.is_regions = is_regions
        self.has_ignored = has_ignored

    def forward(self, logits: Tensor, target: Tensor, labelled: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            logits: `(B, K, *size)`.
            target: Classes: `(B, *size)` int64 channel indices. Regions: `(B, K, *size)` float 0 or 1.
                Either holds `IGNORED` where a voxel is ignored, in all regions alike.
            labelled: `(B, K)` bool, whether a channel is labelled in a sample; the background always is. On
                the CPU, so that nobody waits for a GPU to tell. None if everything is.

        Returns:
            A scalar.
        """
        logits = logits.float()
        compare = self._compare_regions if self.is_regions else self._compare_classes
        (cross_entropy, num_terms), overlap, sizes = compare(logits, target, labelled)
        if labelled is None:
            num_labelled = torch.full_like(overlap, len(logits))
        else:  # of the classes, the background has no Dice
            num_labelled = labelled[:, -len(overlap) :].sum(0).to(overlap, non_blocking=True)
        counted = torch.stack([cross_entropy, num_terms])
        sums = self.total(torch.cat([overlap, sizes, num_labelled, counted]))
        overlap, sizes, num_labelled = sums[:-2].chunk(3)
        dice = (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)
        cross_entropy = sums[-2] / sums[-1].clamp_min(1)
        if labelled is None:  # here, and so every structure is labelled somewhere
            return cross_entropy + 1 - dice.mean()
        missed, num_structures = _weighted_sums(1 - dice, num_labelled > 0)
        return cross_entropy + missed / num_structures.clamp_min(1)

    def _compare_classes(
        self, logits: Tensor, target: Tensor, labelled: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Cross-entropy, sum and count; per class but the background, its overlap and its two sizes' sum."""
        known = target != IGNORED if self.has_ignored else None
        log_probabilities = F.log_softmax(logits, dim=1)
        if labelled is None and known is None:
            # The sum that it takes itself adds up atomically on a GPU: no deterministic algorithm.
            losses = F.nll_loss(log_probabilities, target, reduction="none").sum()
            cross_entropy = losses, torch.full_like(losses, target.numel())
        else:
            losses = F.nll_loss(log_probabilities, target, ignore_index=IGNORED, reduction="none")
            if labelled is not None:
                losses = torch.where(target == 0, -_background(log_probabilities, labelled), losses)
            cross_entropy = _weighted_sums(losses, torch.ones_like(target) if known is None else known)
        probabilities = log_probabilities.exp()
        # The background is the complement of the rest and would only dilute it.
        masks = [target == channel for channel in range(1, logits.shape[1])]
        overlaps = (probabilities[:, k] * mask for k, mask in enumerate(masks, 1))
        overlap = _sum_classes(overlaps, labelled)
        if known is not None:
            probabilities = probabilities * known[:, None]
        sizes = _sum(probabilities, labelled)[1:] + _sum_classes(masks, labelled)
        return cross_entropy, overlap, sizes

    def _compare_regions(
        self, logits: Tensor, target: Tensor, labelled: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Cross-entropy, sum and count; per region, its overlap and its two sizes' sum."""
        known = target[:, :1] != IGNORED if self.has_ignored else None
        probabilities = logits.sigmoid()
        if known is not None:
            target = target.clamp_min(0)
            probabilities = probabilities * known
        if labelled is None and known is None:
            losses = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            cross_entropy = losses, torch.full_like(losses, target.numel())
        else:
            losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            cross_entropy = _weighted_sums(losses, _weigh_pairs(losses, labelled, known))
        overlap = _sum(probabilities * target, labelled)
        sizes = _sum(probabilities, labelled) + _sum(target, labelled)
        return cross_entropy, overlap, sizes


def _background(log_probabilities: Tensor, labelled: Tensor) -> Tensor:
    """`(B, *size)` logarithm of the probability of the background or any class unlabelled in the sample."""
    merged = []
    for sample, row in zip(log_probabilities, labelled, strict=True):
        if row.all():
            merged.append(sample[0])
        else:
            channels = torch.tensor([0, *(~row).nonzero().flatten()], device=sample.device)
            merged.append(sample.index_select(0, channels).logsumexp(0))
    return torch.stack(merged)


def _weigh_pairs(losses: Tensor, labelled: Tensor | None, known: Tensor | None) -> Tensor:
    """1 for each pair of voxel and region that counts, else 0; broadcast to the shape of `losses`."""
    weights = losses.new_ones(()) if known is None else known.to(losses)
    if labelled is not None:
        channels = labelled.to(losses, non_blocking=True)
        weights = weights * channels.reshape(*channels.shape, *[1] * (losses.ndim - 2))
    return weights


def _sum(values: Tensor, labelled: Tensor | None) -> Tensor:
    """`(K,)` sums of `(B, K, *size)` over voxels, and over the samples in which a channel is labelled."""
    if labelled is None:
        return values.sum([0, *range(2, values.ndim)])
    return (values.flatten(2).sum(2) * labelled.to(values.device, non_blocking=True)).sum(0)


def _sum_classes(volumes: Iterable[Tensor], labelled: Tensor | None) -> Tensor:
    """As `_sum`, of one `(B, *size)` after the other for each class but the background."""
    if labelled is None:
        return torch.stack([volume.sum() for volume in volumes])
    by_sample = torch.stack([volume.flatten(1).sum(1) for volume in volumes], dim=1)
    return (by_sample * labelled[:, 1:].to(by_sample.device, non_blocking=True)).sum(0)


def _weighted_sums(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of `values` under weights of 0 and 1, and how many count: what a mean is made of."""
    weights = weights.expand_as(values)
    return (values * weights).sum(), weights.sum().to(values)


class DeepSupervision(nn.Module):
    """A loss averaged over resolutions with weights 1, 1/2, 1/4 … normalised to sum to one.

    Targets are shrunk by picking voxels, so that they stay labels.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], target: Tensor, labelled: Tensor | None = None) -> Tensor:
        """The weighted loss of `logits`, finest first, against the full-resolution `target`."""
        weights = [2.0**-level for level in range(len(logits))]
        total: Tensor = torch.zeros((), device=target.device)
        for weight, level in zip(weights, logits, strict=True):
            loss = self.loss(level, _shrink(target, level.shape[2:]), labelled)
            total = total + weight / sum(weights) * loss
        return total


def _shrink(target: Tensor, size: Sequence[int]) -> Tensor:
    first = target.ndim - len(size)
    steps = [n // m for n, m in zip(target.shape[first:], size, strict=True)]
    picked = (*(slice(None),) * first, *(slice(step // 2, None, step) for step in steps))
    return target[picked]
