"""What the intensities of a study's training images have in common, measured once before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cases import Case
from pipeline.data.checks import read_checked_case
from pipeline.errors import Fault, InputError
from pipeline.labels import LabelContract
from pipeline.volume import Volume
from transforms.preprocessing import IntensityStatistics

_VOXELS_PER_CASE = 20_000


def measure_intensities(
    cases: Sequence[Case],
    contract: LabelContract,
    num_channels: int,
    on_case: Callable[[], None] = lambda: None,
) -> tuple[IntensityStatistics, ...]:
    """Percentiles 0.5 and 99.5, mean and deviation of foreground voxels, per channel, as in nnU-Net.

    From each case the same number of voxels is taken at even steps through its foreground, so that large
    structures and large images do not drown the others and the result never varies.

    Raises:
        InputError: With all faults of all cases, or if no case has any foreground.
    """
    samples: list[list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = [[] for _ in range(num_channels)]
    faults: list[Fault] = []
    for case in cases:
        try:
            checked = read_checked_case(case, contract, num_channels)
        except InputError as error:
            faults += error.faults
        else:
            assert checked.label is not None, "training cases have labels"
            voxels = np.flatnonzero(_is_foreground(checked.label, contract.ignore_value))
            picked = voxels[:: max(1, len(voxels) // _VOXELS_PER_CASE)]
            for channel, image in zip(samples, checked.images, strict=True):
                channel.append(image.array.reshape(-1)[picked].astype(np.float64))
        on_case()
    if faults:
        raise InputError(faults)
    if not sum(map(len, samples[0])):
        raise InputError(no_foreground())
    return tuple(_summarise(np.concatenate(channel)) for channel in samples)


def no_foreground() -> Fault:
    """The fault of training cases that have no foreground to measure."""
    message = "`normalisation: dataset` needs foreground voxels and no case has any; take `zscore`"
    return Fault("training cases", "no-foreground", message)


def _is_foreground(label: Volume, ignore_value: int | None) -> NDArray[np.generic]:
    return label.array if ignore_value is None else (label.array != 0) & (label.array != ignore_value)


def _summarise(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> IntensityStatistics:
    low, high = np.percentile(values, [0.5, 99.5])
    return IntensityStatistics(float(low), float(high), float(values.mean()), float(values.std()))
