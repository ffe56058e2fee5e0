"""Draws what each step of augmentation does to a patch of a synthetic head, at the end of its default range.

python docs/images/augmentation.py    # writes docs/images/augmentation.png
"""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.config import AugmentationSection
from pipeline.data.synthetic.heads import draw_head, load_template
from transforms.augmentation import Augmentation, ChannelDraw, Draw
from transforms.augmentation.drawing import count_points
from transforms.cropping import crop
from transforms.laterality import Laterality

SIZE = (128, 152, 32)
LEFT, RIGHT = 1, 2
COLOURS = {LEFT: "#ff9d2e", RIGHT: "#4cc3ff"}
DISTANCE = 0.25
"""Of control points, as a share of the patch's side."""


def draw_displacement(share: float) -> Draw:
    """An elastic deformation by at most `share` of the distance of its control points."""
    points = [count_points(n, DISTANCE) for n in SIZE]
    units = np.random.default_rng(3).uniform(-1, 1, (3, *points))
    voxels = np.reshape(SIZE, (3, 1, 1, 1)) * DISTANCE * share
    return Draw((ChannelDraw(),), displacement=units * voxels, distance=DISTANCE)


def draw_steps() -> dict[str, Draw]:
    """What is drawn, by title."""
    untouched = (ChannelDraw(),)
    everything = ChannelDraw(blur_sigma=0.7, brightness=1.1, contrast=0.9, low_resolution=0.7, gamma=0.8)
    return {
        "cropped only": Draw(untouched),
        "rotation, 30°": Draw(untouched, angles=(math.radians(30), 0.0, 0.0)),
        "scaling, 1.4": Draw(untouched, zoom=1.4),
        "scaling, 0.7": Draw(untouched, zoom=0.7),
        "elastic, 0.25": draw_displacement(0.25),
        "elastic, 0.4": draw_displacement(0.4),
        "mirrored, sides exchanged": Draw(untouched, mirrored=(0,)),
        "noise, 0.1": Draw(untouched, noise_deviation=0.1),
        "blur, 1 voxel": Draw((ChannelDraw(blur_sigma=1.0),)),
        "brightness, 1.25": Draw((ChannelDraw(brightness=1.25),)),
        "contrast, 0.75": Draw((ChannelDraw(contrast=0.75),)),
        "low resolution, 0.5": Draw((ChannelDraw(low_resolution=0.5),)),
        "gamma, 1.5": Draw((ChannelDraw(gamma=1.5),)),
        "gamma, 0.7": Draw((ChannelDraw(gamma=0.7),)),
        "gamma of the negative, 1.5": Draw((ChannelDraw(inverted_gamma=1.5),)),
        "many at once": Draw(
            (everything,),
            angles=(math.radians(-20), 0.1, 0.1),
            zoom=1.1,
            displacement=draw_displacement(0.25).displacement,
            distance=DISTANCE,
            mirrored=(0,),
            noise_deviation=0.08,
        ),
    }


def make_source(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A head, and the white matter of each half of its brain."""
    image, tissues, _ = draw_head(load_template(), np.random.default_rng(1), tilt=0.0)
    half = np.where(np.arange(len(image))[:, None, None] < len(image) // 2, LEFT, RIGHT)
    label = np.where(tissues == 3, half, 0).astype(np.uint8)
    normalised = (image - image.mean()) / image.std()
    start = [(n - s) // 2 for n, s in zip(image.shape, size, strict=True)]
    start[2] += 8
    patches = (crop(torch.from_numpy(a)[None], start, size) for a in (normalised.astype(np.float32), label))
    source_image, source_label = patches
    return source_image[None], source_label


def show(axes: Axes, title: str, image: Tensor, label: Tensor, limits: tuple[float, float]) -> None:
    """Draws a plane of a patch with the outlines of its labels."""
    low, high = limits
    axes.imshow(image.numpy(), cmap="gray", origin="lower", vmin=low, vmax=high, interpolation="antialiased")
    for value, colour in COLOURS.items():
        axes.contour(label.numpy() == value, levels=[0.5], colors=colour, linewidths=0.7)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def with_lines(image: Tensor) -> Tensor:
    """The image with a line every 12 voxels, to show what bends."""
    ruled = image.clone()
    ruled[..., ::12, :, :] = ruled[..., ::12, :] = float(image.max()) / 2
    return ruled


def main() -> None:
    """Writes the picture."""
    settings = AugmentationSection(elastic_probability=0.2)
    augmentation = Augmentation(settings, SIZE, laterality=Laterality(0, (0, RIGHT, LEFT)))
    image, label = make_source(augmentation.source_size)
    steps = draw_steps()
    figure = Figure(figsize=(8, 10.4), dpi=80, layout="constrained")
    limits = float(image.min()), float(np.quantile(image.numpy(), 0.998))
    for axes, (title, drawn) in zip(figure.subplots(4, 4).flat, steps.items(), strict=True):
        source = with_lines(image) if title.startswith("elastic") else image
        changed, moved = augmentation.apply(source, label, [drawn])
        middle = SIZE[2] // 2
        # Seen from the feet: the patient's right, which the first axis runs to, is on the left.
        plane, labels = (tensor[..., middle].flip(0).T for tensor in (changed[0, 0], moved[0]))
        show(axes, title, plane, labels, limits)
    drawn_whole = BytesIO()
    figure.savefig(drawn_whole)
    # Noise does not compress: few colours keep the file small.
    picture = Image.open(drawn_whole).convert("RGB").quantize(48)
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
