"""SIGTERM and SIGINT: an orderly end, at once or when the work at hand allows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Turns the two signals into `Stopped`, or, while `deferred`, into a flag to ask for.

    A second signal while deferred stops at once: somebody is in a hurry.

    Attributes:
        is_requested: Whether a signal arrived.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal only sets `is_requested`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        hurries = self.is_requested
        self.is_requested = True
        if hurries or not self._is_deferred:
            raise Stopped
