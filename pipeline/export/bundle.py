"""A MONAI bundle of a segmentation model: what `python -m monai.bundle run` needs to make the same masks.

The chain is MONAI's already, so a bundle names the very transforms. Its network is a TorchScript module: a
bundle that defines a network in Python would need this program, or run code that came with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import SegmentationJob
from pipeline.errors import ConfigError, Fault
from pipeline.files import write_text
from pipeline.labels import LabelContract

NETWORK: Final = Path("models/model.ts")
INFERENCE: Final = Path("configs/inference.json")
METADATA: Final = Path("configs/metadata.json")
OWN: Final = Path("models/clinseg.safetensors")
"""The checkpoint itself, of which `clinseg import-bundle` makes the very same model again."""
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_REGIONS = (
    "$lambda scores: torch.stack([torch.zeros_like(scores[0])] + [torch.where(scores[k] > 0, "
    "torch.full_like(scores[k], k + 1), torch.zeros_like(scores[k])) for k in range(len(scores))])"
    ".amax(0, keepdim=True)"
)
"""The number of the innermost region that holds a voxel, from 1; regions run from outer to inner."""
_UNBOUNDED = 1e30

Config = dict[str, Any]


def check_bundle(job: SegmentationJob, num_channels: int) -> None:
    """Raises a ConfigError if no bundle can say what this model does."""
    if job.preprocessing.normalisation == "dataset" and num_channels > 1:
        message = (
            "MONAI has no transform that normalises each of several channels by its own statistics; choose "
            "another --format"
        )
        raise ConfigError(Fault("--format", "no-bundle", message))


def write_bundle_configs(
    folder: Path,
    job: SegmentationJob,
    contract: LabelContract,
    channels: Sequence[str],
    about: Mapping[str, Any],
    statistics: Mapping[str, float] | None,
) -> None:
    """Writes `configs/inference.json` and `configs/metadata.json`.

    Args:
        folder: The bundle.
        job: Of the model.
        contract: Names and values.
        channels: Of the image.
        about: `name`, `version`, `versions` by library, and `sha256` of the checkpoint.
        statistics: `low`, `high`, `mean` and `deviation` for `normalisation: dataset`.
    """
    inference = _inference(job, contract, len(channels), statistics)
    write_text(folder / INFERENCE, json.dumps(inference, indent=2) + "\n")
    metadata = _metadata(job, contract, channels, about)
    write_text(folder / METADATA, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")


def _inference(
    job: SegmentationJob, contract: LabelContract, num_channels: int, statistics: Mapping[str, float] | None
) -> Config:
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/images'",
        "images": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$@bundle_root + '/{NETWORK}'",
            "map_location": "@device",
        },
        "network": "@network_def",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(job, num_channels, statistics)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(job),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(job, contract)},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(
    job: SegmentationJob, num_channels: int, statistics: Mapping[str, float] | None
) -> list[Config]:
    section = job.preprocessing
    chain: list[Config] = [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"}
        | ({"channel_dim": "no_channel"} if num_channels == 1 else {"channel_dim": -1}),
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {
            "_target_": "Orientationd",
            "keys": "image",
            "axcodes": section.orientation,
            "labels": "$(('L', 'R'), ('P', 'A'), ('I', 'S'))",
        },
    ]
    if section.spacing is not None:
        spacing = {"pixdim": list(section.spacing), "mode": "bilinear", "dtype": "$torch.float32"}
        chain.append({"_target_": "Spacingd", "keys": "image", **spacing})
    if section.normalisation == "zscore":
        return [*chain, {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}]
    if section.normalisation == "minmax":
        return [*chain, {"_target_": "ScaleIntensityd", "keys": "image", "channel_wise": True}]
    if section.window is not None:
        low, high, to_low, to_high = *section.window, -1.0, 1.0
    else:
        assert statistics is not None, "the checkpoint has them for this normalisation"
        low, high = statistics["low"], statistics["high"]
        scale = max(statistics["deviation"], 1e-8)
        if high - low > _UNBOUNDED:  # of a model that came in with a bundle: nothing is clipped
            fixed = {"subtrahend": statistics["mean"], "divisor": scale}
            return [*chain, {"_target_": "NormalizeIntensityd", "keys": "image", **fixed}]
        to_low, to_high = ((bound - statistics["mean"]) / scale for bound in (low, high))
    bounds = {"a_min": low, "a_max": high, "b_min": to_low, "b_max": to_high, "clip": True}
    return [*chain, {"_target_": "ScaleIntensityRanged", "keys": "image", **bounds}]


def _inferer(job: SegmentationJob) -> Config:
    window = list(job.inference.window_size or job.training.patch_size)
    settings: Config = {
        "roi_size": window,
        "sw_batch_size": job.inference.batch_size or 1,
        "overlap": job.inference.overlap,
        "mode": job.inference.blending,
    }
    if len(window) == 2:
        return {"_target_": "SliceInferer", "spatial_dim": 2, **settings}
    return {"_target_": "SlidingWindowInferer", **settings}


def _postprocessing(job: SegmentationJob, contract: LabelContract) -> list[Config]:
    """Scores back to the image's own grid, and there the decision."""
    chain: list[Config] = [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        }
    ]
    values = list(contract.channel_values)
    if contract.regions is None:
        numbers = list(range(len(values)))
        chain.append({"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    else:
        numbers = list(range(1, len(values) + 1))
        chain.append({"_target_": "Lambdad", "keys": "pred", "func": _REGIONS})
    if numbers != values:
        mapping = {"orig_labels": numbers, "target_labels": values, "dtype": "$torch.float32"}
        chain.append({"_target_": "MapLabelValued", "keys": "pred", **mapping})
    for name in job.inference.largest_component:
        united = {"applied_labels": list(contract.structures[name]), "independent": False}
        chain.append(
            {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "connectivity": 3, **united}
        )
    kind = "uint8" if max(values) < 256 else "uint16"
    saving = {"output_dir": "@output_dir", "output_postfix": "", "separate_folder": False, "resample": False}
    chain.append(
        {"_target_": "SaveImaged", "keys": "pred", "output_dtype": f"$__import__('numpy').{kind}", **saving}
    )
    return chain


def _needed(job: SegmentationJob) -> dict[str, str]:
    """MONAI finds connected components with scikit-image."""
    return {"scikit-image": "0.24"} if job.inference.largest_component else {}


def _metadata(
    job: SegmentationJob, contract: LabelContract, channels: Sequence[str], about: Mapping[str, Any]
) -> Config:
    window = list(job.inference.window_size or job.training.patch_size)
    versions = about["versions"]
    outputs = {str(k): name for k, name in enumerate(contract.channel_names)}
    tensor: Config = {"type": "image", "spatial_shape": window, "dtype": "float32", "is_patch_data": True}
    image: Config = {
        **tensor,
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": len(channels),
        "value_range": [],
        "channel_def": {str(k): name for k, name in enumerate(channels)},
    }
    scores: Config = {
        **tensor,
        "format": "segmentation",
        "num_channels": len(outputs),
        "value_range": [],
        "channel_def": outputs,
    }
    return {
        "schema": _SCHEMA,
        "version": about["version"],
        "changelog": {about["version"]: f"exported from checkpoint {about['sha256']}"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {
            "nibabel": versions["nibabel"],
            "pytorch-ignite": "0.5",
            **_needed(job),
        },
        "name": about["name"],
        "task": f"Segmentation of {', '.join(contract.structures)}",
        "description": "Exported by clinseg; docs/README.md is its card.",
        "authors": "to be filled in",
        "copyright": "to be filled in",
        "intended_use": "to be filled in; no medical device",
        "data_type": "nibabel",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": scores}},
    }
