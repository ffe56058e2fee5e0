"""From a patient's volumes to a label map on their own grid, with everything taken from the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pipeline.checkpoint import Checkpoint
from pipeline.config import (
    PreprocessingSection,
    SegmentationJob,
    flipped_axes,
    job_from_mapping,
    segmentation_job,
)
from pipeline.data.case_images import check_slices
from pipeline.errors import ConfigError, Fault, ResourceError
from pipeline.inference.budget import Plan
from pipeline.inference.labelling import Labeller, LabelMap
from pipeline.labels import LabelContract
from pipeline.memory import attainable_bytes, format_need, format_size, resident_bytes
from pipeline.networks import Segmenter, build_network
from pipeline.networks.compiling import compiler_faults
from pipeline.volume import Grid, Volume
from transforms.postprocessing import ProbabilitySink
from transforms.preprocessing import IntensityStatistics, Prepared, Preprocessing, preprocess

# Measured (docs/inference.md): the float32 image, once more while it is turned; MONAI's sampling grid.
_TURNING_BYTES = 8  # a voxel and channel
_RESAMPLING_BYTES = 24  # a voxel of the network's grid


class Predictor:
    """Trained networks with their preprocessing and their label contract.

    Args:
        job: The job that trained them.
        contract: Names and values of the labels.
        channels: Names of the image channels.
        networks: With trained weights; of several the mean of the logits decides.
        statistics: Of each network, per channel, for `normalisation: dataset`; else empty.
        device: Where to compute.
        max_memory: Bytes that a prediction may take at its peak; None for what is free.
        compiles: Whether to compile the networks, now.
        before_pass: See `Labeller`.

    Raises:
        ConfigError: If they cannot be compiled.
    """

    def __init__(
        self,
        job: SegmentationJob,
        contract: LabelContract,
        channels: Sequence[str],
        networks: Sequence[Segmenter],
        statistics: Sequence[tuple[IntensityStatistics, ...]],
        device: torch.device,
        max_memory: int | None = None,
        *,
        compiles: bool = False,
        before_pass: Callable[[], None] | None = None,
    ) -> None:
        self.contract = contract
        self.num_channels = len(channels)
        self.device = device
        self.max_memory = max_memory
        # Each network sees the image normalised as in its own training; where they differ, side by side.
        shares_image = len(set(statistics)) <= 1
        seen = statistics[:1] if shares_image else statistics
        self._num_seen = max(1, len(seen))
        self._dimensions = job.network.dimensions
        self._preprocessing = build_preprocessing(job.preprocessing, [own for each in seen for own in each])
        self._labeller = Labeller(
            [network.to(device).eval() for network in networks],
            contract,
            job.inference,
            job.inference.window_size or job.training.patch_size,
            device,
            mixed_precision=job.training.mixed_precision,
            flipped_axes=flipped_axes(job),
            laterality=contract.channel_laterality(
                job.preprocessing.left_right_axis, job.data.left_right_pairs
            ),
            shares_image=shares_image,
            compiles=compiles,
            before_pass=before_pass,
        )
        if compiles:
            with compiler_faults("--compile", "leave it out"):
                self._labeller.rehearse(self.num_channels * self._num_seen)

    def prepare(self, images: Sequence[Volume]) -> Prepared:
        """Brings the images of a case, one volume per channel on one grid, to the network's grid.

        Raises:
            InputError: If it is a slice across another axis than those of a network of two dimensions.
        """
        arrays = [image.array for image in images] * self._num_seen
        prepared = preprocess(self._preprocessing, arrays, images[0].grid.affine)
        orientation, shape = self._preprocessing.orientation, prepared.image.shape[1:]
        check_slices("prediction", self._dimensions, orientation, shape)
        return prepared

    def preparing_bytes(self, grid: Grid) -> int:
        """Bytes that `prepare` takes at its peak for a case on `grid`."""
        return preparing_bytes(self._preprocessing, self.num_channels * self._num_seen, grid)

    def predict(
        self,
        prepared: Prepared,
        grid: Grid,
        on_plan: Callable[[Plan], None] = lambda plan: None,
        sink: ProbabilitySink | None = None,
    ) -> LabelMap:
        """Predicts a prepared case on the patient's grid; see `Labeller.label`."""
        return self._labeller.label(prepared, grid, self.max_memory, on_plan, sink)


def load_predictor(
    checkpoint: Checkpoint,
    device: torch.device,
    max_memory: int | None = None,
    *,
    compiles: bool = False,
    before_pass: Callable[[], None] | None = None,
) -> Predictor:
    """Builds networks and chain that a checkpoint describes; see `Predictor`."""
    job = segmentation_job(job_from_mapping(checkpoint.job))
    contract = load_contract(checkpoint)
    networks, statistics = [], []
    for member in checkpoint.members or (checkpoint,):
        network = build_network(job.network, len(checkpoint.channels), len(contract.channel_values))
        network.load_state_dict(member.weights)
        networks.append(network)
        measured = (member.intensity or {}).get("channels", [])
        statistics.append(tuple(IntensityStatistics(**channel) for channel in measured))
    return Predictor(
        job,
        contract,
        checkpoint.channels,
        networks,
        statistics,
        device,
        max_memory,
        compiles=compiles,
        before_pass=before_pass,
    )


def load_contract(checkpoint: Checkpoint) -> LabelContract:
    """What the label maps of a segmentation model mean."""
    data = segmentation_job(job_from_mapping(checkpoint.job)).data
    return LabelContract(checkpoint.labels, data.regions, data.ignore_value, terminology=data.terms)


def build_preprocessing(
    section: PreprocessingSection, statistics: Sequence[IntensityStatistics]
) -> Preprocessing:
    """The chain's settings from the config and what was measured on the training cases."""
    return Preprocessing(
        orientation=section.orientation,
        spacing=section.spacing,
        normalisation=section.normalisation,
        window=section.window,
        statistics=tuple(statistics),
    )


def preparing_bytes(settings: Preprocessing, num_channels: int, grid: Grid) -> int:
    """Bytes that `preprocess` takes at its peak for a case on `grid`."""
    num_resampled = count_voxels(settings, grid) if settings.spacing else 0
    turned, resampled = _TURNING_BYTES * num_channels, _RESAMPLING_BYTES + 8 * num_channels
    return turned * math.prod(grid.shape) + resampled * num_resampled


def check_preparing(case: str, num_bytes: int, max_memory: int | None = None) -> None:
    """Refuses an image that cannot even be brought to the network's grid within the budget.

    Args:
        case: Its id.
        num_bytes: What that takes.
        max_memory: Bytes that the process may take; None for what is free.

    Raises:
        ResourceError: If it does not fit.
    """
    if max_memory is not None:
        if (needed := resident_bytes() + num_bytes) > max_memory:
            message = (
                f"it cannot be prepared within {format_size(max_memory)}: that takes {format_need(needed)}, "
                "and windows take theirs afterwards; allow more"
            )
            raise ResourceError(Fault(case, "budget-too-small", message))
        return
    # What is taken counts as well: it may be a case that is computed beside, and gone in a moment.
    if num_bytes > (limit := attainable_bytes()):
        message = (
            f"preparing it takes {format_need(num_bytes)} of memory, {format_size(limit)} are there; crop "
            "the image, or take a machine with more"
        )
        raise ResourceError(Fault(case, "out-of-memory", message))


def count_voxels(settings: Preprocessing, grid: Grid) -> int:
    """About how many voxels the network's grid has for a case on `grid`."""
    share = math.prod(grid.spacing) / math.prod(settings.spacing) if settings.spacing else 1.0
    return int(math.prod(grid.shape) * share)


def select_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: If the name is none of `auto`, `cpu` and `cuda`, or a GPU is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        message = f"{name!r} is no device; take `auto`, `cpu` or `cuda` (CUDA_VISIBLE_DEVICES says which GPU)"
        raise ConfigError(Fault("device", "unknown-device", message))
    if name == "cuda" and not torch.cuda.is_available():
        message = "no GPU can be used (see `clinseg doctor`); take `auto` or `cpu`"
        raise ConfigError(Fault("device", "no-gpu", message))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
