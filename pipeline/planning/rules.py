"""The rules that make a job of a fingerprint, a machine and a number of minutes.

Each rule gives choices by dotted key and `plan_job` joins them; what no rule touches keeps the default of the
schema. `docs/planning.md` has the table with sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pipeline.data.fingerprint import Fingerprint
from pipeline.planning.choices import Choice, Choices, PlannedJob
from pipeline.planning.grid import ANISOTROPY, choose_spacing
from pipeline.planning.machine import Machine
from pipeline.planning.pacing import choose_epochs
from pipeline.planning.topology import SHORTEST_EDGE, Topology, choose_topology
from pipeline.sides import left_right_pairs, without_exchange

_SMALLEST_BATCH = 2
_MOST_FOLDS = 5
# Share of the content that the smallest structure has, at least, and share of patches centred on a structure.
_FOREGROUND = ((0.01, 0.33), (0.001, 0.5), (0.0, 0.67))


def plan_job(
    fingerprint: Fingerprint, machine: Machine, minutes: float, manifest: Path, *, names_labels: bool = False
) -> PlannedJob:
    """Plans a job.

    Args:
        fingerprint: Of the study.
        machine: Where it will be trained.
        minutes: Budget.
        manifest: Of the study.
        names_labels: Whether the job has to name the labels, since the manifest does not.
    """
    voxels = machine.affordable_voxels(minutes)
    grid = _lay_grid(fingerprint, min(voxels / _SMALLEST_BATCH, machine.largest_patch))
    topology = choose_topology(
        grid.content[: grid.dimensions],
        grid.spacing[: grid.dimensions],
        min(voxels / _SMALLEST_BATCH, machine.largest_patch),
        len(machine.widths),
    )
    return PlannedJob(
        {
            **_choose_data(fingerprint, manifest, names_labels=names_labels),
            **_choose_preprocessing(fingerprint, grid),
            **_choose_augmentation(fingerprint, grid),
            **_choose_network(grid, topology, machine),
            **_choose_training(fingerprint, machine, minutes, topology, voxels),
            **_choose_inference(fingerprint),
            "tracking.experiment": Choice(_experiment(manifest), "the study's name"),
        }
    )


@dataclass(frozen=True, slots=True)
class _Grid:
    """The network's grid, by array axis; a network for slices has its slices along the last."""

    orientation: str
    spacing: tuple[float, ...]
    content: tuple[float, ...]
    dimensions: int
    reason: str

    @property
    def is_coarse(self) -> bool:
        """Whether voxels are much longer along one axis of the patch."""
        within = self.spacing[: self.dimensions]
        return max(within) > ANISOTROPY * min(within)

    @property
    def has_thick_slices(self) -> bool:
        """Whether they are so along a single axis of three."""
        *_, middle, longest = sorted(self.spacing)
        return self.dimensions == 3 and longest > ANISOTROPY * middle


def _lay_grid(fingerprint: Fingerprint, patch_voxels: float) -> _Grid:
    spacing = choose_spacing(fingerprint, patch_voxels)
    content = [length / mm for length, mm in zip(fingerprint.extent_mm, spacing.value, strict=True)]
    flat = min(range(3), key=lambda axis: content[axis])
    is_flat = content[flat] < SHORTEST_EDGE
    order = [*(axis for axis in range(3) if axis != flat), flat] if is_flat else [0, 1, 2]
    return _Grid(
        orientation="".join("RAS"[axis] for axis in order),
        spacing=tuple(spacing.value[axis] for axis in order),
        content=tuple(content[axis] for axis in order),
        dimensions=2 if is_flat else 3,
        reason=spacing.reason,
    )


def _choose_data(fingerprint: Fingerprint, manifest: Path, *, names_labels: bool) -> Choices:
    num_folds = max(2, min(_MOST_FOLDS, fingerprint.num_patients))
    choices: dict[str, Choice[object]] = {
        "data.manifest": Choice(str(manifest), f"{len(fingerprint.cases)} cases"),
        "data.labels": Choice(
            dict(fingerprint.labels) if names_labels else None,
            "as given or found: the manifest names none" if names_labels else "taken from the manifest",
        ),
        "data.cache_dir": Choice("~/.cache/clinseg", "prepared cases; holds image data"),
    }
    if sometimes := [
        name for name, sizes in fingerprint.sizes.items() if len(sizes) < len(fingerprint.cases)
    ]:
        told = f"or {sometimes}, if nobody drew them in the cases without them".replace("'", "")
        choices["data.absent_means_unlabelled"] = Choice(False, told)
    if fingerprint.folds:
        choices["data.num_folds"] = Choice(_MOST_FOLDS, "not used: the manifest gives the folds")
        choices["data.fold"] = Choice(
            fingerprint.folds[0], "as the manifest has it; none trains on every case"
        )
    else:
        single = Choice("none", "a single patient cannot be validated on")
        first = Choice(0, "validate on the first fold; none trains on every case")
        choices["data.num_folds"] = Choice(num_folds, f"of {fingerprint.num_patients} patients")
        choices["data.fold"] = first if fingerprint.num_patients > 1 else single
    return choices


def _choose_preprocessing(fingerprint: Fingerprint, grid: _Grid) -> Choices:
    ct = Choice("dataset", "CT numbers have a meaning that is the same in every image")
    mr = Choice("zscore", "not CT: the unit differs from image to image")
    return {
        "preprocessing.orientation": Choice(
            grid.orientation,
            "one for all, whatever was stored" if grid.dimensions == 3 else "slices along the last axis",
        ),
        "preprocessing.spacing": Choice(list(grid.spacing), grid.reason),
        "preprocessing.normalisation": ct if fingerprint.is_ct else mr,
    }


def _choose_augmentation(fingerprint: Fingerprint, grid: _Grid) -> Choices:
    pairs = left_right_pairs(fingerprint.labels)
    alone = without_exchange(fingerprint.labels, fingerprint.structures, pairs)
    axes = [] if alone else [grid.orientation.index("R")]
    axes = [axis for axis in axes if axis < grid.dimensions]
    if alone:
        reason = f"left and right must not be mixed up, and nothing changes places with {', '.join(alone)}"
    elif axes:
        exchanged = "labels of two sides change places" if pairs else "no label has a side"
        reason = f"left-right: {exchanged}. Nobody lies upside down, so no other axis"
    else:
        reason = "left-right is the slice axis here"
    choices: dict[str, Choice[object]] = {"augmentation.mirror_axes": Choice(axes, reason)}
    if pairs and not alone:
        choices["data.left_right_pairs"] = Choice(
            [list(pair) for pair in pairs], "by their names; they change places when mirrored"
        )
    if grid.has_thick_slices:
        choices["augmentation.in_plane"] = Choice(True, "turned within the thick slices, not across them")
    elif grid.is_coarse:
        choices["augmentation.rotation_degrees"] = Choice(10, "more would mix fine and coarse axes")
    return choices


def _choose_network(grid: _Grid, topology: Topology, machine: Machine) -> Choices:
    levels, dimensions = len(topology.strides), grid.dimensions
    strides: Choice[object] = Choice(None, "halve every axis at each level")
    if set(topology.strides[1:]) != {(2,) * dimensions}:
        reason = (
            f"an axis is halved while {SHORTEST_EDGE} voxels remain and it is about as fine as the finest"
        )
        strides = Choice([list(level) for level in topology.strides], reason)
    kernels: Choice[object] = Choice(None, "3 along every axis")
    if set(topology.kernels) != {(3,) * dimensions}:
        reason = "1 along a coarse axis until the others are as coarse"
        kernels = Choice([list(level) for level in topology.kernels], reason)
    volumes = Choice(3, "volumes")
    slices = Choice(2, f"slices: a typical image has fewer than {SHORTEST_EDGE}")
    return {
        "network.dimensions": volumes if dimensions == 3 else slices,
        "network.features": Choice(
            list(machine.widths[:levels]),
            f"width for {machine.name}"
            + (
                f"; {levels} levels leave {SHORTEST_EDGE} to 7 voxels" if levels < len(machine.widths) else ""
            ),
        ),
        "network.strides": strides,
        "network.kernels": kernels,
    }


def _choose_training(
    fingerprint: Fingerprint, machine: Machine, minutes: float, topology: Topology, voxels: int
) -> Choices:
    batch = max(_SMALLEST_BATCH, min(machine.largest_batch, voxels // topology.num_voxels))
    num_steps = machine.expected_steps(minutes, batch * topology.num_voxels)
    share = _smallest_share(fingerprint)
    fraction = next(fraction for least, fraction in _FOREGROUND if share >= least)
    return {
        "training.epochs": Choice(None, "the clock ends it"),
        "training.minutes": Choice(minutes, f"on {machine.name}"),
        "training.steps_per_epoch": choose_epochs(num_steps),
        "training.batch_size": Choice(batch, f"with this patch about {num_steps} steps are expected"),
        "training.patch_size": Choice(
            list(topology.patch_size), "equal lengths in mm where the content is as long"
        ),
        "training.foreground_fraction": Choice(
            fraction, f"the smallest structure fills {100 * share:.2g} % of an image's content"
        ),
        "training.optimizer": Choice("muon", "in half of adamw's steps to the same Dice (docs/decisions.md)"),
        "training.learning_rate": Choice(0.01, "of muon"),
        "training.weight_decay": Choice(0.1, "or long trainings get worse in the end (docs/decisions.md)"),
        "training.ema_decay": Choice(0.999, "steadier than the last weights; short while training is young"),
    }


def _choose_inference(fingerprint: Fingerprint) -> Choices:
    return {
        "inference.window_size": Choice(
            None, "as trained: instance norm measures a window, and a larger one is another measure"
        ),
        "inference.skip_empty": Choice(
            fingerprint.is_ct,
            "air is clipped to one value, and windows of it are alike"
            if fingerprint.is_ct
            else "windows of one single value are rare",
        ),
    }


def _smallest_share(fingerprint: Fingerprint) -> float:
    """Median volume of the smallest structure, as a share of the content's; 1 without structures."""
    content_ml = math.prod(fingerprint.extent_mm) / 1000
    volumes = [median(size.ml for size in sizes) for sizes in fingerprint.sizes.values() if sizes]
    return min(volumes, default=content_ml) / content_ml


def _experiment(manifest: Path) -> str:
    """`liver` for `liver/dataset.json`, `liver/` and `liver.csv`."""
    named = manifest.parent if manifest.suffix == ".json" else manifest
    return named.stem or "clinseg"
