"""The images of a case, read and judged together, whatever they are to be used for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.config import EnhancementJob
from pipeline.data.cases import Case
from pipeline.data.images import read_with_warnings
from pipeline.data.nifti import Reading
from pipeline.data.npz import read_row
from pipeline.data.pictures import is_picture, match_channels
from pipeline.errors import Fault, FaultError, InputError
from pipeline.volume import Grid, Volume, corner_distance

_LARGEST_PLAUSIBLE = 1e12
"""No scanner gives more; what is beyond stands for no value."""
_DISTANCE_TOLERANCE = 0.1
"""Share by which slices may lie nearer or farther apart than they are taken to."""


@dataclass
class Draft:
    """What is known of a case while it is being read.

    Attributes:
        images: One volume per channel.
        label: The label map, where one is read.
        values: The values that it holds.
        errors: What keeps the case from being used.
        warnings: What was accepted but deserves a look.
    """

    images: list[Volume] = field(default_factory=list)
    label: Volume | None = None
    values: frozenset[int] = frozenset()
    errors: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def keep(self, read: Callable[[], Reading]) -> tuple[Volume, ...]:
        """The volumes of a file, or none and its faults."""
        try:
            reading = read()
        except FaultError as error:
            self.errors += error.faults
            return ()
        self.warnings += reading.warnings
        return reading.volumes


def read_case_images(case: Case, num_channels: int) -> list[Volume]:
    """Reads the images of a case: files, a DICOM series, or a row of an `.npz`.

    Args:
        case: What to read; its label map is left alone.
        num_channels: Channels the images must have together. A grey picture serves for three, and one in
            colour without any colour for one.

    Returns:
        One volume per channel, all on one grid.

    Raises:
        InputError: With all faults of the images, lack of memory included.
    """
    return list(read_case_with_warnings(case, num_channels).volumes)


def read_case_with_warnings(case: Case, num_channels: int) -> Reading:
    """As `read_case_images`, with what was accepted but deserves a look."""
    draft = draft_images(case, num_channels)
    if draft.errors:
        raise InputError(draft.errors)
    return Reading(tuple(draft.images), tuple(draft.warnings))


def draft_images(case: Case, num_channels: int) -> Draft:
    """The images of a case as far as they can be read, and all that is wrong with them."""
    draft = Draft()
    if case.row is not None:
        draft.images += draft.keep(partial(read_row, case.images[0], *case.row))
    else:
        for path, rule in case.sources:
            draft.images += draft.keep(partial(read_with_warnings, path, rule))
        if len(case.images) == 1 and is_picture(case.images[0]):
            draft.images = match_channels(draft.images, num_channels)
    if not draft.errors:
        draft.errors += _image_faults(case, draft.images, num_channels)
        draft.warnings += _odd_images(case, draft.images)
    return draft


def content_hash(images: Iterable[Volume]) -> bytes:
    """SHA-256 of shapes and values, not of affine and stored type, so that a copy saved anew is seen."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.grid.shape).encode())
        digest.update(np.asfortranarray(image.array, dtype=np.float32).tobytes(order="A"))
    return digest.digest()


def _image_faults(case: Case, images: Sequence[Volume], num_channels: int) -> Iterator[Fault]:
    if len(images) != num_channels:
        message = f"{num_channels} channels are declared, the images hold {len(images)}"
        yield Fault(case.id, "num-channels", message)
    for index, image in enumerate(images[1:], 1):
        yield from grid_faults(case, f"channel {index}", "channel-", image.grid, images[0].grid)


def grid_faults(case: Case, what: str, prefix: str, grid: Grid, reference: Grid) -> Iterator[Fault]:
    """Faults of a grid that should be that of the (first) image.

    Args:
        case: Whose images they are.
        what: Lies on the grid, in words.
        prefix: Of the rule's name.
        grid: To be judged.
        reference: That of the image.
    """
    if grid.shape != reference.shape:
        message = f"the {what} has shape {grid.shape}, the image {reference.shape}; resample it to the image"
        yield Fault(case.id, f"{prefix}shape-mismatch", message)
        return
    distance = corner_distance(grid.affine, reference.affine, grid.shape)
    if not grid.is_close_but_for_rounding(reference):
        accepted = grid.rounding_tolerance_mm
        message = (
            f"the {what} lies up to {distance:.3g} mm from the image (at most {accepted:.2g} mm is "
            "accepted); resample it to the image, or copy the image's affine if the voxels do match"
        )
        yield Fault(case.id, f"{prefix}affine-mismatch", message)


def slice_faults(dimensions: int, orientation: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[Fault]:
    """Faults of volumes that a network of two dimensions would cut into lines of one voxel.

    Args:
        dimensions: Of the network; one of three takes any volume.
        orientation: Anatomical direction of the axes, such as `RAS`; slices are taken along the last.
        shapes: `(H, W, D)` of each case, by its id, in the order of `orientation`.
    """
    for case, (*within, num_slices) in shapes.items():
        if dimensions == 2 and num_slices > 1 and 1 in within:
            thin = orientation[within.index(1)]
            message = (
                f"it is one voxel thick along {thin}, but slices are taken along the last axis; set "
                f"preprocessing.orientation to {orientation.replace(thin, '') + thin}"
            )
            yield Fault(case, "slice-axis", message)


def check_slices(where: str, dimensions: int, orientation: str, shape: Sequence[int]) -> None:
    """Refuses what a trained network of two dimensions would cut into lines; see `slice_faults`.

    Raises:
        InputError: If it would.
    """
    if any(slice_faults(dimensions, orientation, {where: shape})):
        message = (
            f"it is one voxel thick, but not along {orientation[-1]}, across which this model takes its "
            "slices; use a model of such slices"
        )
        raise InputError(Fault(where, "slice-axis", message))


def distance_faults(job: EnhancementJob, spacings: Mapping[str, float]) -> Iterator[Fault]:
    """Faults of sources whose slices do not lie as far apart as those that the way back makes.

    Args:
        job: What is to be trained; without such a way back there are none.
        spacings: Millimetres from slice to slice along the last axis, of each source by its id.
    """
    distance, spacing = job.network.slice_distance, job.preprocessing.spacing
    if distance is None or spacing is None or job.training.method != "cyclegan":
        return
    meant = distance * spacing[-1]
    for case, found in spacings.items():
        if abs(found / meant - 1) > _DISTANCE_TOLERANCE:
            message = (
                f"its slices lie {found:.3g} mm apart along {job.preprocessing.orientation[-1]}, those that "
                f"the way back makes {meant:.3g} mm (network.slice_distance {distance:g}, in voxels of "
                f"{spacing[-1]:g} mm); set it to {found / spacing[-1]:.3g}, or leave out cases that differ"
            )
            yield Fault(case, "slice-distance", message)


def _odd_images(case: Case, images: Iterable[Volume]) -> Iterator[Fault]:
    for index, image in enumerate(images):
        lowest, highest = image.array.min(), image.array.max()
        if lowest == highest:
            message = f"every voxel of channel {index} is {lowest:g}; is this the right file?"
            yield Fault(case.id, "constant-image", message)
        elif (largest := max(abs(float(lowest)), abs(float(highest)))) > _LARGEST_PLAUSIBLE:
            message = (
                f"channel {index} holds values of the order of {largest:.0e}, beside which all others look "
                "alike; if the background is filled with such a number, put its true value there"
            )
            yield Fault(case.id, "values-too-large", message)
