"""T1-weighted heads of patients who do not exist, with their tissues.

They come from the MNI152 template (T1, grey and white matter at 1 mm) inside nilearn's wheel. Every patient
is the template under a random affine and a smooth deformation, with a skull and scalp around it, drawn with
its own contrast, bias field, noise and intensity scale. Image and label map are made from the same warped
tissue maps, so the label edges lie where the image has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from pipeline.data.synthetic.warps import Array, draw_coordinates, resample, rotation, smooth_field
from pipeline.errors import ConfigError, Fault

HEAD_LABELS = {"background": 0, "csf": 1, "grey_matter": 2, "white_matter": 3}

# T1 of CSF, grey and white matter in the template, whose brightest voxel is 1: mean and deviation.
_TEMPLATE_MEANS = np.array([[0.36], [0.66], [0.85]], dtype=np.float32)
_TEMPLATE_DEVIATIONS = np.array([[0.09], [0.08], [0.05]], dtype=np.float32)


class Template(NamedTuple):
    """The head that all patients are made from.

    Attributes:
        maps: `(1, 5, I, J, K)`: grey matter, white matter, texture, and the depths below the inner skull and
            below the skin in millimetres (negative outside).
        affine: Voxel → world, RAS millimetres.
    """

    maps: torch.Tensor
    affine: NDArray[np.float64]


def load_template() -> Template:
    """Reads the template from nilearn's wheel, with tissues sharpened and a skull and skin added.

    Raises:
        ConfigError: If nilearn is missing.
    """
    try:
        from nilearn.datasets import (  # noqa: PLC0415 - an extra, and slow to import
            load_mni152_gm_template,
            load_mni152_template,
            load_mni152_wm_template,
        )
    except ImportError as error:
        message = 'the heads are made from a template in nilearn; run: pip install "clinseg[demo]"'
        raise ConfigError(Fault("clinseg demo", "nilearn-missing", message)) from error
    loaders = load_mni152_template, load_mni152_gm_template, load_mni152_wm_template
    volumes = [loader(resolution=1) for loader in loaders]
    t1, grey, white = (np.asarray(volume.dataobj, dtype=np.float32) for volume in volumes)
    tissues, texture = _explain_t1(t1, grey, white)
    inside, skin = (_upsample(depth, t1.shape) for depth in _depths(t1[::2, ::2, ::2] > 0))
    maps = np.stack([tissues[1], tissues[2], texture, inside, skin])
    return Template(torch.from_numpy(maps)[None], volumes[0].affine)


def draw_head(
    template: Template, generator: np.random.Generator, tilt: float
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """One patient.

    Args:
        template: Where the anatomy comes from.
        generator: Determines the patient.
        tilt: Degrees by which the scanner's grid is turned against the world, shared among the three axes.

    Returns:
        Image and label map in the template's axis order, and their affine.
    """
    shape = template.maps.shape[2:]
    grey, white, texture, inside, skin = resample(template.maps, draw_coordinates(generator, shape))
    csf = (1 - grey - white) * np.float32(generator.uniform(1.0, 1.6))  # more fluid with age
    label = np.where(white > np.maximum(grey, csf), 3, np.where(grey > csf, 2, 1)).astype(np.uint8)
    label[inside <= 0] = 0
    anatomy = _paint_brain(generator, csf, grey, white, texture)
    anatomy = _wrap_in_skull(generator, anatomy, inside, skin)
    affine = template.affine.copy()
    affine[:3, 3] += generator.uniform(-15, 15, 3)
    affine[:3] = rotation(np.deg2rad(tilt) * generator.dirichlet((1, 1, 1))) @ affine[:3]
    return _scan(generator, anatomy), label, affine


def _explain_t1(t1: Array, grey: Array, white: Array) -> tuple[Array, Array]:
    """Tissue shares `(3, I, J, K)` on which maps and T1 agree, and the texture of the T1 beyond them.

    The maps alone close narrow sulci and speckle the brain stem, which the averaged T1 shows right.
    """
    brain = t1 > 0
    shares = np.stack([np.clip(1 - grey - white, 0, 1), grey, white])
    likelihoods = np.exp(-0.5 * ((t1[brain] - _TEMPLATE_MEANS) / _TEMPLATE_DEVIATIONS) ** 2)
    shares[:, brain] = np.sqrt(shares[:, brain] * likelihoods) + 1e-6
    shares /= shares.sum(axis=0)
    texture = np.where(brain, t1 - np.tensordot(_TEMPLATE_MEANS[:, 0], shares, axes=1), 0)
    return shares, np.clip(texture, -0.1, 0.1)


def _depths(brain: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Depths below the inner skull and below the skin in millimetres; the brain's mask has voxels of 2 mm.

    The skull follows the brain with its sulci closed; the head also reaches down to the neck.
    """
    closed = _depth(_depth(brain) > -8) > 8
    inside = _depth(closed) + 2.0
    head = np.maximum.accumulate((inside > -11)[:, :, ::-1], axis=2)[:, :, ::-1]
    return gaussian_filter(inside, 0.7), gaussian_filter(_depth(head), 3)


def _depth(mask: NDArray[np.bool_]) -> Array:
    """Signed distance to the mask's surface in millimetres, positive inside, for voxels of 2 mm."""
    distance = np.where(mask, distance_transform_edt(mask), -distance_transform_edt(~mask))
    return (2 * distance - np.copysign(1, distance)).astype(np.float32)


def _upsample(array: Array, shape: Sequence[int]) -> Array:
    tensor = torch.from_numpy(array)[None, None]
    large = torch.nn.functional.interpolate(tensor, tuple(shape), mode="trilinear", align_corners=True)
    return large[0, 0].numpy()


def _paint_brain(
    generator: np.random.Generator, csf: Array, grey: Array, white: Array, texture: Array
) -> Array:
    """T1-weighted intensity from 0 to 1, its edges as sharp as one patient's, not an average's."""
    shares = np.stack([csf, grey, white])
    shares *= shares * shares
    means = generator.uniform((0.28, 0.52, 0.80), (0.32, 0.56, 0.86)).astype(np.float32)
    intensity: Array = np.tensordot(means, shares, axes=1) / shares.sum(axis=0)
    return intensity + np.float32(0.5) * texture


def _wrap_in_skull(generator: np.random.Generator, brain: Array, inside: Array, skin: Array) -> Array:
    """Puts skull with marrow, muscle, fat and skin around the brain; air is 0.

    Fat is suppressed, as by the pulse of that name: all that surrounds the brain is darker than CSF, so that
    a small network tells it apart in minutes.
    """
    thickness = 6 + smooth_field(generator.uniform(-3, 3, (8, 8, 8)), brain.shape)
    marrow = np.exp(-(((-inside / thickness - 0.5) / 0.2) ** 2))
    marrow *= smooth_field(generator.uniform(0, 0.06, (16, 16, 16)), brain.shape)
    muscle = 0.1 + smooth_field(generator.uniform(-0.05, 0.05, (24, 28, 23)), brain.shape)
    fat = np.exp(-(((skin - 3.5) / np.float32(generator.uniform(1.5, 2.5))) ** 2))
    head: Array = (muscle + (0.17 - muscle) * fat) * _coverage(skin)
    head += (0.02 + marrow - head) * _coverage(inside + thickness)
    head += (brain - head) * _coverage(inside)
    return head


def _coverage(depth: Array) -> Array:
    """Share of a voxel of 1 mm that lies below a surface, from its centre's depth."""
    coverage: Array = np.clip(depth + np.float32(0.5), 0, 1)
    return coverage


def _scan(generator: np.random.Generator, anatomy: Array) -> NDArray[np.int16]:
    """The anatomy as a scanner stores it: gamma, bias field, Rician noise and a scale of its own."""
    signal = np.clip(anatomy, 0, None) ** np.float32(generator.uniform(0.85, 1.2))
    signal *= np.exp(smooth_field(generator.uniform(-0.35, 0.35, (5, 5, 5)), anatomy.shape))
    noise = generator.standard_normal((2, *anatomy.shape), dtype=np.float32)
    noise *= np.float32(generator.uniform(0.02, 0.04))
    scale = np.float32(np.exp(generator.uniform(np.log(200), np.log(3000))))
    stored: NDArray[np.int16] = np.rint(scale * np.hypot(signal + noise[0], noise[1])).astype(np.int16)
    return stored
