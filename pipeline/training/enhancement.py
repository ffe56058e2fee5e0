"""What both ways to train an enhancer share: how far images are apart, memory, and validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import EnhancementJob
from pipeline.data.enhancement_images import EnhancementImage
from pipeline.image_metrics import data_range, psnr, ssim
from pipeline.inference.enhancer import Enhancer
from pipeline.networks.footprint import saved_bytes
from pipeline.training.adversarial import Stepper
from pipeline.volume import Grid
from transforms.enhancement import Scale, Scaled, stack_neighbours

FORWARD, BACKWARD = "forward", "backward"
"""Generators: what is to be enhanced → what it should look like, and the way back."""


def generator_bytes(generator: nn.Module, stepper: Stepper, shape: Sequence[int], num_passes: int = 1) -> int:
    """Bytes of a source `(B, C, …)` and of what passes through generators keep of it for the backward pass.

    Args:
        generator: One of them; its weights, which are kept once however often they are used, are left out.
        stepper: Tells the precision.
        shape: Of the source.
        num_passes: Of one step.
    """
    weights = sum(parameter.nbytes for parameter in generator.parameters())
    kept = num_passes * max(0, saved_bytes(generator, nn.Module.__call__, shape) - weights)
    return kept * stepper.dtype.itemsize // 4 + 4 * math.prod(shape)


def validate_enhancement(
    generator: nn.Module, job: EnhancementJob, validation: Sequence[EnhancementImage], device: torch.device
) -> dict[str, float]:
    """Means of PSNR and SSIM over the cases whose truth can judge, on the network's grid; none if none can.

    Without flips, which cost eight times as much and say the same about the course of a training.
    """
    known = [image for image in validation if image.can_judge]
    if not known:
        return {}
    job = job.model_copy(update={"inference": job.inference.model_copy(update={"flips": False})})
    num_channels = known[0].image.shape[0]
    enhancer = Enhancer(job, [""] * num_channels, [generator], (), device)
    scaled_already = (Scale(0.0, 1.0),) * num_channels
    found = []
    for image in known:
        assert image.truth is not None, "those without were left out"
        height, width, depth = image.image.shape[1:]
        seen = Scaled(stack_neighbours(image.image, job.network.neighbours), image.affine, scaled_already)
        made = enhancer.enhance(seen, Grid((height, width, depth), image.affine)).images
        # In the unit of the images, which SSIM is about: it compares means as well.
        scales = zip(image.made_scales or image.scales, image.scales, strict=True)
        pairs = [
            (one * own.deviation + own.mean, truth * scale.deviation + scale.mean)
            for one, truth, (own, scale) in zip(made, image.truth.numpy(), scales, strict=True)
        ]
        figures = [[metric(one, truth, data_range(truth)) for one, truth in pairs] for metric in (psnr, ssim)]
        found.append(np.mean(figures, axis=1))
    means = np.mean(found, axis=0)
    return {"validation/psnr": float(means[0]), "validation/ssim": float(means[1])}


def distance(image: Tensor, other: Tensor) -> Tensor:
    """Mean absolute difference (L1) of images of one shape, in float32."""
    return (image.float() - other.float()).abs().mean()
