"""MONAI's segmentation networks, as they are: built from plain arguments that were checked first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from pipeline.config.monai_networks import MonaiNetwork
from pipeline.config.segmentation import NetworkSection
from pipeline.errors import ConfigError, Fault

MONAI_NETWORKS: Final[Mapping[MonaiNetwork, Callable[..., nn.Module]]] = {
    "monai_unet": UNet,
    "monai_attention_unet": AttentionUnet,
    "monai_basic_unet": BasicUNet,
    "monai_dynunet": DynUNet,
    "monai_segresnet": SegResNet,
}
GIVEN: Final = ("spatial_dims", "in_channels", "out_channels")
"""Arguments that follow from a job."""
_WIDTHS: Final = ("channels", "features", "filters", "init_filters", "num_groups")
_MOST_WIDE, _MOST, _LONGEST, _DEEPEST = 4096, 64, 64, 4


class MonaiSegmenter(nn.Module):
    """One of MONAI's networks with one output on the grid of the image.

    Args:
        section: Its name and arguments.
        in_channels: Channels of the image.
        out_channels: Logits per voxel.

    Raises:
        ConfigError: If there are no such arguments, or MONAI makes no network of them.
    """

    def __init__(self, section: NetworkSection, in_channels: int, out_channels: int) -> None:
        super().__init__()
        arguments = section.arguments or {}
        if faults := list(argument_faults(section.name, arguments)):
            raise ConfigError(Fault(f"network.arguments.{key}", "no-network", text) for key, text in faults)
        self._section, self._in_channels, self._out_channels = section, in_channels, out_channels
        build = MONAI_NETWORKS[section.name]  # type: ignore[index]  # a config names one of these
        given = dict(zip(GIVEN, (section.dimensions, in_channels, out_channels), strict=True))
        try:
            self.network = build(**arguments, **given)
        except Exception as error:  # MONAI says what it does not like by whatever it stumbles over
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            message = f"MONAI builds no network of these ({reason}); mend them"
            raise ConfigError(Fault("network.arguments", "no-network", message)) from error

    @property
    def encoder(self) -> list[nn.Module]:
        """Nothing that could be frozen apart."""
        return []

    @property
    def stages(self) -> list[nn.Module]:
        """The network as one."""
        return [self.network]

    def tensors_sized_by(self, *, inputs: bool = False, outputs: bool = False) -> set[str]:
        """Names of the tensors whose sizes follow from the number of image channels, or of logits."""
        with torch.device("meta"):
            # Twice as many, since groups of a norm that divide a number divide its double too.
            other = MonaiSegmenter(
                self._section, self._in_channels * (1 + inputs), self._out_channels * (1 + outputs)
            )
        sizes = {name: tensor.shape for name, tensor in other.state_dict().items()}
        return {name for name, tensor in self.state_dict().items() if sizes.get(name) != tensor.shape}

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, out_channels, …) on the grid of `image`, not activated."""
        logits: Tensor = self.network(image)
        return logits

    def forward_deep(self, image: Tensor) -> list[Tensor]:
        """The same in a list, as the only level that is supervised."""
        return [self(image)]


def argument_faults(name: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What keeps a network from being built: the argument, and what to do about it.

    Args:
        name: One of `MONAI_NETWORKS`.
        arguments: Plain values, of whatever source.
    """
    parameters = dict(inspect.signature(MONAI_NETWORKS[name]).parameters)  # type: ignore[index]  # a config names one of these
    known = [key for key in parameters if key not in GIVEN]
    for key, value in arguments.items():
        if key in GIVEN:
            yield key, "follows from dimensions, channels and labels of the job; leave it out"
        elif key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield key, f"this network has no such argument{hint}"
        elif key == "deep_supervision" and value:
            yield key, "only its finest output is used; set it to false"
        elif reason := _unfit(value, _MOST_WIDE if key in _WIDTHS else _MOST):
            yield key, reason
    for key in known:
        if parameters[key].default is inspect.Parameter.empty and key not in arguments:
            yield key, "is missing; this network needs it"


def _unfit(value: object, most: int, depth: int = 0) -> str | None:
    """Why a value cannot be an argument: no plain data, or so large that building would not end."""
    match value:
        case None | bool() | str():
            return None
        case int() | float():
            return None if abs(value) <= most else f"{value} is too large; at most {most} is taken"
        case list() | tuple() if len(value) <= _LONGEST and depth < _DEEPEST:
            return next((reason for v in value if (reason := _unfit(v, most, depth + 1))), None)
        case dict() if len(value) <= _LONGEST and depth < _DEEPEST:
            # Options of a norm or activation: numbers and switches.
            inner = value.values()
            return next((reason for v in inner if (reason := _unfit(v, _MOST_WIDE, depth + 1))), None)
    return "is no plain number, text, switch or short list of them"
