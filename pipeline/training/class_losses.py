"""The loss of a classifier: cross-entropy, with what imbalance and noise ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn


class ClassLoss(nn.Module):
    """Weighted focal cross-entropy over classes (softmax) or over labels (sigmoid), with smoothed targets.

    Each answer that could be given counts `weight · (1 - p)^gamma · -log p`, `p` being the probability of
    its target (Lin et al. 2017, arXiv:1708.02002); the sum is divided by the weights, so that they do not
    change the learning rate. Smoothing spreads a share of each target over all answers (Szegedy et al. 2016).

    Args:
        weights: `(K,)` of classes, or `(K, 2)` of a label's absence and presence.
        is_multi_label: Whether an image can be of several classes.
        focal_gamma: 0 gives the cross-entropy.
        label_smoothing: 0 leaves the targets.
        total: Adds up sums of this batch and of those that other processes have of the same step.
    """

    def __init__(
        self,
        weights: Tensor,
        *,
        is_multi_label: bool,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.is_multi_label = is_multi_label
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing
        self.total = total

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            logits: `(B, K)`.
            target: `(B, K)` in [0, 1]: shares of classes that add up to 1, or of each label.
        """
        logits = logits.float()
        if self.is_multi_label:
            logs = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=2)
            target = torch.stack([1 - target, target], dim=2)
        else:
            logs = logits.log_softmax(1)
        axis = logs.ndim - 1
        target = target * (1 - self.label_smoothing) + self.label_smoothing / logs.shape[axis]
        share = target * self.get_buffer("weights")
        losses = -share * logs
        if self.focal_gamma:
            losses = losses * (1 - logs.exp()) ** self.focal_gamma
        loss, weight = self.total(torch.stack([losses.sum(), share.sum().detach()]))
        mean: Tensor = loss / weight
        return mean


def balance_weights(targets: Tensor, *, is_multi_label: bool) -> Tensor:
    """Weights by which every class has the same sum over the training cases, their mean being 1.

    Args:
        targets: `(N, K)`, 0 or 1; every class has cases.
        is_multi_label: Whether an image can be of several classes; absence and presence of each are balanced.

    Returns:
        `(K,)`, or `(K, 2)` if `is_multi_label`.
    """
    counts = targets.sum(0)
    if is_multi_label:
        counts = torch.stack([len(targets) - counts, counts], dim=1).clamp_min(1)
        return len(targets) / (2 * counts)
    return len(targets) / (targets.shape[1] * counts.clamp_min(1))
