"""What enhancement does to the measurement that follows: segmentations of the images before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.data.cases import Case
from pipeline.data.images import read_image
from pipeline.errors import Fault, InputError
from pipeline.export.nifti import write_image
from pipeline.files import write_text
from pipeline.inference.evaluation import Structures, evaluate_case
from pipeline.inference.grids import labels_on_grid
from pipeline.inference.image_evaluation import common_place
from pipeline.labels import MEAN
from pipeline.statistics import Difference, Summary, compare_means, interval_text, summarise
from pipeline.volume import Grid, Volume
from transforms.resampling import Slices

ORIGINAL, ENHANCED, TRUTH = "original", "enhanced", "truth"
"""The images that are segmented."""
FIGURES: Final = ("dice", "volume_ml", "volume_error_ml")
"""What is measured of a structure; the error is the absolute difference from the volume of the reference."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A structure of a case, as a segmenter finds it in several images.

    Attributes:
        case: Its id.
        structure: Name of the structure.
        reference_ml: Its volume in the reference.
        figures: Each of `FIGURES` of the mask of each image, by image and figure.
    """

    case: str
    structure: str
    reference_ml: float
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Effect:
    """What enhancement does to a figure.

    Attributes:
        images: The figure over cases, of each of the images.
        change: Of the enhanced images minus that of the originals, case by case.
    """

    images: dict[str, Summary]
    change: Difference


@dataclass(frozen=True, slots=True)
class Turn:
    """A structure that the segmenter finds in only one of the original and the enhanced image.

    Attributes:
        case: Its id.
        structure: Name of the structure.
        what: `appeared` or `disappeared`, when the image was enhanced.
        original_ml: Its volume before.
        enhanced_ml: Its volume after.
        reference_ml: What it should be.
    """

    case: str
    structure: str
    what: str
    original_ml: float
    enhanced_ml: float
    reference_ml: float


def restore_original(case: Case, changes: Path, folder: Path) -> Case:
    """Writes what an enhanced case was made of: the enhanced image minus its change map.

    Args:
        case: Its enhanced images.
        changes: Folder of their change maps, which have the same names.
        folder: Where the originals go, on the grid of the enhanced images.

    Raises:
        InputError: If a change map is missing or cannot be that of the image.
        ResourceError: If a file cannot be written.
    """
    paths = []
    for path in case.images:
        of_it = changes / path.name
        if not of_it.is_file():
            message = f"its change map {of_it} is missing; name a folder that `clinseg enhance` wrote"
            raise InputError(Fault(case.id, "change-missing", message))
        image, change = read_image(path)[0], read_image(of_it)[0]
        if not image.grid.is_close(change.grid):
            message = f"its change map {of_it} lies on another grid; enhance it again"
            raise InputError(Fault(case.id, "change-grid", message))
        before = np.subtract(image.array, change.array, dtype=np.float32)
        paths.append(folder / path.name)
        write_image(paths[-1], before, image.grid, {"restored": "enhanced minus change"})
    return replace(case, images=tuple(paths))


def measure_case(
    case: str,
    masks: Mapping[str, Volume],
    reference: Volume,
    structures: Structures,
    ignore_value: int | None = None,
) -> list[Measured]:
    """Compares the masks of several images of one case with a reference, structure by structure.

    A mask on another, parallel grid is brought to that of the reference by nearest neighbour. All are
    compared where all of them reach.

    Args:
        case: Its id.
        masks: Label maps by the image that they were found in.
        reference: What they should be.
        structures: What is compared.
        ignore_value: Where the reference holds it, a voxel belongs to no structure of any of the masks.

    Raises:
        InputError: If a mask cannot be brought to the reference's grid without turning it.
    """
    grid = reference.grid
    place = common_place(case, grid, [mask.grid for mask in masks.values()])
    own = _cut(grid, place)
    there = Volume(reference.array[place], own)
    rows = {
        name: evaluate_case(
            case, Volume(labels_on_grid(mask, grid)[place], own), there, structures, ignore_value
        )
        for name, mask in masks.items()
    }
    measured = []
    for index, structure in enumerate(structures):
        values = {name: of_image[index].values for name, of_image in rows.items()}
        wanted = next(iter(values.values()))["reference_volume_ml"]
        figures = {
            name: {
                "dice": of_image["dice"],
                "volume_ml": of_image["volume_ml"],
                "volume_error_ml": abs(of_image["volume_ml"] - wanted),
            }
            for name, of_image in values.items()
        }
        measured.append(Measured(case, structure, wanted, figures))
    return measured


def find_effects(rows: Sequence[Measured]) -> dict[str, dict[str, Effect]]:
    """What enhancement does to each figure of each structure; under `MEAN` to each case's mean over them."""
    structures = {row.structure: [one for one in rows if one.structure == row.structure] for row in rows}
    if rows:
        structures[MEAN] = _case_means(rows)
    return {
        structure: {name: _find_effect(members, name) for name in FIGURES}
        for structure, members in structures.items()
    }


def find_turns(rows: Sequence[Measured]) -> list[Turn]:
    """Structures that appear or disappear when an image is enhanced."""
    turns = []
    for row in rows:
        before, after = (row.figures[image]["volume_ml"] for image in (ORIGINAL, ENHANCED))
        if (before > 0) != (after > 0):
            what = "appeared" if after > 0 else "disappeared"
            turns.append(Turn(row.case, row.structure, what, before, after, row.reference_ml))
    return turns


def tell_effect(effects: Mapping[str, Mapping[str, Effect]], turns: Sequence[Turn]) -> tuple[str, bool]:
    """A sentence on whether enhanced images can be measured, and whether it is a warning."""
    dice = effects[MEAN]["dice"]
    means = f"{dice.images[ORIGINAL].mean:.3f} before, {dice.images[ENHANCED].mean:.3f} after"
    change = f"by {abs(dice.change.value):.3f}, 95 % {interval_text(dice.change, '+.3f')}"
    wrong = {turn.case for turn in turns if (turn.what == "appeared") != (turn.reference_ml > 0)}
    cases = "1 case" if len(wrong) == 1 else f"{len(wrong)} cases"
    lost = f" In {cases} a structure wrongly appears or disappears." if wrong else ""
    if dice.change.high < 0:
        told = f"Dice falls ({means}; {change}): do not measure enhanced images with this model."
    elif dice.change.low > 0:
        told = f"Dice rises ({means}; {change})."
    else:
        told = f"Dice is not shown to change ({means}; {change})."
    return told + lost, dice.change.high < 0 or bool(wrong)


def write_measurements(path: Path, rows: Sequence[Measured]) -> None:
    """Writes one CSV line per case and structure.

    Raises:
        ResourceError: If the file cannot be written.
    """
    images = list(rows[0].figures) if rows else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    named = [f"{figure}_{image}" for image in images for figure in FIGURES]
    writer.writerow(("case", "label", "reference_volume_ml", *named))
    for row in rows:
        values = [row.reference_ml, *(row.figures[image][name] for image in images for name in FIGURES)]
        writer.writerow((row.case, row.structure, *(f"{value:.6g}" for value in values)))
    write_text(path, text.getvalue())


def _find_effect(rows: Sequence[Measured], name: str) -> Effect:
    values = {image: [row.figures[image][name] for row in rows] for image in rows[0].figures}
    images = {image: summarise(of_image) for image, of_image in values.items()}
    return Effect(images, compare_means(values[ORIGINAL], values[ENHANCED]))


def _case_means(rows: Sequence[Measured]) -> list[Measured]:
    by_case: dict[str, list[Measured]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    return [
        Measured(
            case,
            MEAN,
            float(np.mean([row.reference_ml for row in of_case])),
            {
                image: {
                    name: float(np.mean([row.figures[image][name] for row in of_case])) for name in FIGURES
                }
                for image in of_case[0].figures
            },
        )
        for case, of_case in by_case.items()
    ]


def _cut(grid: Grid, place: Slices) -> Grid:
    """The grid of a box of its voxels."""
    moved = np.eye(4)
    moved[:3, 3] = [part.start for part in place]
    i, j, k = (part.stop - part.start for part in place)
    return Grid((i, j, k), grid.affine @ moved)
