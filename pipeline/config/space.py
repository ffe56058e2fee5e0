"""What a sweep tries: choices and ranges of settings, parsed from the command line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError, Fault

_LOG = ":log"
_KEPT = {
    "task": "a sweep is of one task",
    "data": "trials would then be judged by different cases",
    "augmentation.from_enhancer": "trials would then be of different data; train each by itself",
    "tracking": "trials are recorded side by side",
}
"""Settings, or sections, that are the same in all trials, and why."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between two ends, both included.

    Attributes:
        low: Least value.
        high: Largest.
        is_log: Whether ratios are drawn evenly instead of differences.
        is_whole: Whether whole numbers are meant.
    """

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def text(self, value: float) -> str:
        """A value as a setting has it, rounded to six digits."""
        return str(round(value)) if self.is_whole else f"{self.within(value):.6g}"

    def within(self, value: float) -> float:
        """The nearest value of the range: rounding can leave it."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Space:
    """What is tried.

    Attributes:
        choices: Values as text by dotted key.
        ranges: By dotted key.
    """

    choices: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, Range]

    def combinations(self) -> Iterator[dict[str, str]]:
        """Every combination of the choices, the last key's changing first."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))

    def corners(self) -> Iterator[dict[str, str]]:
        """One setting each, every choice and both ends of every range: whether all can be set."""
        for key, values in self.choices.items():
            yield from ({key: value} for value in values)
        for key, span in self.ranges.items():
            yield from ({key: span.text(end)} for end in (span.low, span.high))


def parse_space(choices: Sequence[str], ranges: Sequence[str]) -> Space:
    """The space of `key=a,b,…` and `key=low..high[:log]`.

    Commas within brackets or braces do not part values: `network.features=[8,16],[16,32]` are two.

    Raises:
        ConfigError: With all that is wrong.
    """
    faults: list[Fault] = []
    listed = [_choices(text, faults) for text in choices]
    spans = [_range(text, faults) for text in ranges]
    keys = [key for key, _ in (*listed, *spans)]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        faults.append(Fault(key, "sweep-space", "it stands twice in the space; name it once"))
    for key in keys:
        reason = next((why for kept, why in _KEPT.items() if key == kept or key.startswith(f"{kept}.")), None)
        if reason is not None:
            faults.append(Fault(key, "sweep-space", f"it cannot be swept: {reason}"))
    if not keys:
        message = "nothing is to be tried; name --set-grid key=a,b or --set-range key=low..high[:log]"
        faults.append(Fault("sweep", "sweep-space", message))
    if faults:
        raise ConfigError(faults)
    return Space(dict(listed), {key: span for key, span in spans if span is not None})


def _choices(text: str, faults: list[Fault]) -> tuple[str, tuple[str, ...]]:
    key, _, listed = text.partition("=")
    values = tuple(_split(listed))
    if not key or not all(values):
        message = "expected key=a,b,… such as training.optimizer=adamw,muon"
        faults.append(Fault(f"--set-grid {text}", "sweep-space", message))
    if len(set(values)) < len(values):
        faults.append(Fault(f"--set-grid {text}", "sweep-space", "a value stands in it twice"))
    return key.strip(), values


def _range(text: str, faults: list[Fault]) -> tuple[str, Range | None]:
    key, _, span = text.partition("=")
    is_log = span.endswith(_LOG)
    ends = span.removesuffix(_LOG).split("..")
    numbers = [number for end in ends if (number := _number(end)) is not None]
    if not key or len(ends) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        message = "expected key=low..high or key=low..high:log, such as training.learning_rate=1e-4..1e-2:log"
        faults.append(Fault(f"--set-range {text}", "sweep-space", message))
        return key.strip(), None
    if is_log and numbers[0] <= 0:
        message = "a logarithmic range begins above 0"
        faults.append(Fault(f"--set-range {text}", "sweep-space", message))
    is_whole = all(end.strip().lstrip("+-").isdecimal() for end in ends)
    return key.strip(), Range(numbers[0], numbers[1], is_log, is_whole)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _split(text: str) -> Iterator[str]:
    """The parts between commas that no bracket holds."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += letter
    yield part.strip()
