"""SIGTERM and SIGINT: an orderly end, at once or when the work at hand allows."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# torchrun passes on a signal that a scheduler sends to every process anyway.
_ECHO_S = 1.0


class StopSignals:
    """Turns the two signals into `Stopped`, or, while `deferred`, into a flag to ask for.

    A second signal while deferred, unless it is an echo of the first, stops at once: somebody is in a hurry.

    Attributes:
        is_requested: Whether a signal arrived.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False
        self._first_s = 0.0

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

    def check(self) -> None:
        """A moment at which to stop is safe.

        Raises:
            Stopped: If a signal arrived.
        """
        if self.is_requested:
            raise Stopped

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        hurries = self.is_requested and now - self._first_s > _ECHO_S
        if not self.is_requested:
            self.is_requested, self._first_s = True, now
        if hurries or not self._is_deferred:
            raise Stopped
