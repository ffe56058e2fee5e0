"""Weights that others trained: read from their files without running code, and given our networks' names.

`docs/classification.md` says which files and layouts fit.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import ConfigError, Fault, InputError
from pipeline.networks.classifier import Classifier
from pipeline.networks.pretrained import READERS, Source

# Where programs put the state dict in what they save, and what they put before its names.
_WRAPPINGS: Final = ("state_dict", "model_state_dict", "model", "net")
_PREFIX: Final = re.compile(r"^(?:(?:module|backbone|model|_orig_mod)\.)+")
# torchvision has no `layers` there, and in its older files a dot before the number.
_DENSE_LAYER: Final = re.compile(r"(?<=\.)(denselayer\d+)\.(norm|conv)\.?([12])\.")
_COUNTER: Final = "num_batches_tracked"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, without what frameworks put before the names.

    Args:
        path: A `.safetensors` file, or one of `torch.save` that holds a state dict, alone or under a key such
            as `state_dict`. Nothing in it is run.

    Raises:
        ConfigError: If there is no such file, or it cannot be read.
        InputError: If it is damaged, holds no tensors, or more than plain data.
    """
    return {_PREFIX.sub("", name): tensor for name, tensor in read_tensors(path).items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The same by the names in the file.

    Raises:
        ConfigError: As above.
        InputError: As above.
    """
    _check_readable(path)
    tensors = {
        name: tensor
        for name, tensor in _unwrap(_read(path)).items()
        if isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
    }
    if not tensors:
        message = "no tensors were found in it; save `model.state_dict()`"
        raise InputError(Fault(str(path), "weights-none", message))
    return tensors


def fit_layout(weights: Mapping[str, Tensor], network: Classifier) -> dict[str, Tensor]:
    """The weights by the names of `network`, kernels of slices made kernels of volumes where it is 3D.

    A kernel is repeated along the last axis and divided by its size there, so that a volume that is the same
    in all slices is answered as its slice was (Carreira and Zisserman 2017, arXiv:1705.07750).

    Args:
        weights: By the names of torchvision, timm, MedicalNet or MONAI. What has another name keeps it.
        network: That shall start from them; only its names and shapes are looked at.
    """
    targets = network.state_dict()
    fitted = {_rename(name, network.foreign_names): tensor for name, tensor in weights.items()}
    for name, target in targets.items():
        if name in fitted:
            fitted[name] = _inflate(fitted[name], target)
        elif name.endswith(_COUNTER) and name.replace(_COUNTER, "running_mean") in fitted:
            fitted[name] = torch.zeros(
                (), dtype=torch.long
            )  # older files have none, and nothing depends on it
    return fitted


def foreign_source(weights: Mapping[str, Tensor], network: Classifier) -> Source:
    """What `network` starts from.

    As many image channels on both sides are the same ones in the same order; of another number, none is known
    to mean the same. Of classes it never is.

    Args:
        weights: As `read_weights` gives them.
        network: Only its names and shapes are looked at.
    """
    fitted, targets = fit_layout(weights, network), network.state_dict()
    (reader, *_) = (name for name in READERS if name in targets)
    num_channels = targets[reader].shape[1]
    is_same = reader in fitted and fitted[reader].shape[1:2] == (num_channels,)
    inputs = range(num_channels) if is_same else [None] * num_channels
    return Source(fitted, tuple(inputs), (None,) * network.classifier.out_features)


def _check_readable(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        message = f"a file of weights was expected, but this is {found}; check the path"
        raise ConfigError(Fault(str(path), "weights-missing", message))
    try:
        path.open("rb").close()
    except OSError as error:
        message = f"the file cannot be read ({(error.strerror or str(error)).lower()})"
        raise ConfigError(Fault(str(path), "weights-unreadable", message)) from error


def _read(path: Path) -> Any:  # noqa: ANN401 - whatever was saved
    if _is_program(path):
        message = "it is TorchScript, a program that nothing here runs; save `model.state_dict()` instead"
        raise InputError(Fault(str(path), "weights-torchscript", message))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it may not read, which it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = (
            "it holds more than tensors and plain data, whose reading could run code, or it is no file of "
            "torch.save; where it comes from, save `model.state_dict()` alone, best as safetensors"
        )
        raise InputError(Fault(str(path), "weights-refused", message)) from error
    except Exception as error:  # torch's reader ends in whatever a missing or changed byte leads it to
        reason = f"{type(error).__name__}: {error}".split(". ")[0][:120]
        message = (
            f"the file is damaged or of another kind ({reason}); fetch it again from where it comes from"
        )
        raise InputError(Fault(str(path), "weights-damaged", message)) from error


def _is_program(path: Path) -> bool:
    """Whether a file is what `torch.jit.save` writes: code beside the weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except Exception:  # a damaged archive makes its reader raise anything; what loads the weights tells
        return False


def _unwrap(content: Any) -> Mapping[Any, Any]:  # noqa: ANN401 - whatever was saved
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return {}


def _rename(name: str, names: Mapping[str, str]) -> str:
    name = _DENSE_LAYER.sub(r"\1.layers.\2\3.", name)
    theirs = next((theirs for theirs in names if name.startswith(f"{theirs}.")), None)
    return name if theirs is None else names[theirs] + name.removeprefix(theirs)


def _inflate(tensor: Tensor, target: Tensor) -> Tensor:
    is_flat = target.ndim == 5 and tensor.ndim == 4 and tensor.shape[2:] == target.shape[2:4]
    if not is_flat:
        return tensor
    depth = target.shape[4]
    return tensor[..., None].expand(*tensor.shape, depth) / depth
