"""How a bundle slides its window and makes labels of scores, in the words of `inference` and of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.bundles.plain import REFUSED, ConfigFile
from pipeline.bundles.steps import Allowed, Step, read_steps, target_name
from pipeline.config.strict_yaml import KeyPath
from pipeline.errors import Fault

_INFERER: Final[Allowed] = {
    **dict.fromkeys(("roi_size", "overlap", "mode", "sw_batch_size")),
    "sigma_scale": (0.125,),
    "padding_mode": ("constant",),
    "cval": (0,),
    "spatial_dim": (2,),
    # Where and how it is computed, not what.
    **dict.fromkeys(
        (
            "sw_device",
            "device",
            "progress",
            "cache_roi_weight_map",
            "cpu_thresh",
            "buffer_steps",
            "buffer_dim",
        )
    ),
    **dict.fromkeys(("with_coord", "batch_size_per_slice"), (False,)),
}
_SILENT: Final = ("SaveImage", "EnsureType", "ToTensor", "ToDevice", "CastToType", "Identity", "DeleteItems")
"""What changes no label."""
_ACTIVATION: Final[Allowed] = {"softmax": None, "sigmoid": None, "other": (None,)}
_INVERT: Final[Allowed] = dict.fromkeys(
    ("transform", "orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "nearest_interp")
) | dict.fromkeys(("to_tensor", "device"))
_DISCRETE: Final[Allowed] = {
    "argmax": None,
    "threshold": (None, 0.5),
    "to_onehot": (None,),
    "rounding": (None,),
    "dtype": None,
}
_COMPONENT: Final[Allowed] = {
    "applied_labels": None,
    "independent": None,
    "is_onehot": (None, False),
    "connectivity": (None, 3),
    "num_components": (1,),
}
_PROBABILITIES = (
    "its program interpolates probabilities on the way back to the image's grid, clinseg interpolates logits"
)
_LABELS = "its program resamples labels on the way back to the image's grid, clinseg interpolates logits"


@dataclass
class Decision:
    """What was found.

    Attributes:
        kind: `softmax` or `sigmoid`, once it is told.
        values: The label value of each output.
        components: Values of which the largest component is kept.
        differences: What the bundle's own program does otherwise at the borders of structures.
    """

    kind: str | None = None
    values: list[int] = field(default_factory=list)
    components: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    is_inverted: bool = False
    is_label: bool = False


def map_inferer(file: ConfigFile, path: KeyPath, dimensions: int, faults: list[Fault]) -> dict[str, Any]:
    """Window, overlap, blending and batch of a sliding window, as settings of `inference`."""
    path = file.follow(path, faults)
    name = target_name(file, path, faults) if isinstance(file.raw(path), dict) else None
    expected = "SliceInferer" if dimensions == 2 else "SlidingWindowInferer"
    if name != expected:
        message = f"a {expected} is needed for {dimensions} dimensions, and {name} stands there"
        faults.append(Fault(file.where(path), "bundle-unmapped", message))
        return {}
    step = Step(name, file, path, faults)
    if not step.check(_INFERER):
        return {}
    # Left out, MONAI cuts along the first axis.
    if name == "SliceInferer" and step.take("spatial_dim", 0) != 2:
        step.refuse("spatial_dim", "slices are cut along the last axis here, 2; MONAI's default is 0")
    size, overlap = step.take("roi_size"), step.take("overlap", 0.25)
    window = size if isinstance(size, list) else [size] * dimensions
    settings: dict[str, Any] = {"placement": "stepped"}
    if size is REFUSED or len(window) != dimensions or not all(_is_count(n, 4096) for n in window):
        step.refuse("roi_size", f"{dimensions} positive numbers of voxels are needed")
    else:
        settings["window_size"] = window
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        step.refuse("overlap", "one share from 0 to below 1 is needed")
    else:
        settings["overlap"] = float(overlap)
    mode, batch = step.take("mode", "constant"), step.take("sw_batch_size", 1)
    if mode not in ("constant", "gaussian"):
        step.refuse("mode", "constant or gaussian is needed")
    else:
        settings["blending"] = mode
    settings["batch_size"] = batch if _is_count(batch, 64) else 1
    return settings


def map_postprocessing(
    file: ConfigFile, path: KeyPath, num_outputs: int, *, is_resampled: bool, faults: list[Fault]
) -> Decision:
    """Puts the way from scores to a label map into our settings.

    Args:
        file: That the chain stands in.
        path: Of the chain.
        num_outputs: Of the network.
        is_resampled: Whether images are brought to another spacing.
        faults: All that has no words here is noted there.
    """
    found = Decision(values=list(range(num_outputs)) if num_outputs > 1 else [1])
    for step in read_steps(file, path, "pred", faults):
        if step.name == "Activations" and step.check(_ACTIVATION):
            _take_activation(step, found, num_outputs)
        elif step.name == "Invert" and step.check(_INVERT):
            if step.take("orig_keys") in (None, "pred", ["pred"]):
                continue  # MONAI undoes what was done to `pred` then, which is nothing
            found.is_inverted = True
            if is_resampled and (found.is_label or step.take("nearest_interp", default=True) is not False):
                found.differences.append(_LABELS)
            elif is_resampled and found.kind is not None:
                found.differences.append(_PROBABILITIES)
        elif step.name == "AsDiscrete" and step.check(_DISCRETE):
            _take_discretion(step, found, num_outputs)
        elif step.name == "MapLabelValue":
            _take_values(step, found)
        elif step.name == "KeepLargestConnectedComponent" and step.check(_COMPONENT):
            _take_components(step, found, is_resampled=is_resampled)
        elif step.name not in (
            *_SILENT,
            "Activations",
            "Invert",
            "AsDiscrete",
            "KeepLargestConnectedComponent",
        ):
            step.refuse(None, f"nothing here makes labels by {step.name}")
    if not found.is_label and not faults:
        message = "nothing tells how scores become labels; AsDiscreted is missing"
        faults.append(Fault(file.where(path), "bundle-unmapped", message))
    if is_resampled and not found.is_inverted:
        found.differences.append(_LABELS)
    return found


def _take_activation(step: Step, found: Decision, num_outputs: int) -> None:
    softmax, sigmoid = (step.take(name, default=False) is True for name in ("softmax", "sigmoid"))
    if found.is_label or softmax == sigmoid:
        step.refuse(None, "softmax or sigmoid is needed, before labels are made")
    elif sigmoid and num_outputs > 1:
        message = (
            "its outputs overlap, and a label map has one value per voxel; a network with softmax is needed"
        )
        step.refuse("sigmoid", message)
    elif softmax and num_outputs == 1:
        step.refuse("softmax", "a single output needs a sigmoid")
    else:
        found.kind = "sigmoid" if sigmoid else "softmax"


def _take_discretion(step: Step, found: Decision, num_outputs: int) -> None:
    argmax, threshold = step.take("argmax", default=False) is True, step.take("threshold") is not None
    if argmax == threshold or argmax != (num_outputs > 1):
        step.refuse(None, "argmax of several outputs is needed, or a threshold of 0.5 for one")
    elif threshold and found.kind != "sigmoid":
        step.refuse("threshold", "a threshold of 0.5 belongs behind a sigmoid, and there is none")
    else:
        found.is_label = True


def _take_values(step: Step, found: Decision) -> None:
    if not step.check({"orig_labels": None, "target_labels": None, "dtype": None}):
        return
    before, after = step.take("orig_labels"), step.take("target_labels")
    lists = [values for values in (before, after) if isinstance(values, list) and all(map(_is_label, values))]
    if (
        not found.is_label
        or found.components
        or len({len(values) for values in lists}) != 1
        or len(lists) != 2
    ):
        step.refuse(None, "two lists of as many label values are needed, right after labels are made")
        return
    mapping = dict(zip(before, after, strict=True))
    found.values = [mapping.get(value, value) for value in found.values]


def _take_components(step: Step, found: Decision, *, is_resampled: bool) -> None:
    applied = step.take("applied_labels")
    foreground: Sequence[int] = [value for value in found.values if value != 0]
    values = foreground if applied is None else applied if isinstance(applied, list) else [applied]
    is_united = step.take("independent", default=True) is not True and len(values) > 1
    if not found.is_label or (is_resampled and not found.is_inverted):
        step.refuse(None, "components are looked for in the label map on the image's own grid")
    elif is_united or not all(value in foreground for value in values):
        step.refuse("applied_labels", "the largest component of each of these labels by itself is kept here")
    else:
        found.components += [value for value in values if value not in found.components]


def _is_label(value: object) -> bool:
    return value == 0 or _is_count(value, 65535)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
