"""Names and colours of a label map's values in the form that ITK-SNAP, 3D Slicer and Convert3D read."""

from __future__ import annotations

from pathlib import Path

from pipeline.files import write_text
from pipeline.labels import LabelContract

_HEADING = "# IDX   R    G    B    A  VIS MSH  LABEL"


def write_label_table(path: Path, contract: LabelContract) -> None:
    """Writes a line for every value of the contract's label maps: NIfTI itself has no room for colours.

    Raises:
        ResourceError: If the file cannot be written.
    """
    names = {values[0]: name for name, values in contract.structures.items()}
    lines = [_HEADING, _line(0, "#000000", 0, "background")]
    lines += [_line(value, colour, 1, names[value]) for value, colour in sorted(contract.colours.items())]
    write_text(path, "\n".join(lines) + "\n")


def _line(value: int, colour: str, opacity: int, name: str) -> str:
    red, green, blue = bytes.fromhex(colour[1:])
    quoted = name.replace('"', "'")
    return f'{value:5d} {red:4d} {green:4d} {blue:4d} {opacity:4d} {opacity:4d} {opacity:4d}  "{quoted}"'
