"""The label contract of a job: names, values and what the network's channels mean, said once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LabelContract:
    """Names and values that travel through training, checkpoint, masks and tables.

    Attributes:
        labels: Name → value as stored in label maps, background (0) included.
        regions: Overlapping structures as unions of label values, outer to inner; None for plain classes.
        ignore_value: What label maps hold where nobody knows; no label, never predicted. None if nothing.
        absent_means_unlabelled: Structures that were not drawn where a label map holds none of their values,
            unless the manifest says that they were.
    """

    labels: Mapping[str, int]
    regions: Mapping[str, tuple[int, ...]] | None = None
    ignore_value: int | None = None
    absent_means_unlabelled: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """All label values in rising order; a label index is a position in it, the background's is 0.

        The index of an ignored voxel is the number of values.
        """
        return tuple(sorted(self.labels.values()))

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is measured: each foreground label by value, or each region."""
        if self.regions is not None:
            return dict(self.regions)
        ordered = sorted(self.labels.items(), key=lambda item: item[1])
        return {name: (value,) for name, value in ordered if value != 0}

    def labelled_structures(
        self, declared: Collection[str] | None, present: Collection[int]
    ) -> dict[str, tuple[int, ...]]:
        """What the label map of one case can be compared with: the structures that were drawn in it.

        Args:
            declared: The structures that the manifest says were drawn; None if it says nothing of the case.
            present: The values that the label map holds.
        """
        if declared is not None:
            return {name: values for name, values in self.structures.items() if name in declared}
        doubtful = self.absent_means_unlabelled
        return {
            name: values
            for name, values in self.structures.items()
            if name not in doubtful or any(value in present for value in values)
        }

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The label or region that each of the network's output channels stands for."""
        if self.regions is not None:
            return tuple(self.regions)
        return tuple(sorted(self.labels, key=self.labels.__getitem__))

    @property
    def channel_values(self) -> tuple[int, ...]:
        """The label value that each of the network's output channels is written with."""
        if self.regions is not None:
            return tuple(region[0] for region in self.regions.values())
        return self.values
