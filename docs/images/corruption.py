"""Draws every corruption in its five grades on a synthetic head, of MR or in HU.

python docs/images/corruption.py    # writes docs/images/corruption.png
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.data.synthetic.heads import Template, load_template
from transforms.corruption import CORRUPTIONS, Corruption, ThickSlices, corrupt

TISSUES = "air", "scalp", "skull", "csf", "grey", "white"
MR = dict(zip(TISSUES, (5.0, 180.0, 40.0, 220.0, 520.0, 820.0), strict=True))
CT = dict(zip(TISSUES, (-1000.0, 20.0, 900.0, 8.0, 38.0, 28.0), strict=True))
TITLES = {
    "rician_noise": "{0.psnr:g} dB",
    "low_dose": "{0.dose:g} of the dose",
    "bias_field": "amplitude {0.amplitude:g}",
    "motion": "{0.degrees:g}°, {0.millimetres:g} mm",
    "blur": "{0.fwhm:g} mm",
    "thick_slices": "{0.factor} slices in one",
}


def paint_head(template: Template, values: dict[str, float]) -> Tensor:
    """`(1, H, W, D)` head of 1 mm without noise, a value for each tissue."""
    grey, white, texture, inside, skin = template.maps[0]
    brain = (
        values["csf"] + (values["grey"] - values["csf"]) * grey + (values["white"] - values["csf"]) * white
    )
    head = torch.full_like(brain, values["air"])
    layers = (skin, values["scalp"]), (inside + 7, values["skull"]), (inside, brain + 60 * texture)
    for depth, layer in layers:
        head += (layer - head) * (depth + 0.5).clamp(0, 1)
    return head[None]


def take_plane(name: str, image: Tensor) -> Tensor:
    """An axial slice of a head, or a coronal one to show slices; the patient's right is on the left."""
    if name == "thick_slices":
        return image[0, :, image.shape[2] * 6 // 10, image.shape[3] // 3 :].flip(0).T
    return image[0, :, :, image.shape[3] // 2].flip(0).T


def show(axes: Axes, name: str, grade: int, image: Tensor, corruption: Corruption | None) -> None:
    """Draws a plane under a line that tells how strong the corruption is."""
    low, high = (-80, 160) if name == "low_dose" else (0, 900)
    plane = take_plane(name, image).numpy()
    aspect = corruption.factor if isinstance(corruption, ThickSlices) else 1
    axes.imshow(plane, cmap="gray", origin="lower", vmin=low, vmax=high, aspect=aspect)
    strength = f"{grade}: {TITLES[name].format(corruption)}" if corruption else name.replace("_", " ")
    axes.set_title(strength, fontsize=9, fontweight="normal" if corruption else "bold")
    axes.set_axis_off()


def main() -> None:
    """Writes the picture."""
    template = load_template()
    mr, ct = paint_head(template, MR), paint_head(template, CT)
    # Slices are reconstructed on their own: those around the one that is shown are enough.
    middle = ct.shape[3] // 2
    ct = ct[..., middle - 1 : middle + 2].contiguous()
    figure = Figure(figsize=(9.6, 11.6), dpi=85, layout="constrained")
    rows = figure.subplots(len(CORRUPTIONS), 6)
    for row, (name, grades) in zip(rows, CORRUPTIONS.items(), strict=True):
        image = ct if name == "low_dose" else mr
        show(row[0], name, 0, image, None)
        for grade, (axes, corruption) in enumerate(zip(row[1:], grades, strict=True), start=1):
            show(axes, name, grade, corrupt(corruption, image, np.eye(4), 2)[0], corruption)
    drawn_whole = BytesIO()
    figure.savefig(drawn_whole)
    # Noise does not compress: few colours keep the file small.
    picture = Image.open(drawn_whole).convert("RGB").quantize(48)
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
