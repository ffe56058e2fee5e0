"""Synthetic studies as folders with a Decathlon manifest: whole, repeatable and written only once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from pipeline.data.synthetic.heads import HEAD_LABELS, draw_head, load_template
from pipeline.data.synthetic.phantoms import PHANTOM_LABELS, draw_phantom
from pipeline.errors import ConfigError, Fault
from pipeline.files import atomic_path, resource_error, write_text

_MANIFEST = "dataset.json"
_STAMP = "study.json"
_GENERATOR = 3  # raised whenever the same parameters give other voxels
_FOLDERS = ("training/images", "training/labels", "images", "references")
# Stored orientation and tilt of the scanner's grid in degrees; the patients take turns.
_GRIDS = (("RAS", 0.0), ("LPS", 0.0), ("PIR", 0.0), ("RAS", 8.0))


def write_head_study(
    folder: Path,
    *,
    num_training: int,
    num_held_out: int,
    seed: int,
    on_case: Callable[[], None] = lambda: None,
) -> Path:
    """Writes T1-weighted heads of 197x233x189 voxels of 1 mm with CSF, grey and white matter labelled.

    Training heads go to `training/images` and `training/labels`, held-out heads to `images` and `references`.
    The same arguments give the same bytes; heads that are already there are kept, those of another seed or
    number are replaced.

    Args:
        folder: Where the study goes.
        num_training: Heads listed under `training`.
        num_held_out: Heads listed under `test`, numbered after the training heads.
        seed: Together with the case's name it determines the head.
        on_case: Called whenever a head is ready.

    Returns:
        Path of the Decathlon `dataset.json`.

    Raises:
        ConfigError: If nilearn is missing, or `folder` holds a study that is not from here.
        ResourceError: If the disk is full or the folder cannot be written.
    """
    cases = [f"head_{number:02d}" for number in range(1, num_training + num_held_out + 1)]
    _claim(
        folder, {"generator": _GENERATOR, "seed": seed, "training": num_training, "held_out": num_held_out}
    )
    template = None
    for number, case in enumerate(cases):
        images, labels = _FOLDERS[:2] if number < num_training else _FOLDERS[2:]
        paths = folder / images / f"{case}.nii.gz", folder / labels / f"{case}.nii.gz"
        if not all(path.exists() for path in paths):
            template = template or load_template()
            orientation, tilt = _GRIDS[number % len(_GRIDS)]
            image, label, affine = draw_head(template, _generator(seed, case), tilt)
            _write_nifti(paths[0], image, affine, orientation)
            _write_nifti(paths[1], label, affine, orientation)
        on_case()
    return _write_dataset(
        folder,
        name="synthetic heads",
        channels=["T1"],
        labels=HEAD_LABELS,
        training=[(f"{_FOLDERS[0]}/{case}", f"{_FOLDERS[1]}/{case}") for case in cases[:num_training]],
        test=[f"{_FOLDERS[2]}/{case}" for case in cases[num_training:]],
    )


def write_phantom_study(
    folder: Path,
    *,
    num_cases: int,
    shape: tuple[int, int, int] = (24, 28, 20),
    num_channels: int = 1,
    seed: int = 0,
) -> Path:
    """Writes noisy ellipsoids, a core within a shell, that a tiny network learns in seconds.

    Several channels, each with its own contrast, make a 4D image `(I, J, K, channel)` as in Decathlon.

    Returns:
        Path of the Decathlon `dataset.json`; all cases are listed under `training`.

    Raises:
        ResourceError: If the disk is full or the folder cannot be written.
    """
    cases = [f"phantom_{number:02d}" for number in range(1, num_cases + 1)]
    for case in cases:
        image, label = draw_phantom(shape, num_channels, _generator(seed, case))
        _write_nifti(folder / "imagesTr" / f"{case}.nii.gz", image, np.eye(4))
        _write_nifti(folder / "labelsTr" / f"{case}.nii.gz", label, np.eye(4))
    return _write_dataset(
        folder,
        name="phantoms",
        channels=[f"contrast {number}" for number in range(1, num_channels + 1)],
        labels=PHANTOM_LABELS,
        training=[(f"imagesTr/{case}", f"labelsTr/{case}") for case in cases],
        test=[],
    )


def _claim(folder: Path, stamp: dict[str, int]) -> None:
    """Marks the folder as this study's and removes what another study written here has left.

    Raises:
        ConfigError: If there is a study but no stamp: it may be somebody's data.
        ResourceError: If the folder cannot be read or written.
    """
    path, text = folder / _STAMP, json.dumps(stamp) + "\n"
    try:
        if path.exists() and path.read_bytes() == text.encode():
            return
        files = [head for name in _FOLDERS for head in (folder / name).glob("head_*.nii.gz")]
        files += folder.glob(_MANIFEST)
        if files and not path.exists():
            message = f"it holds {files[0].name}, which is not of a demo study; choose another folder"
            raise ConfigError(Fault(str(folder), "folder-in-use", message))
        for file in files:
            file.unlink()
    except OSError as error:
        raise resource_error(folder, error) from error
    write_text(path, text)


def _generator(seed: int, case: str) -> np.random.Generator:
    """A generator for one case: neither the number nor the order of the cases changes what it draws."""
    digest = hashlib.sha256(f"{seed}|{case}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def _write_nifti(
    path: Path, array: NDArray[np.generic], affine: NDArray[np.float64], orientation: str = "RAS"
) -> None:
    """Writes the array with its axes turned to `orientation`; sform and qform agree, the time is left out."""
    image = nib.Nifti1Image(array, affine)
    image = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(orientation)))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _write_dataset(
    folder: Path,
    *,
    name: str,
    channels: Sequence[str],
    labels: dict[str, int],
    training: Sequence[tuple[str, str]],
    test: Sequence[str],
) -> Path:
    pairs = [{"image": f"./{image}.nii.gz", "label": f"./{label}.nii.gz"} for image, label in training]
    dataset = {
        "name": name,
        "description": "Synthetic; shows no real patient.",
        "tensorImageSize": "4D" if len(channels) > 1 else "3D",
        "modality": {str(number): channel for number, channel in enumerate(channels)},
        "labels": {str(value): label for label, value in labels.items()},
        "numTraining": len(training),
        "numTest": len(test),
        "training": pairs,
        "test": [f"./{image}.nii.gz" for image in test],
    }
    path = folder / _MANIFEST
    write_text(path, json.dumps(dataset, indent=2) + "\n")
    return path
