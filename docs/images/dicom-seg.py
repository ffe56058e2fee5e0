"""Draws a predicted series and what was written of it as DICOM, all read back from the files alone.

clinseg predict latest head -o out --also dicom-seg,rtstruct    # a demo head as a series, see write_series
python docs/images/dicom-seg.py head out                       # writes docs/images/dicom-seg.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline


def main(series: Path, folder: Path) -> None:
    """Draws the slice at 55 % of those with a structure."""
    case = series.name
    segmentation = highdicom.seg.segread(folder / f"dicom-seg/{case}.dcm")
    structures = pydicom.dcmread(folder / f"rtstruct/{case}.dcm")
    slices = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, series.glob("*.dcm"))}
    frames: dict[str, dict[int, int]] = {}
    for number, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        frames.setdefault(source, {})[segment] = number
    ordered = sorted(frames, key=lambda uid: float(slices[uid].ImagePositionPatient[2]))
    chosen = slices[ordered[int(len(ordered) * 0.55)]]
    pixels = chosen.pixel_array
    figure = Figure(figsize=(10.5, 4.4), facecolor="#0e1116")
    panels = figure.subplots(1, 3)
    titles = ("slice of the series", "DICOM Segmentation", "RT Structure Set")
    for axes, title in zip(panels, titles, strict=True):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=np.percentile(pixels, 99.7))
        axes.set_title(title, color="#a9b3c1", fontsize=10)
        axes.axis("off")
    legend = []
    for segment, number in sorted(frames[chosen.SOPInstanceUID].items()):
        described = segmentation.SegmentSequence[segment - 1]
        lab = list(described.RecommendedDisplayCIELabValue)
        colour = np.array(highdicom.color.CIELabColor.from_dicom_value(lab).to_rgb()) / 255
        mask = segmentation.pixel_array[number]
        overlay = np.zeros((*mask.shape, 4))
        overlay[..., :3], overlay[..., 3] = colour, 0.55 * mask
        panels[1].imshow(overlay, interpolation="nearest")
        for outline in _outlines(structures.ROIContourSequence[segment - 1], chosen):
            style = {"facecolor": (*colour, 0.25), "edgecolor": colour, "lw": 0.6}
            panels[2].add_patch(PathPatch(outline, **style))
        (code,) = described.SegmentedPropertyTypeCodeSequence
        text = f"{described.SegmentLabel}: {code.CodeMeaning} (SCT {code.CodeValue})"
        legend.append(Patch(color=colour, label=text))
    figure.legend(
        handles=legend, loc="lower center", ncols=3, frameon=False, labelcolor="#f2f4f7", fontsize=9
    )
    figure.subplots_adjust(0.01, 0.09, 0.99, 0.92, 0.03)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


def _outlines(contours: pydicom.Dataset, chosen: pydicom.Dataset) -> list[Outline]:
    """The contours of a slice, in its pixels."""
    axes = np.array(chosen.ImageOrientationPatient, float).reshape(2, 3)
    corner, spacing = np.array(chosen.ImagePositionPatient, float), np.array(chosen.PixelSpacing, float)
    outlines = []
    for contour in contours.ContourSequence:
        if contour.ContourImageSequence[0].ReferencedSOPInstanceUID == chosen.SOPInstanceUID:
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3) - corner
            pixels = points @ axes.T / spacing[::-1]
            outlines.append(Outline(np.r_[pixels, pixels[:1]], closed=True))
    return outlines


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
