"""What a report says, before it becomes a page: words, figures, tables, pictures and cases to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.statistics import Estimate
from pipeline.volume import Volume

Cell = str | float | None
"""Numbers are shown with the digits of their column; None as a dash, sorted last."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A headline.

    Attributes:
        name: What it is.
        value: Such as `0.891`.
        note: Such as its interval.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        digits: Behind the point of its numbers; None for text.
    """

    name: str
    digits: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells; in a table of cases the first cell is the case's id.

    Attributes:
        heading: What it is about.
        note: How to read it.
        columns: One for each cell of a row.
        rows: In the order in which they are shown first.
        num_left_out: Rows that there were beside these.
    """

    heading: str
    note: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Cell, ...]]
    num_left_out: int = 0


@dataclass(frozen=True)
class Strip:
    """A structure's Dice: each case as a point, and what they come to.

    Attributes:
        name: Of the structure.
        colour: That of its overlay; None for a mean over structures.
        values: One per case.
        mean: Their mean with its interval.
        others: Means of further metrics by name.
    """

    name: str
    colour: str | None
    values: tuple[float, ...]
    mean: Estimate
    others: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A drawing.

    Attributes:
        caption: What it shows.
        png: The file.
        is_chart: Whether it is a chart on white, which a dark page turns dark.
    """

    caption: str
    png: bytes = field(repr=False)
    is_chart: bool = False


@dataclass(frozen=True, eq=False)
class View:
    """A case to look at.

    Attributes:
        case: Its id.
        rank: Such as `worst of 42 by Dice`.
        maps: Label maps by `Reference` and `Prediction`, what is there of them, all on one grid.
        image: On the same grid; None if it is not at hand.
        values: Label values by name, in the order of the legend; also those that no label declares.
        ignore_value: What the reference holds where nobody knows.
        unlabelled: Values that nobody drew in the reference.
        slices: The same as a picture, for where nothing can be rendered.
        colours: `#rrggbb` by value; those missing take their place in the palette.
    """

    case: str
    rank: str
    maps: Mapping[str, Volume]
    image: Volume | None
    values: Mapping[str, int]
    ignore_value: int | None
    unlabelled: frozenset[int]
    slices: Picture | None
    colours: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that a page says.

    Attributes:
        title: Name of the run or folder.
        lead: What it is, in a sentence.
        figures: Headlines.
        strips: Structures, and last their mean.
        cases: The table of cases, worst first.
        tables: What else there is in tables: groups of patients, structures taken for one another.
        views: Cases to look at.
        charts: Curves, calibration and the like.
        pictures: Of single cases, where there are no views.
        facts: Groups of what else there is to know: names and values by heading.
        remarks: Faults and warnings of cases, and what the page lacks.
    """

    title: str
    lead: str
    figures: Sequence[Figure] = ()
    strips: Sequence[Strip] = ()
    cases: Table | None = None
    tables: Sequence[Table] = ()
    views: Sequence[View] = ()
    charts: Sequence[Picture] = ()
    pictures: Sequence[Picture] = ()
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()
