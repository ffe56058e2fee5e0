"""Augmentation of training patches against its peers, in one run on one core: processor time per patch.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py -o docs/benchmarks/augmentation.md

Peers: batchgeneratorsv2 (nnU-Net's), TorchIO, if they are installed (constrained, or they replace torch), and
MONAI. All are given the same steps with the same probabilities and ranges, as far as they have them. In each
round every method changes the same number of patches, one method after the other; a round's figure is its
mean per patch, told as median (smallest to largest) over the rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from monai.data import set_track_meta
from torch import Tensor

from pipeline.config import AugmentationSection, load_job, segmentation_job
from pipeline.data.batches import Batch
from pipeline.labels import LabelContract
from pipeline.memory import freed_memory_kept
from pipeline.training.segmentation import SegmentationTask
from transforms.augmentation import Augmentation
from transforms.keys import IMAGE, LABEL

ROOT = Path(__file__).parents[1]
BATCH = 2
AXES = (0, 1, 2)
Size = tuple[int, int, int]
Method = Callable[[Tensor, Tensor], object]
"""Changes a batch of images `(B, C, *source)` and labels `(B, *source)`, which it may overwrite."""
Sample = tuple[Tensor, Tensor]

STEPS = (
    *("rotation", "scaling", "elastic", "noise", "blur", "brightness", "contrast"),
    *("low_resolution", "inverted_gamma", "gamma"),
)
OFF: dict[str, Any] = {f"{name}_probability": 0.0 for name in STEPS}
ALWAYS: dict[str, Any] = dict.fromkeys(OFF, 1.0) | {
    "blur_channel_probability": 1.0,
    "low_resolution_channel_probability": 1.0,
}
SETTINGS = {
    "nnU-Net's steps and probabilities": AugmentationSection(mirror_axes=AXES),
    "the same, one patch in five bent": AugmentationSection(mirror_axes=AXES, elastic_probability=0.2),
    "rotation and scaling alone, always": AugmentationSection(
        **OFF | {"rotation_probability": 1.0, "scaling_probability": 1.0}
    ),
    "elastic deformation alone, always": AugmentationSection(**OFF | {"elastic_probability": 1.0}),
    "everything but elastic, always": AugmentationSection(
        **ALWAYS | {"elastic_probability": 0.0}, mirror_axes=AXES
    ),
    "everything, always": AugmentationSection(**ALWAYS, mirror_axes=AXES),
}
DRAWN_AT_RANDOM = 4
"""Times as many patches where steps happen at random, since methods draw different ones."""
NUM_PATCHES = {(32, 48, 32): 60, (64, 64, 64): 24, (128, 128, 128): 4}


def ours(section: AugmentationSection, size: Size) -> Method:
    augmentation = Augmentation(section, size)
    number = 0

    def change(image: Tensor, label: Tensor) -> object:
        nonlocal number
        number += len(image)
        return augmentation(image, label, range(number, number + len(image)))

    return change


def batchgenerators(section: AugmentationSection, size: Size) -> Method:
    """As nnU-Net's trainer builds it, but labels from the nearest voxel, and contrast without clamping."""
    return _batchgenerators(section, size, "nearest")


def nnunet(section: AugmentationSection, size: Size) -> Method:
    """The same with labels interpolated one by one, as nnU-Net's trainer has it."""
    return _batchgenerators(section, size, "bilinear")


def _batchgenerators(s: AugmentationSection, size: Size, mode_seg: str) -> Method:
    intensity, spatial = "batchgeneratorsv2.transforms.intensity", "batchgeneratorsv2.transforms.spatial"
    brightness, contrast = import_module(f"{intensity}.brightness"), import_module(f"{intensity}.contrast")
    gamma = import_module(f"{intensity}.gamma").GammaTransform
    low_resolution = import_module(f"{spatial}.low_resolution").SimulateLowResolutionTransform
    blur = import_module("batchgeneratorsv2.transforms.noise.gaussian_blur").GaussianBlurTransform
    noise = import_module(f"{intensity}.gaussian_noise").GaussianNoiseTransform
    utils = "batchgeneratorsv2.transforms.utils"
    at_times = import_module(f"{utils}.random").RandomTransform
    bounds, angle = contrast.BGContrast, math.radians(s.rotation_degrees)
    place = import_module(f"{spatial}.spatial").SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=s.elastic_probability,
        p_rotation=s.rotation_probability,
        rotation=(-angle, angle),
        p_scaling=s.scaling_probability,
        scaling=s.scaling_range,
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        mode_seg=mode_seg,
        border_mode_seg="border",
        padding_mode_image="border",
    )
    steps = [
        (noise((0, s.noise_deviation), 1, True), s.noise_probability),
        (blur(s.blur_sigma, False, False, s.blur_channel_probability, benchmark=True), s.blur_probability),
        (
            brightness.MultiplicativeBrightnessTransform(bounds(s.brightness_range), False, 1),
            s.brightness_probability,
        ),
        (contrast.ContrastTransform(bounds(s.contrast_range), False, False, 1), s.contrast_probability),
        (
            low_resolution(
                s.low_resolution_range, False, True, None, None, s.low_resolution_channel_probability
            ),
            s.low_resolution_probability,
        ),
        (gamma(bounds(s.gamma_range), 1, False, 1, 1), s.inverted_gamma_probability),
        (gamma(bounds(s.gamma_range), 0, False, 1, 1), s.gamma_probability),
    ]
    chain = [place, *(at_times(step, probability) for step, probability in steps if probability)]
    if s.mirror_axes:
        chain.append(import_module(f"{spatial}.mirroring").MirrorTransform(s.mirror_axes))
    compose = import_module(f"{utils}.compose").ComposeTransforms(chain)
    return one_by_one(lambda image, label: compose(image=image, segmentation=label[None]))


def monai(s: AugmentationSection, size: Size) -> Method:
    """Without meta tensors, which it is faster without."""
    set_track_meta(False)
    affine_probability = 1 - (1 - s.rotation_probability) * (1 - s.scaling_probability)
    both, modes = [IMAGE, LABEL], ["bilinear", "nearest"]
    affine = mt.RandAffined(
        both,
        spatial_size=size,
        prob=affine_probability,
        rotate_range=[math.radians(s.rotation_degrees)] * 3,
        scale_range=[(s.scaling_range[0] - 1, s.scaling_range[1] - 1)] * 3,
        mode=modes,
        padding_mode="border",
    )
    elastic = mt.Rand3DElasticd(
        both, (5, 8), (50, 150), size, s.elastic_probability, mode=modes, padding_mode="border"
    )
    blur, low_resolution = (
        s.blur_probability * s.blur_channel_probability,
        s.low_resolution_probability * s.low_resolution_channel_probability,
    )
    factor, gamma = s.brightness_range[1] - 1, s.gamma_range
    steps = [
        (affine, affine_probability),
        (elastic, s.elastic_probability),
        (mt.RandGaussianNoised(IMAGE, s.noise_probability, std=s.noise_deviation), s.noise_probability),
        (mt.RandGaussianSmoothd(IMAGE, s.blur_sigma, s.blur_sigma, s.blur_sigma, prob=blur), blur),
        (mt.RandScaleIntensityd(IMAGE, factor, s.brightness_probability), s.brightness_probability),
        (
            mt.RandScaleIntensityFixedMeand(IMAGE, factor, prob=s.contrast_probability),
            s.contrast_probability,
        ),
        (
            mt.RandSimulateLowResolutiond(IMAGE, low_resolution, zoom_range=s.low_resolution_range),
            low_resolution,
        ),
        (
            mt.RandAdjustContrastd(IMAGE, s.inverted_gamma_probability, gamma, True, True),
            s.inverted_gamma_probability,
        ),
        (mt.RandAdjustContrastd(IMAGE, s.gamma_probability, gamma, False, True), s.gamma_probability),
        *((mt.RandFlipd(both, 0.5, axis), 0.5) for axis in s.mirror_axes),
    ]
    compose = mt.Compose([step for step, probability in steps if probability])
    return one_by_one(lambda image, label: compose({IMAGE: image, LABEL: label[None]}))


def torchio(s: AugmentationSection, size: Size) -> Method:
    """What it has: no brightness, no contrast, low resolution along one axis at a time.

    It cannot crop while it resamples, so it is given no margin to resample.
    """
    import_module("SimpleITK").ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    tio = import_module("torchio")
    low_resolution = s.low_resolution_probability * s.low_resolution_channel_probability
    log_gamma = tuple(map(math.log, s.gamma_range))
    affine = 1 - (1 - s.rotation_probability) * (1 - s.scaling_probability)
    degrees, blur = s.rotation_degrees, s.blur_probability * s.blur_channel_probability
    shares = s.low_resolution_range
    steps = [
        (tio.RandomAffine(s.scaling_range, degrees, isotropic=True, p=affine), affine),
        (
            tio.RandomElasticDeformation(max_displacement=[n / 16 for n in size], p=s.elastic_probability),
            s.elastic_probability,
        ),
        (tio.RandomNoise(std=(0, s.noise_deviation), p=s.noise_probability), s.noise_probability),
        (tio.RandomBlur(s.blur_sigma, p=blur), blur),
        (
            tio.RandomAnisotropy(downsampling=(1 / shares[1], 1 / shares[0]), p=low_resolution),
            low_resolution,
        ),
        (tio.RandomGamma(log_gamma, p=s.inverted_gamma_probability), s.inverted_gamma_probability),
        (tio.RandomGamma(log_gamma, p=s.gamma_probability), s.gamma_probability),
    ]
    chain = [step for step, probability in steps if probability]
    if s.mirror_axes:
        chain.append(tio.RandomFlip(s.mirror_axes, 0.5))
    compose = tio.Compose(chain)

    def change(image: Tensor, label: Tensor) -> object:
        for axis, n in enumerate(size):
            first = (label.shape[axis] - n) // 2
            image, label = image.narrow(axis + 1, first, n), label.narrow(axis, first, n)
        subject = tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label[None]))
        changed = compose(subject)
        return changed.image.data, changed.label.data

    return one_by_one(change)


def one_by_one(change: Method) -> Method:
    return lambda images, labels: [change(*sample) for sample in zip(images, labels, strict=True)]


METHODS = {"ours": ours, "MONAI": monai}
if find_spec("batchgeneratorsv2"):
    METHODS |= {"batchgeneratorsv2": batchgenerators, "as nnU-Net sets it": nnunet}
if find_spec("torchio"):
    METHODS["TorchIO"] = torchio
ORDER = [
    name
    for name in ("ours", "batchgeneratorsv2", "as nnU-Net sets it", "MONAI", "TorchIO")
    if name in METHODS
]


def make_batch(source_size: Sequence[int]) -> Sample:
    """Noise, and blobs of three labels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(BATCH, 1, *source_size, generator=generator)
    coarse = torch.randn(BATCH, 1, *(n // 8 for n in source_size), generator=generator)
    smooth = F.interpolate(coarse, source_size, mode="trilinear")[:, 0]
    return image, (smooth > 0).to(torch.uint8) + (smooth > 0.3)


def clock(method: Method, batch: Sample, num_patches: int) -> float:
    """Milliseconds per patch."""
    taken = 0.0
    for _ in range(num_patches // BATCH):
        image, label = (tensor.clone() for tensor in batch)
        start = time.process_time()
        method(image, label)
        taken += time.process_time() - start
    return 1000 * taken / num_patches


def measure(name: str, size: Size, rounds: int) -> str:
    """A row of the table."""
    section = SETTINGS[name]
    methods = {method: METHODS[method](section, size) for method in ORDER}
    batch = make_batch(Augmentation(section, size).source_size)
    num_patches = NUM_PATCHES[size] * (1 if name.endswith("always") else DRAWN_AT_RANDOM)
    times: dict[str, list[float]] = {method: [] for method in methods}
    for number in range(rounds + 1):
        for method, change in methods.items():
            # The first round only warms up.
            with freed_memory_kept():
                taken = clock(change, batch, num_patches if number else BATCH)
            if number:
                times[method].append(taken)
                print(f"  {name}, round {number}: {method} {taken:.2f} ms", file=sys.stderr, flush=True)
    ahead = min(
        statistics.median(times[peer]) / statistics.median(times["ours"]) for peer in ORDER if peer != "ours"
    )
    cells = [spread(times[method]) for method in ORDER]
    return f"| {name}, {'×'.join(map(str, size))} | {' | '.join(cells)} | {ahead:.1f} |"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def measure_share(rounds: int) -> list[str]:
    """What augmentation takes of a training step of the shipped hippocampus job."""
    job = segmentation_job(load_job(ROOT / "configs/hippocampus.yaml"))
    contract = LabelContract({"background": 0, "anterior": 1, "posterior": 2})
    task = SegmentationTask(job, contract, 1, [], torch.device("cpu"))
    image, label = make_batch(task.augmentation.source_size)
    steps, shares, num_steps = [], [], 30
    with freed_memory_kept():
        for number in range(rounds + 1):
            taken = {"step": 0.0, "augmentation": 0.0}
            for step in range(num_steps if number else 3):
                seeds = (2 * step, 2 * step + 1)
                start = time.process_time()
                task.augmentation(image, label, seeds)
                between = time.process_time()
                task.training_step(Batch({IMAGE: image, LABEL: label}, seeds), 0.0)
                taken["augmentation"] += between - start
                taken["step"] += time.process_time() - between
            if number:
                steps.append(1000 * taken["step"] / num_steps)
                shares.append(100 * taken["augmentation"] / taken["step"])
    return [
        "| a step of the hippocampus job, 2 patches of 32×48×32, one core | ms |",
        "|---|---|",
        f"| whole | {spread(steps)} |",
        f"| of it augmentation, as the job sets it | {spread(shares)} % |",
    ]


NOTES = """\
Milliseconds of processor time per patch (the machine is shared, a clock on the wall would count the work of
others), from a source patch with its margin (1.5 times per axis at most) to image and label in the size to
train on; one channel, three labels. Every method gets a copy of the source before its time begins.

- *batchgeneratorsv2* is built as nnU-Net's trainer builds it, but takes labels from the nearest voxel, as we
  do, and does not clamp after contrast. *As nnU-Net sets it*: labels interpolated linearly, one by one.
- MONAI runs without meta tensors. A rotation or scaling and an elastic deformation are two resamplings to it.
- TorchIO has neither brightness nor contrast nor gamma on the negative (plain gamma stands in for it), and
  lowers the resolution along one axis. It cannot crop while it resamples, so it is given no margin to
  resample, and turns empty corners in.
- Elastic deformations differ by definition: control points and cubic splines here and in TorchIO, smoothed
  noise in batchgeneratorsv2 (through a Fourier transform) and MONAI.
- Freed memory is kept (`memory.freed_memory_kept`) for all of them, as training does.
- Where steps happen at random, methods draw different ones; that is most of the spread there."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Augmentation against its peers.")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/benchmarks/augmentation.md"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128], help="first sides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # the peers draw from it
    rows = [
        measure(name, size, arguments.rounds)
        for size in NUM_PATCHES
        if size[0] in arguments.sizes
        for name in SETTINGS
    ]
    command = f"OMP_NUM_THREADS=1 python benchmarks/augmentation.py --rounds {arguments.rounds}"
    packages = ("torch", "monai", "batchgeneratorsv2", "torchio")
    versions = ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name))
    page = [
        "# Augmentation against its peers",
        f"Measured on one CPU core with {versions} in {arguments.rounds} rounds by `{command}`; "
        "median (smallest to largest). On a GPU: not measured.",
        "\n".join(
            [
                f"| ms per patch | {' | '.join(ORDER)} | the best peer / ours |",
                f"|{'---|' * (len(ORDER) + 2)}",
                *rows,
            ]
        ),
        "\n".join(measure_share(arguments.rounds)),
        NOTES,
    ]
    arguments.output.write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
