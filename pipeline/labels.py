"""The label contract of a job: names, values and what the network's channels mean, said once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.errors import Fault
from pipeline.terminology import PALETTE, Term, fill_colours, term_of
from transforms.laterality import Laterality

MEAN = "mean"
"""What tables and summaries call the mean over structures; no structure can have the name."""


@dataclass(frozen=True, slots=True)
class LabelContract:
    """Names and values that travel through training, checkpoint, masks and tables.

    Attributes:
        labels: Name → value as stored in label maps, background (0) included.
        regions: Overlapping structures as unions of label values, outer to inner; None for plain classes.
        ignore_value: What label maps hold where nobody knows; no label, never predicted. None if nothing.
        absent_means_unlabelled: Structures that were not drawn where a label map holds none of their values,
            unless the manifest says that they were.
        terminology: Terms of structures of which their names do not tell all.
    """

    labels: Mapping[str, int]
    regions: Mapping[str, tuple[int, ...]] | None = None
    ignore_value: int | None = None
    absent_means_unlabelled: tuple[str, ...] = ()
    terminology: Mapping[str, Term] = field(default_factory=dict)

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

    @property
    def terms(self) -> dict[str, Term]:
        """What each structure is, with its colour."""
        terms = {name: self.terminology.get(name) or term_of(name) for name in self.structures}
        colours = fill_colours(term.colour for term in terms.values())
        return {
            name: replace(term, colour=colour)
            for (name, term), colour in zip(terms.items(), colours, strict=True)
        }

    @property
    def colours(self) -> dict[int, str]:
        """The colour of each label value that stands for a structure of its own in a label map."""
        terms = self.terms
        return {values[0]: terms[name].colour or PALETTE[0] for name, values in self.structures.items()}

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

    def label_laterality(self, axis: int, pairs: Sequence[tuple[str, str]]) -> Laterality | None:
        """Which label index each becomes when left and right change places; None if none has a side.

        Args:
            axis: Array axis between left and right.
            pairs: Names of labels of the two sides.
        """
        partners = self._partner_values(pairs)
        indices = tuple(self.values.index(partners.get(value, value)) for value in self.values)
        return Laterality(axis, indices) if pairs else None

    def channel_laterality(self, axis: int, pairs: Sequence[tuple[str, str]]) -> Laterality | None:
        """The same for the network's output channels.

        Raises:
            ValueError: If a region lacks its counterpart on the other side.
        """
        if self.regions is None:
            return self.label_laterality(axis, pairs)
        partners = self._partner_values(pairs)
        regions = {name: set(values) for name, values in self.regions.items()}
        mirrored = {name: {partners.get(v, v) for v in values} for name, values in regions.items()}
        alone = [name for name, values in mirrored.items() if values not in regions.values()]
        if alone:
            raise ValueError(f"without a counterpart on the other side: {', '.join(alone)}")
        channels = tuple(list(regions.values()).index(values) for values in mirrored.values())
        return Laterality(axis, channels) if pairs else None

    def _partner_values(self, pairs: Sequence[tuple[str, str]]) -> dict[int, int]:
        values = [(self.labels[left], self.labels[right]) for left, right in pairs]
        return dict(values) | {right: left for left, right in values}


def region_faults(regions: Mapping[str, Sequence[int]]) -> Iterator[Fault]:
    """Faults of regions that no mask could tell, however well they are predicted.

    Args:
        regions: Label values by name, outer to inner.
    """
    for value in sorted({value for values in regions.values() for value in values}):
        holding = [name for name, values in regions.items() if value in values]
        written = regions[holding[-1]][0]
        found = [name for name, values in regions.items() if written in values]
        if found != holding:
            message = (
                f"a voxel of value {value} lies in {' and '.join(holding)} and would be written with "
                f"{written}, the first value of {holding[-1]}, which lies in {' and '.join(found)}; name "
                "regions from outer to inner, begin each with a value that no inner one has, and give what "
                "overlaps a region of its own"
            )
            yield Fault(f"data.regions.{holding[-1]}", "regions", message)
