"""What a bundle does to an image before its network sees it, in the words of `preprocessing`.

Only what comes out the same is taken over; whatever else stands there is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.bundles.plain import REFUSED, ConfigFile
from pipeline.bundles.steps import Allowed, Step, read_steps
from pipeline.config.strict_yaml import KeyPath
from pipeline.errors import Fault

_LARGEST: Final = 3.0e38
"""Stands for no bound: no float32 image has more."""
_FLOAT32: Final = (None, "float32", "float")
_PAIRS: Final = ([["L", "R"], ["P", "A"], ["I", "S"]],)
_NEUTRAL: Final[dict[str, Allowed]] = {
    "LoadImage": {
        **dict.fromkeys(("reader", "image_only", "ensure_channel_first", "simple_keys", "overwriting")),
        **dict.fromkeys(("meta_keys", "meta_key_postfix")),
        "dtype": _FLOAT32,
    },
    "EnsureChannelFirst": dict.fromkeys(("channel_dim", "strict_check", "meta_keys", "meta_key_postfix")),
    "EnsureType": {
        "dtype": _FLOAT32,
        **dict.fromkeys(("data_type", "device", "track_meta", "wrap_sequence")),
    },
    "CastToType": {"dtype": _FLOAT32},
    "ToTensor": {"dtype": _FLOAT32, **dict.fromkeys(("device", "track_meta", "wrap_sequence"))},
    "ToDevice": dict.fromkeys(("device", "non_blocking")),
    "Identity": {},
}
"""What changes no voxel of an image."""
_ORIENTATION: Final[Allowed] = {
    "axcodes": None,
    "as_closest_canonical": (False,),
    "labels": (None, *_PAIRS),
    "lazy": (False,),
}
_SPACING: Final[Allowed] = {
    "pixdim": None,
    **dict.fromkeys(("mode", "padding_mode", "align_corners")),  # each its own for each key
    "dtype": None,
    **dict.fromkeys(("diagonal", "recompute_affine", "scale_extent", "lazy"), (False,)),
    "ensure_same_shape": None,
    **dict.fromkeys(("min_pixdim", "max_pixdim"), (None,)),
}
_SAMPLING: Final = {
    "mode": ("bilinear",),
    "padding_mode": ("border",),
    "align_corners": (False, None),
}
"""How images are resampled; the first of each is MONAI's default."""
_NORMALISING: Final[dict[str, Allowed]] = {
    "ScaleIntensityRange": {
        **dict.fromkeys(("a_min", "a_max", "b_min", "b_max", "clip")),
        "dtype": _FLOAT32,
    },
    "NormalizeIntensity": {
        **dict.fromkeys(("subtrahend", "divisor", "channel_wise")),
        "nonzero": (False,),
        "dtype": _FLOAT32,
    },
    "ScaleIntensity": {
        "minv": (0, None),
        "maxv": (1, None),
        "factor": (None,),
        "channel_wise": None,
        "dtype": _FLOAT32,
    },
}


@dataclass
class Preparation:
    """What was found.

    Attributes:
        settings: Of `preprocessing`.
        statistics: `low`, `high`, `mean` and `deviation` of each channel for `normalisation: dataset`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    statistics: list[dict[str, float]] | None = None


def map_preprocessing(
    file: ConfigFile, path: KeyPath, key: str, num_channels: int, faults: list[Fault]
) -> Preparation:
    """Puts a chain of transforms into our settings.

    Args:
        file: That the chain stands in.
        path: Of the chain.
        key: Of the image.
        num_channels: Of the image.
        faults: All that has no words here is noted there.
    """
    found = Preparation()
    for step in read_steps(file, path, key, faults):
        if step.name in _NEUTRAL:
            step.check(_NEUTRAL[step.name])
        elif step.name == "Orientation":
            _take_orientation(step, found)
        elif step.name == "Spacing":
            _take_spacing(step, found)
        elif step.name in _NORMALISING:
            _take_normalisation(step, found, num_channels)
        else:
            step.refuse(None, f"nothing here prepares images by {step.name}")
    for key_, what in (("orientation", "Orientationd"), ("normalisation", "a transform of intensities")):
        if key_ not in found.settings:
            message = f"{what} is missing, or was refused; clinseg always has one"
            faults.append(Fault(file.where(path), "bundle-unmapped", message))
    return found


def _take_orientation(step: Step, found: Preparation) -> None:
    axcodes = step.take("axcodes")
    if not step.check(_ORIENTATION):
        return
    if "orientation" in found.settings or "spacing" in found.settings:
        step.refuse(None, "images are oriented once, before they are resampled; here they are not")
    elif not isinstance(axcodes, str) or len(axcodes) != 3:
        step.refuse("axcodes", "three letters such as RAS are needed")
    else:
        found.settings["orientation"] = axcodes


def _take_spacing(step: Step, found: Preparation) -> None:
    pixdim = step.take("pixdim")
    if not step.check(_SPACING) or pixdim is REFUSED:
        return
    for name, values in _SAMPLING.items():
        if step.take_own(name, values[0]) not in values:
            step.refuse(name, f"expected {values[0]} of images; nothing here does something else")
            return
    spacing = pixdim if isinstance(pixdim, list) else [pixdim] * 3
    if (
        "spacing" in found.settings
        or "normalisation" in found.settings
        or "orientation" not in found.settings
    ):
        step.refuse(None, "images are resampled once, after their orientation and before their intensities")
    elif len(spacing) != 3 or not all(_is_number(mm) and 0 < mm < 1000 for mm in spacing):
        step.refuse("pixdim", "three positive numbers of millimetres are needed")
    else:
        found.settings["spacing"] = [float(mm) for mm in spacing]


def _take_normalisation(step: Step, found: Preparation, num_channels: int) -> None:
    if not step.check(_NORMALISING[step.name]):
        return
    if "normalisation" in found.settings:
        step.refuse(None, "intensities are changed once; here they are changed again")
        return
    if step.name == "ScaleIntensityRange":
        _take_range(step, found, num_channels)
        return
    fixed = [step.take(name) for name in ("subtrahend", "divisor")]
    if step.name == "NormalizeIntensity" and fixed != [None, None]:
        _take_fixed(step, found, fixed, num_channels)
        return
    if num_channels > 1 and step.take("channel_wise", default=False) is not True:
        step.refuse("channel_wise", "channels are normalised each by itself here; it has to be true")
        return
    found.settings["normalisation"] = "zscore" if step.name == "NormalizeIntensity" else "minmax"


def _take_range(step: Step, found: Preparation, num_channels: int) -> None:
    low, high = step.take("a_min"), step.take("a_max")
    to_low, to_high = step.take("b_min"), step.take("b_max")
    clips = step.take("clip", default=False)
    if to_low is None and to_high is None:
        if clips:
            step.refuse("clip", "without b_min and b_max MONAI has nothing to clip to; write both")
            return
        to_low, to_high = 0.0, 1.0
    bounds = (low, high, to_low, to_high)
    if not all(_is_number(bound) for bound in bounds) or low >= high or to_low >= to_high:
        step.refuse(None, "a_min below a_max and b_min below b_max are needed, all numbers")
        return
    scale = (high - low) / (to_high - to_low)
    known = {
        "low": float(low) if clips else -_LARGEST,
        "high": float(high) if clips else _LARGEST,
        "mean": low - to_low * scale,
        "deviation": scale,
    }
    if clips and (to_low, to_high) == (-1, 1):
        found.settings |= {"normalisation": "window", "window": [float(low), float(high)]}
        return
    found.settings["normalisation"] = "dataset"
    found.statistics = [known] * num_channels


def _take_fixed(step: Step, found: Preparation, fixed: Sequence[Any], num_channels: int) -> None:
    is_listed = any(isinstance(value, list) for value in fixed)
    if is_listed and step.take("channel_wise", default=False) is not True:
        step.refuse("channel_wise", "a number for each channel needs it to be true; MONAI's default is false")
        return
    means, deviations = (value if isinstance(value, list) else [value] * num_channels for value in fixed)
    whole = [*means, *deviations]
    if len(whole) != 2 * num_channels or not all(_is_number(v) for v in whole) or min(deviations) <= 1e-8:
        step.refuse("divisor", "a subtrahend and a positive divisor are needed, for each channel or for all")
        return
    found.settings["normalisation"] = "dataset"
    found.statistics = [
        {"low": -_LARGEST, "high": _LARGEST, "mean": float(mean), "deviation": float(deviation)}
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
