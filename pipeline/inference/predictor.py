"""From a patient's volumes to a label map on their own grid, with everything taken from the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.checkpoint import Checkpoint
from pipeline.config import Job, PreprocessingSection, job_from_mapping
from pipeline.errors import ConfigError, Fault, ResourceError
from pipeline.inference.sliding_window import predict_scores
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.volume import Grid, Volume
from transforms.postprocessing import keep_largest_component, label_map_on_grid
from transforms.preprocessing import IntensityStatistics, Preprocessing, preprocess


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label map and how it came about.

    Attributes:
        label_map: `(I, J, K)` label values, in the stored axis order of the input.
        grid: That of the input.
        num_windows: Windows that the network saw.
    """

    label_map: NDArray[np.uint16]
    grid: Grid
    num_windows: int


class Predictor:
    """A trained network with its preprocessing and its label contract.

    Args:
        job: The job that trained it.
        contract: Names and values of the labels.
        channels: Names of the image channels.
        statistics: Per channel, for `normalisation: dataset`; else empty.
        network: In evaluation mode, on `device`.
        device: Where to compute.
    """

    def __init__(
        self,
        job: Job,
        contract: LabelContract,
        channels: Sequence[str],
        statistics: Sequence[IntensityStatistics],
        network: nn.Module,
        device: torch.device,
    ) -> None:
        self.job = job
        self.contract = contract
        self.num_channels = len(channels)
        self.preprocessing = build_preprocessing(job.preprocessing, statistics)
        self.network = network.to(device).eval()
        self.device = device

    def predict(self, images: Sequence[Volume]) -> Prediction:
        """Predicts one case.

        Args:
            images: One volume per channel, all on one grid.

        Raises:
            ResourceError: If the memory of the device does not suffice.
        """
        grid = images[0].grid
        prepared = preprocess(self.preprocessing, [image.array for image in images], grid.affine)
        window = self.job.inference.window_size or self.job.training.patch_size
        autocast = self.device.type == "cuda" and self.job.training.mixed_precision
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=autocast):
                scores = predict_scores(
                    self.network, prepared.image.to(self.device), window, self.job.inference
                )
                label_map = label_map_on_grid(
                    scores.logits,
                    prepared.affine,
                    grid.shape,
                    grid.affine,
                    self.contract.channel_values,
                    is_regions=self.contract.regions is not None,
                )
        except (torch.OutOfMemoryError, MemoryError) as error:
            message = "the volume does not fit into memory; lower inference.batch_size or use a larger device"
            raise ResourceError(Fault("prediction", "out-of-memory", message)) from error
        for name in self.job.inference.largest_component:
            label_map = keep_largest_component(label_map, self.contract.structures[name])
        return Prediction(label_map, grid, scores.num_windows)


def load_predictor(checkpoint: Checkpoint, device: torch.device) -> Predictor:
    """Builds network and chain that a checkpoint describes."""
    job = job_from_mapping(checkpoint.job)
    contract = LabelContract(checkpoint.labels, job.data.regions)
    network = build_network(job.network, len(checkpoint.channels), len(contract.channel_values))
    network.load_state_dict(checkpoint.weights)
    measured = (checkpoint.intensity or {}).get("channels", [])
    statistics = [IntensityStatistics(**channel) for channel in measured]
    return Predictor(job, contract, checkpoint.channels, statistics, network, device)


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


def select_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        message = "no GPU can be used (see `clinseg doctor`); take `auto` or `cpu`"
        raise ConfigError(Fault("device", "no-gpu", message))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
