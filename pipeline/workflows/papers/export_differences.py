"""What an exported model does otherwise than the one that it was made of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from pipeline.checkpoint import Checkpoint
from pipeline.config import SegmentationJob
from pipeline.data.images import read_label_map
from pipeline.data.synthetic.phantoms import draw_phantom
from pipeline.errors import Fault, IntegrityError
from pipeline.export.bundle import INFERENCE, METADATA
from pipeline.export.graphs import Graph
from pipeline.inference.predictor import load_predictor
from pipeline.labels import LabelContract
from pipeline.volume import Grid, Volume

_BUNDLE_TIMEOUT_S: Final = 1800


@dataclass(frozen=True, eq=False)
class ExportModel:
    """A model that is exported.

    Attributes:
        checkpoint: As it was loaded.
        job: What it was trained by.
        contract: What its channels mean.
        network: With its weights; of an ensemble the mean of all.
        window: Voxels of its input along each axis.
    """

    checkpoint: Checkpoint
    job: SegmentationJob
    contract: LabelContract
    network: nn.Module
    window: tuple[int, ...]


def made_up_volume(model: ExportModel) -> tuple[Volume, ...]:
    """A volume of ellipsoids, larger than a window, with the model's channels."""
    i, j, k = (int(1.4 * size) + 3 for size in (*model.window, 8)[:3])
    image, _ = draw_phantom((i, j, k), len(model.checkpoint.channels), np.random.default_rng(0))
    spacing = model.job.preprocessing.spacing or (1.0, 1.0, 1.0)
    grid = Grid((i, j, k), np.diag([*spacing, 1.0]))
    channels = image[..., None] if image.ndim == 3 else image
    return tuple(Volume(np.ascontiguousarray(channels[..., c]), grid) for c in range(channels.shape[-1]))


def compare_windows(model: ExportModel, graph: Graph, volumes: Sequence[Volume]) -> tuple[int, int]:
    """Voxels of the network's grid whose label differs, and all of them."""
    predictor = load_predictor(model.checkpoint, torch.device("cpu"))
    prepared = predictor.prepare(volumes)
    image = prepared.image[: len(volumes)]

    def labels(predict: Graph) -> Tensor:
        section = model.job.inference
        batch = image.permute(3, 0, 1, 2) if len(model.window) == 2 else image[None]
        scores = sliding_window_inference(batch, model.window, 2, predict, section.overlap, section.blending)
        assert isinstance(scores, Tensor), "the network has one output"
        return scores.argmax(1) if model.contract.regions is None else scores > 0

    with torch.no_grad():
        ours, theirs = labels(model.network), labels(graph)
    return int((ours != theirs).sum()), ours.numel()


def compare_masks(
    model: ExportModel, folder: Path, scratch: Path, volumes: Sequence[Volume]
) -> tuple[int, int]:
    """Voxels of the image's own grid whose label differs between `monai.bundle run` and our prediction.

    Args:
        model: What the bundle was made of.
        folder: The bundle.
        scratch: An empty place beside it.
        volumes: The image, by channel.

    Returns:
        How many differ, and how many there are.

    Raises:
        IntegrityError: If the bundle does not run, or puts the mask elsewhere.
    """
    predictor = load_predictor(model.checkpoint, torch.device("cpu"))
    grid = volumes[0].grid
    ours = predictor.predict(predictor.prepare(volumes), grid).array
    stacked = np.stack([volume.array.astype(np.float32) for volume in volumes], axis=-1)
    (scratch / "images").mkdir()
    nib.save(
        nib.Nifti1Image(stacked[..., 0] if len(volumes) == 1 else stacked, grid.affine),
        scratch / "images/case.nii.gz",
    )
    command = [
        sys.executable, "-m", "monai.bundle", "run",
        "--config_file", str(folder / INFERENCE), "--meta_file", str(folder / METADATA),
        "--bundle_root", str(folder), "--dataset_dir", str(scratch / "images"),
        "--output_dir", str(scratch / "masks"),
    ]  # fmt: skip
    done = subprocess.run(  # noqa: S603 - fixed words, no shell
        command, capture_output=True, text=True, timeout=_BUNDLE_TIMEOUT_S, check=False, cwd=scratch
    )
    path = scratch / "masks/case.nii.gz"
    if done.returncode != 0 or not path.is_file():
        told = [line for line in done.stderr.splitlines() if "Error" in line] or ["no message"]
        raise IntegrityError(Fault("bundle", "bundle-does-not-run", f"`monai.bundle run` failed: {told[0]}"))
    theirs = read_label_map(path)
    if not theirs.grid.is_close(grid):
        message = "`monai.bundle run` puts the mask elsewhere than the image; nothing was exported"
        raise IntegrityError(Fault("bundle", "bundle-misplaced", message))
    return int(np.count_nonzero(ours != theirs.array)), ours.size
