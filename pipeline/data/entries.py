"""What a manifest of any form says, not yet judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, Fault


@dataclass(frozen=True)
class Entry:
    """A case as a manifest words it: its id may be unsafe or doubled, its files may be missing.

    Attributes:
        where: Place in the manifest.
        id: Case id.
        patient: Patient id.
        images: Image files, by channel.
        label: Label map.
        fold: Fold.
        labelled: Structures that were drawn in its label map; None if nothing is said of it.
        classes: The classes that it is of; None if nothing is said of them.
        row: Array and row in the one image file that holds many images.
    """

    where: str
    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None
    fold: int | None
    labelled: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    row: tuple[str, int] | None = None


@dataclass
class Manifest:
    """What a manifest says.

    Attributes:
        channels: Names of the image channels.
        labels: Value of each label name; None if it names none.
        regions: Overlapping structures as unions of label values, outer to inner, if it names such.
        ignore_value: What stands in label maps where nobody knows, if the manifest says so.
        entries: The cases in its order.
        faults: What could not be made sense of.
    """

    channels: tuple[str, ...]
    labels: dict[str, int] | None = None
    regions: dict[str, tuple[int, ...]] | None = None
    ignore_value: int | None = None
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def add_fault(self, where: str, rule: str, message: str) -> None:
        """Notes what could not be made sense of."""
        self.faults.append(Fault(where, rule, message))


def channels_in_order(path: Path, channels: dict[str, str]) -> tuple[str, ...]:
    """Channel names from nnU-Net's and the Decathlon's {"0": "T1", "1": "T2"}."""
    if not channels or set(channels) != {str(index) for index in range(len(channels))}:
        message = f"channels must be numbered from 0, not {', '.join(channels) or 'missing'}"
        raise ConfigError(Fault(str(path), "manifest-format", message))
    return tuple(channels[str(index)] for index in range(len(channels)))
