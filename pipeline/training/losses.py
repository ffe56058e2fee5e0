"""Dice and cross-entropy in one pass over the logits, with little memory beyond them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

_SMOOTH = 1e-5


class DiceCrossEntropy(nn.Module):
    """Cross-entropy plus one minus the soft Dice of the foreground, equally weighted, as in nnU-Net.

    The Dice sums run over the whole batch, so that a patch without a structure does not punish every
    uncertain voxel. No one-hot target is ever built: one mask per class, a byte a voxel, stands in for it.

    Args:
        is_regions: Whether channels are independent regions (sigmoid) instead of classes (softmax).
        total: Adds up sums of this batch and of those that other processes have of the same step.
    """

    def __init__(self, *, is_regions: bool, total: Callable[[Tensor], Tensor] = lambda sums: sums) -> None:
        super().__init__()
        self.is_regions = is_regions
        self.total = total

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            logits: `(B, K, *size)`.
            target: Classes: `(B, *size)` int64 channel indices. Regions: `(B, K, *size)` float 0 or 1.

        Returns:
            A scalar.
        """
        logits = logits.float()
        axes = [0, *range(2, logits.ndim)]
        if self.is_regions:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            probabilities = logits.sigmoid()
            overlap = (probabilities * target).sum(axes)
            sizes = probabilities.sum(axes) + target.sum(axes)
        else:
            log_probabilities = F.log_softmax(logits, dim=1)
            cross_entropy = F.nll_loss(log_probabilities, target, reduction="sum")
            probabilities = log_probabilities.exp()
            # The background is the complement of the rest and would only dilute it.
            masks = [target == channel for channel in range(1, logits.shape[1])]
            overlap = torch.stack([(probabilities[:, k] * mask).sum() for k, mask in enumerate(masks, 1)])
            sizes = probabilities.sum(axes)[1:] + torch.stack([mask.sum() for mask in masks])
        terms = torch.full_like(cross_entropy, target.numel())
        sums = self.total(torch.cat([overlap, sizes, torch.stack([cross_entropy, terms])]))
        overlap, sizes = sums[:-2].chunk(2)
        dice = (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)
        return sums[-2] / sums[-1] + 1 - dice.mean()


class DeepSupervision(nn.Module):
    """A loss averaged over resolutions with weights 1, 1/2, 1/4 … normalised to sum to one.

    Targets are shrunk by picking voxels, so that they stay labels.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """The weighted loss of `logits`, finest first, against the full-resolution `target`."""
        weights = [2.0**-level for level in range(len(logits))]
        total: Tensor = torch.zeros((), device=target.device)
        for weight, level in zip(weights, logits, strict=True):
            total = total + weight / sum(weights) * self.loss(level, _shrink(target, level.shape[2:]))
        return total


def _shrink(target: Tensor, size: Sequence[int]) -> Tensor:
    first = target.ndim - len(size)
    steps = [n // m for n, m in zip(target.shape[first:], size, strict=True)]
    picked = (*(slice(None),) * first, *(slice(step // 2, None, step) for step in steps))
    return target[picked]
