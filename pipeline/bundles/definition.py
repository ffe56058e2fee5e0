"""All that a bundle says of its model, in the words of a segmentation job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pipeline.bundles.deciding import Decision, map_inferer, map_postprocessing
from pipeline.bundles.opening import Bundle
from pipeline.bundles.plain import REFUSED, ConfigFile
from pipeline.bundles.preparing import map_preprocessing
from pipeline.bundles.steps import target_name
from pipeline.config.strict_yaml import KeyPath
from pipeline.errors import Fault, InputError

NETWORKS: Final = {
    "UNet": "monai_unet",
    "Unet": "monai_unet",
    "AttentionUnet": "monai_attention_unet",
    "AttentionUNet": "monai_attention_unet",
    "BasicUNet": "monai_basic_unet",
    "BasicUnet": "monai_basic_unet",
    "DynUNet": "monai_dynunet",
    "DynUnet": "monai_dynunet",
    "SegResNet": "monai_segresnet",
}
"""Ours by MONAI's names for them."""
_LONGEST_NAME: Final = 64
_MOST_CHANNELS: Final = 1024


@dataclass(frozen=True)
class Definition:
    """A model without its weights.

    Attributes:
        network: `name`, `dimensions` and `arguments`.
        preprocessing: Settings of that section.
        statistics: Of each channel, for `normalisation: dataset`.
        inference: Settings of that section.
        labels: Names and values, background included.
        regions: Where a single output has a sigmoid.
        channels: Of the image.
        differences: What its own program does otherwise at the borders of structures.
    """

    network: dict[str, Any]
    preprocessing: dict[str, Any]
    statistics: list[dict[str, float]] | None
    inference: dict[str, Any]
    labels: dict[str, int]
    regions: dict[str, list[int]] | None
    channels: tuple[str, ...]
    differences: tuple[str, ...]


def define(bundle: Bundle) -> Definition:
    """Reads what a bundle says, nothing but plain values.

    Raises:
        InputError: With all that is missing, is no plain value, or has no words here.
    """
    faults: list[Fault] = []
    file = bundle.config
    network, given = _network(file, faults)
    key, channels = _channels(bundle.metadata, "inputs", given.get("in_channels"), faults)
    _, outputs = _channels(bundle.metadata, "outputs", given.get("out_channels"), faults)
    dimensions = network.get("dimensions", 3)
    prepared = map_preprocessing(file, _find(file, "preprocessing"), key, max(len(channels), 1), faults)
    inference = map_inferer(file, _find(file, "inferer"), dimensions, faults)
    decision = map_postprocessing(
        file,
        _find(file, "postprocessing"),
        len(outputs) or 2,
        is_resampled="spacing" in prepared.settings,
        faults=faults,
    )
    labels, regions = _labels(bundle.metadata, outputs, decision, faults)
    if faults:
        raise InputError(faults)
    names = {value: name for name, value in labels.items()}
    inference["largest_component"] = [names[value] for value in decision.components]
    return Definition(
        network,
        prepared.settings,
        prepared.statistics,
        inference,
        labels,
        regions,
        channels,
        tuple(dict.fromkeys(decision.differences)),
    )


def _find(file: ConfigFile, name: str) -> KeyPath:
    """Where a part stands: a training config has what is done to whole volumes under `validate`."""
    return next((path for path in ((name,), ("validate", name)) if file.raw(path) is not None), (name,))


def _network(file: ConfigFile, faults: list[Fault]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name, dimensions and arguments, and apart from them the numbers of channels."""
    path = file.follow(
        next((p for p in (("network_def",), ("network",)) if file.raw(p)), ("network_def",)), faults
    )
    written = file.raw(path)
    if not isinstance(written, dict):
        message = "a plain definition of the network, with `_target_` and arguments, is needed here"
        faults.append(Fault(file.where(path), "bundle-network", message))
        return {}, {}
    if str(written.get("_target_")).startswith("torch.jit"):
        message = (
            "the network is TorchScript, a program that nothing here runs; a bundle with a plain definition "
            "and models/model.pt is needed"
        )
        faults.append(Fault(file.where(path), "bundle-torchscript", message))
        return {}, {}
    name = target_name(file, path, faults)
    if name is not None and name not in NETWORKS:
        known = ", ".join(sorted(set(NETWORKS) - {"Unet", "AttentionUNet", "BasicUnet", "DynUnet"}))
        message = f"{name} is none of the networks that are known here: {known}"
        faults.append(Fault(file.where((*path, "_target_")), "bundle-target", message))
    keys = [key for key in written if key not in ("_target_", "_desc_")]
    values = {key: file.plain((*path, key), faults) for key in keys}
    given = {key: values.pop(key) for key in ("spatial_dims", "in_channels", "out_channels") if key in values}
    for key in ("in_channels", "out_channels", "spatial_dims"):
        value, most = given.get(key), 3 if key == "spatial_dims" else _MOST_CHANNELS
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            message = f"a number from 1 to {most} is needed here"
            faults.append(Fault(file.where((*path, key)), "bundle-network", message))
    if given.get("spatial_dims") == 1:
        faults.append(Fault(file.where((*path, "spatial_dims")), "bundle-network", "2 or 3 is needed here"))
    if values.get("deep_supervision") not in (None, False, REFUSED):
        values["deep_supervision"] = False  # its further outputs are for training alone
    network = {
        "name": NETWORKS.get(name or "", ""),
        "dimensions": given.get("spatial_dims"),
        "arguments": values,
    }
    return network, given


def _channels(
    metadata: ConfigFile, side: str, num: object, faults: list[Fault]
) -> tuple[str, tuple[str, ...]]:
    """The key of the one input or output, and the names of its channels."""
    path: KeyPath = ("network_data_format", side)
    tensors = metadata.raw(path)
    if not isinstance(tensors, dict) or len(tensors) != 1:
        message = "exactly one image goes in and one comes out here"
        faults.append(Fault(metadata.where(path), "bundle-channels", message))
        return "image", ()
    (key,) = tensors
    path = (*path, key, "channel_def")
    written = metadata.plain(path, faults)
    if written is REFUSED:
        return key, ()
    names = written if isinstance(written, dict) else {}
    ordered = [names.get(str(index)) for index in range(len(names))]
    is_named = all(isinstance(name, str) and _is_name(name) for name in ordered)
    if not names or not is_named or len(set(ordered)) < len(ordered):
        message = 'a name of its own for each channel is needed, by its number from "0" on'
        faults.append(Fault(metadata.where(path), "bundle-channels", message))
        return key, ()
    if isinstance(num, int) and len(ordered) != num:
        message = f"{len(ordered)} channels are named, and the network has {num}"
        faults.append(Fault(metadata.where(path), "bundle-channels", message))
    return key, tuple(str(name) for name in ordered)


def _labels(
    metadata: ConfigFile, outputs: tuple[str, ...], decision: Decision, faults: list[Fault]
) -> tuple[dict[str, int], dict[str, list[int]] | None]:
    """Names and values; a single output with a sigmoid is a region."""
    values = decision.values
    if len(outputs) == 1:
        (name,) = outputs
        if name == "background":
            message = "the only output is called background; call it what it marks"
            faults.append(
                Fault(metadata.where(("network_data_format", "outputs")), "bundle-channels", message)
            )
        return {"background": 0, name: values[0]}, {name: [values[0]]}
    labels = dict(zip(outputs, values, strict=False))
    if outputs and (len(set(values)) < len(values) or 0 not in values):
        message = "each output needs its own label value, one of them 0 for the background"
        faults.append(Fault(metadata.where(("network_data_format", "outputs")), "bundle-channels", message))
    return labels, None


def _is_name(text: str) -> bool:
    return 0 < len(text.strip()) <= _LONGEST_NAME and text.isprintable()
