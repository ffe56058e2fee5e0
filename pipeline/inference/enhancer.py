"""From a patient's images to enhanced ones, with everything taken from the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.checkpoint import Checkpoint
from pipeline.config import EnhancementJob, enhancement_job, flipped_axes, job_from_mapping
from pipeline.data.case_images import check_slices
from pipeline.errors import ConfigError, Fault, InputError, IntegrityError
from pipeline.inference.answers import build_answer, relate_scales
from pipeline.inference.budget import Plan
from pipeline.inference.engine import Engine
from pipeline.inference.grids import in_axes_of
from pipeline.inference.predictor import build_preprocessing, count_voxels, preparing_bytes
from pipeline.networks import build_generator
from pipeline.volume import Grid, Volume
from transforms.enhancement import Scale, Scaled, prepare_image, stack_neighbours
from transforms.restoring import ImageBuilder, measure_spread

_BLURRING_BYTES = 8  # a voxel while a channel's scale is measured
# What an image takes while it is written: stored, its change, the file's bytes and what is read back.
_WRITING_BYTES = 20  # a voxel


# Beyond, float32 overflows: in the squares of a normalisation, or when the input's scale is put back.
_LARGEST_SEEN, _LARGEST_SCALE = 1e15, 1e30

_BACKWARD = "backward."


@dataclass(frozen=True, slots=True)
class Enhanced:
    """Enhanced images of a case and how they came about.

    Attributes:
        images: Per channel `(I, J, K)` float32, in the unit of the result, neither rounded nor clipped.
        deviations: Their standard deviations over mirrored copies and networks; empty if there is but one.
        grid: Where they lie.
        plan: How the volume was cut.
        num_skipped: Windows that needed no forward pass.
    """

    images: list[NDArray[np.float32]]
    deviations: list[NDArray[np.float32]]
    grid: Grid
    plan: Plan
    num_skipped: int


class Enhancer:
    """Trained generators with their preprocessing and the way back to the input's unit and grid.

    Args:
        job: The job that trained them.
        channels: Names of the image channels.
        networks: Generators of one direction, `(B, C (2 neighbours + 1) + num_noise, …)` to `(B, C, …)`; of
            several the mean is taken.
        scales: Of each network, per channel, those of the images it learnt to make; used with
            `inference.intensities: target`, else empty.
        device: Where to compute, always in 32 bits: 16 would leave intensities three digits.
        max_memory: Bytes that an enhancement may take at its peak; None for what is free.
        num_noise: Channels of random numbers that the networks see beside the image.
    """

    def __init__(
        self,
        job: EnhancementJob,
        channels: Sequence[str],
        networks: Sequence[nn.Module],
        scales: Sequence[Sequence[Scale]],
        device: torch.device,
        max_memory: int | None = None,
        *,
        num_noise: int = 0,
    ) -> None:
        self.channels = tuple(channels)
        self.device = device
        self.max_memory = max_memory
        self._section = job.inference
        self._dimensions = job.network.dimensions
        self._preprocessing = build_preprocessing(job.preprocessing, ())
        self._num_neighbours, self._num_noise = job.network.neighbours, num_noise
        self._scales = tuple(scales[0]) if scales else ()
        self._deviates = job.inference.flips or len(networks) > 1
        own = [relate_scales(of_one, self._scales, device) for of_one in scales] or [None] * len(networks)
        middle = slice(self._num_neighbours * len(channels), (self._num_neighbours + 1) * len(channels))
        answers = [
            build_answer(network.to(device).eval(), relative, middle if self._deviates else None)
            for network, relative in zip(networks, own, strict=True)
        ]
        self._engine = Engine(
            answers,
            job.inference,
            job.window_size,
            device,
            mixed_precision=False,
            flipped_axes=flipped_axes(job),
            conclude=measure_spread if self._deviates else None,
        )

    @property
    def keeps_unit(self) -> bool:
        """Whether the result has the unit of the input; else that of the images that were learnt."""
        return not self._scales

    def prepare(self, case: str, images: Sequence[Volume]) -> Scaled:
        """Brings the images of a case, one volume per channel on one grid, to what the networks see.

        Args:
            case: Its id, of which the random numbers are a function.
            images: One volume per channel.

        Returns:
            `image` has neighbouring slices and random numbers as further channels; `scales` are its own.

        Raises:
            InputError: If its intensities are so large that nobody can compute with them, or it is a slice
                across another axis than those of a network of two dimensions.
        """
        arrays = [image.array for image in images]
        scaled = prepare_image(self._preprocessing, arrays, images[0].grid.affine)
        check_slices(case, self._dimensions, self._preprocessing.orientation, scaled.image.shape[1:])
        _check_intensities(case, scaled)
        seen = stack_neighbours(scaled.image, self._num_neighbours)
        if self._num_noise:
            # Of the whole volume at once: a voxel's number does not depend on how windows lie.
            seed = int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big") >> 1
            noise = torch.randn(
                self._num_noise, *seen.shape[1:], generator=torch.Generator().manual_seed(seed)
            )
            seen = torch.cat((seen, noise))
        return replace(scaled, image=seen)

    def preparing_bytes(self, grid: Grid) -> int:
        """Bytes that `prepare` takes at its peak for a case on `grid`."""
        num_channels = len(self.channels)
        num_seen = num_channels * (2 * self._num_neighbours + 1) + self._num_noise
        beside = 4 * (num_seen if num_seen > num_channels else 0) + _BLURRING_BYTES
        turned = preparing_bytes(self._preprocessing, num_channels, grid)
        return turned + beside * count_voxels(self._preprocessing, grid)

    def enhance(
        self, scaled: Scaled, grid: Grid, on_plan: Callable[[Plan], None] = lambda plan: None
    ) -> Enhanced:
        """Enhances a prepared case.

        Args:
            scaled: What the networks see, from `prepare`.
            grid: The input's.
            on_plan: Is told the plan before the first window.

        Raises:
            ResourceError: If it cannot be done within the memory that is allowed or free.
            IntegrityError: If the networks give what is not numbers.
        """
        height, width, depth = scaled.image.shape[1:]
        shape = height, width, depth
        if self._section.grid == "network":
            grid = in_axes_of(grid, shape, scaled.affine)
        num = len(self.channels)
        builder = ImageBuilder(
            self._scales or scaled.scales, self._deviates, shape, scaled.affine, grid.shape, grid.affine
        )
        needed = builder.num_bytes + _WRITING_BYTES * builder.images[0].size
        self._engine.check_host(needed, "the enhanced image", self.max_memory)
        swept = self._engine.sweep(
            scaled.image,
            builder,
            3 * num if self._deviates else num,
            normalises=True,
            max_memory=self.max_memory,
            on_plan=on_plan,
        )
        return Enhanced(builder.images, builder.deviations, grid, swept.plan, swept.num_skipped)


def _check_intensities(case: str, scaled: Scaled) -> None:
    """Refuses an image that is at fault itself if the result is not numbers, before the model is blamed."""
    largest = max(abs(float(bound)) for bound in scaled.image.aminmax())
    size = max(max(abs(scale.mean), scale.deviation) for scale in scaled.scales)
    if not largest < _LARGEST_SEEN or not size < _LARGEST_SCALE:
        message = (
            f"its intensities are too large to compute with (of the order of {max(size, largest):.0e}); if "
            "the background is filled with such a number, put its true value there and save the file again"
        )
        raise InputError(Fault(case, "values-too-large", message))


def load_enhancer(
    checkpoint: Checkpoint, device: torch.device, max_memory: int | None = None, *, reverse: bool = False
) -> Enhancer:
    """Builds networks and chain that a checkpoint describes; see `Enhancer`.

    Args:
        checkpoint: Of an enhancement job.
        device: Where to compute.
        max_memory: Bytes that an enhancement may take at its peak; None for what is free.
        reverse: Whether to go from the target to the source.

    Raises:
        ConfigError: If the model is no enhancer, or knows no way back that is asked for.
        IntegrityError: If the checkpoint lacks what is needed to undo the scale.
    """
    job = enhancement_job(job_from_mapping(checkpoint.job))
    if reverse and not knows_way_back(checkpoint):
        message = "this model was trained to go one way only; leave it out, or train with method cyclegan"
        raise ConfigError(Fault("--reverse", "no-way-back", message))
    if reverse and job.network.noise == "slices":
        message = (
            "the way back of this model begins its thick slices at another place in every window, so that "
            "they do not fit together; leave it out (data.corruption makes thick slices of whole images)"
        )
        raise ConfigError(Fault("--reverse", "no-whole-way-back", message))
    prefix = _BACKWARD if reverse else "forward."
    num_noise = job.network.noise_channels if reverse else 0
    num = len(checkpoint.channels)
    networks, scales = [], []
    for member in checkpoint.members or (checkpoint,):
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in member.weights.items()
            if name.startswith(prefix)
        }
        network = build_generator(job.network, num, num_noise)
        network.load_state_dict(weights)
        networks.append(network)
        if job.inference.intensities == "target":
            scales.append(_learnt_scales(member.intensity, num, reverse=reverse))
    return Enhancer(job, checkpoint.channels, networks, scales, device, max_memory, num_noise=num_noise)


def knows_way_back(checkpoint: Checkpoint) -> bool:
    """Whether an enhancer can go from the target to the source."""
    members = checkpoint.members or (checkpoint,)
    return all(any(name.startswith(_BACKWARD) for name in member.weights) for member in members)


def _learnt_scales(intensity: Mapping[str, Any] | None, num: int, *, reverse: bool) -> tuple[Scale, ...]:
    """Scales of the images that a network makes: source channels stand first, those of the target behind."""
    try:
        channels = (intensity or {})["channels"]
        known = [Scale(float(channel["mean"]), float(channel["deviation"])) for channel in channels]
        return tuple(known[:num] if reverse else known[num : 2 * num])
    except (LookupError, TypeError, ValueError) as error:
        message = "it does not say what intensities its targets have; do not trust its source"
        raise IntegrityError(Fault("model", "checkpoint-content", message)) from error
