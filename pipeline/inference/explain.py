"""Which places of an image an answer of a classifier rests on, as a map on the image's own grid.

A map shows what the network used, not what is diseased: a network may be right for a wrong reason. MONAI's
`GradCAM` is what the tests compare with; `docs/decisions.md` says why it is not what runs here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipeline.inference.windows import space_evenly
from pipeline.volume import Affine, Grid
from transforms.resampling import resample_within

Method = Literal["grad_cam", "occlusion"]
Activation = Callable[[Tensor], Tensor]
"""`(B, K)` logits → `(B, K)` probabilities."""

METHODS: Final[tuple[Method, ...]] = get_args(Method)
DRAWN, STORED = ".png", ".nii.gz"
"""What the names of a map's two files end in."""
SOFTMAX: Final[Activation] = partial(torch.softmax, dim=1)

_LINEAR = {2: "bilinear", 3: "trilinear"}
_BOXES_PER_AXIS = 4
"""Of an occlusion: a box is this part of every axis, and there are at most `2 * 4 - 1` places for it."""


def explain(
    network: nn.Module,
    image: Tensor,
    target: int,
    method: Method,
    *,
    batch_size: int = 8,
    activation: Activation = SOFTMAX,
) -> Tensor:
    """How much each voxel of an image mattered for the score of a class.

    The network is left as it was: in its mode, without hooks, and with the gradients it had. The same call
    gives the same map.

    Args:
        network: A classifier `(B, C, *spatial) → (B, K)` logits whose `last_features` is the module that
            makes its last spatial features; not compiled.
        image: `(C, *spatial)` in 2D or 3D, as the network sees it, on its device.
        target: Index of the class.
        method: `grad_cam` or `occlusion`; see the functions of these names.
        batch_size: Images per forward pass of an occlusion.
        activation: Makes probabilities of logits for an occlusion: calibrated ones, or sigmoids where several
            classes can be true.

    Returns:
        `(*spatial)` float32: `grad_cam` from 0 to 1, `occlusion` from -1 to 1.

    Raises:
        FloatingPointError: If the network's scores are not numbers.
    """
    if method == "grad_cam":
        found = grad_cam(network, image, target)
    else:
        box = [math.ceil(size / _BOXES_PER_AXIS) for size in image.shape[1:]]
        found = occlusion_map(network, image, target, box, batch_size=batch_size, activation=activation)
    if not bool(found.isfinite().all()):
        raise FloatingPointError("the network's scores are not numbers")
    return found


def grad_cam(network: nn.Module, image: Tensor, target: int) -> Tensor:
    """Gradient-weighted class activation mapping (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2).

    The last features, weighted by the mean gradient of the class's logit; what speaks against the class
    counts as 0. The map is as coarse as these features and resampled linearly.

    Args:
        network: As for `explain`.
        image: `(C, *spatial)`.
        target: Index of the class.

    Returns:
        `(*spatial)` float32 in shares of its largest value; 0 everywhere if nothing speaks for the class.
    """
    with _evaluating(network), _recording(network) as recorded:
        score = network(image[None])[0, target]
        (gradient,) = torch.autograd.grad(score, recorded[-1])
    weights = gradient.flatten(2).mean(2).reshape(*gradient.shape[:2], *[1] * (image.ndim - 1))
    evidence = (weights * recorded[-1].detach()).sum(1, keepdim=True).relu().float()
    found = interpolate(evidence, image.shape[1:], mode=_LINEAR[image.ndim - 1])[0, 0]
    largest = found.max()
    return torch.where(largest > 0, found / largest, found)


def occlusion_map(
    network: nn.Module,
    image: Tensor,
    target: int,
    box: Sequence[int],
    *,
    overlap: float = 0.5,
    batch_size: int = 8,
    activation: Activation = SOFTMAX,
) -> Tensor:
    """Occlusion sensitivity (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2).

    A box in which every channel is the channel's mean over the image moves over it. A voxel's value is the
    mean drop of the class's probability over all boxes that hid it; negative where hiding helped the class.

    Args:
        network: As for `explain`.
        image: `(C, *spatial)`.
        target: Index of the class.
        box: Voxels of the box per axis, not more than the image has.
        overlap: Share of a box that its neighbour hides again, at least; 0 to less than 1.
        batch_size: Images per forward pass: what bounds the memory.
        activation: Makes probabilities of logits.

    Returns:
        `(*spatial)` float32 from -1 to 1.
    """
    starts = [space_evenly(n, size, overlap) for n, size in zip(image.shape[1:], box, strict=True)]
    places = [
        tuple(slice(start, start + size) for start, size in zip(corner, box, strict=True))
        for corner in product(*starts)
    ]
    with _evaluating(network):
        drops = torch.zeros(image.shape[1:], device=image.device)
        times = torch.zeros_like(drops)
        whole = activation(network(image[None]))[0, target]
        for first in range(0, len(places), batch_size):
            some = places[first : first + batch_size]
            lost = whole - activation(network(_hide(image, some)))[:, target]
            for drop, place in zip(lost, some, strict=True):
                drops[place] += drop
                times[place] += 1
        means: Tensor = drops / times
        return means


def to_patient_grid(found: Tensor, affine: Affine, grid: Grid) -> NDArray[np.float32]:
    """Brings a map from the grid that the network saw to the patient's.

    Args:
        found: `(H, W, D)` float32, or `(H, W)` for one slice across the third axis of `affine`.
        affine: 4x4 voxel of the map → world, RAS millimetres; parallel to the grid's.
        grid: The patient's.

    Returns:
        `(I, J, K)` float32, interpolated linearly; 0 where the network saw nothing.
    """
    volume = found[..., None] if found.ndim == 2 else found
    resampled = resample_within(volume.detach().cpu(), affine, grid.shape, grid.affine)
    return np.asarray(resampled.numpy(), dtype=np.float32)


def map_name(case: str, class_name: str, method: Method) -> str:
    """File name, without ending, of a case's map; a class may be called what no file can be."""
    safe = re.sub(r"[^\w.-]+", "-", class_name)
    return f"{case}_{safe}_{method}"


def find_maps(folder: Path) -> list[Path]:
    """The files in `folder` that are called as maps are, of whatever case and class: drawn, and as NIfTI."""
    return [
        path
        for method in METHODS
        for ending in (DRAWN, STORED)
        for path in sorted(folder.glob(f"*_{method}{ending}"))
    ]


def _hide(image: Tensor, places: Sequence[tuple[slice, ...]]) -> Tensor:
    """Copies of `(C, *spatial)`, each with the mean of every channel in one of the places."""
    mean = image.mean(dim=tuple(range(1, image.ndim)), keepdim=True)
    copies = image.repeat(len(places), *[1] * image.ndim)
    for copy, place in zip(copies, places, strict=True):
        copy[:, *place] = mean
    return copies


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients, also for callers in inference mode; then as it was.

    MONAI's `eval_mode` would turn all modules back to training, those too that had not been.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _recording(network: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps the last features of a forward pass, and records gradients from there on.

    Nothing before them is differentiated: the pass takes no more memory than a prediction, parameters may be
    frozen, and no gradient reaches one.
    """
    layer = network.last_features
    assert isinstance(layer, nn.Module), "a classifier's last_features is a module"
    recorded: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        recorded.append(output.clone().requires_grad_())
        torch.set_grad_enabled(True)  # `_evaluating` ends it
        return recorded[-1].clone()  # the next layer may work in place

    handle = layer.register_forward_hook(keep)
    try:
        yield recorded
    finally:
        handle.remove()
