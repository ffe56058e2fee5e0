"""A thread that sends answers to a PACS, and waits longer and longer while it is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Final

from pipeline.errors import ServiceError
from pipeline.pacs.entries import Unsent
from pipeline.pacs.instances import Pacs
from pipeline.pacs.queue import Queue

_POLL_S: Final = 0.2
_BATCH: Final = 16
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 600.0
_MAX_REFUSALS: Final = 5
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True)
class Courier:
    """Sends what is predicted.

    Attributes:
        pacs: Where to.
        queue: Knows what is to be sent.
        model: That made it.
        path_of: The file of a study's answer.
        tell: Is told what happens.
        failures: Why it had to give up, if it had to.
    """

    pacs: Pacs
    queue: Queue
    model: str
    path_of: Callable[[str], Path]
    tell: Callable[[str], None]
    failures: list[Exception] = field(default_factory=list)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Sends in a thread of its own while it lasts."""
        stop = Event()
        thread = Thread(target=self._work, args=(stop,), name="courier", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=_PATIENCE_S)
            if thread.is_alive():  # what is under way then is sent again, and arrives as one
                self.pacs.hang_up()
                thread.join(timeout=_PATIENCE_S)

    def _work(self, stop: Event) -> None:
        try:
            while not stop.wait(_POLL_S):
                while not stop.is_set() and (answers := self._choose()):
                    self._send(answers)
        except Exception as error:  # who listens has to learn of it
            self.failures.append(error)

    def _choose(self) -> list[Unsent]:
        """What to send together; what once did not arrive goes after all else, and alone.

        It may be what the PACS breaks off at, and others with it would never arrive.
        """
        due = self.queue.unsent(self.model, time.time(), _BATCH)
        return [answer for answer in due if not answer.attempts] or due[:1]

    def _send(self, answers: Sequence[Unsent]) -> None:
        """After a kill between sending and remembering, the same files go again with the same UIDs."""
        files = {}
        for answer in answers:
            path = self.path_of(answer.study)
            if path.is_file():
                files[path] = answer
            else:
                self.queue.lost(answer, self.model)
        try:
            refused = self.pacs.send(list(files))
        except ServiceError as error:
            reason = error.faults[0].message
            self.tell(f"{len(files)} segmentations wait: {reason}")
            for answer in files.values():
                self._postpone(answer, reason)
            return
        for path, answer in files.items():
            if path not in refused:
                self.queue.sent(answer, self.model)
                self.tell(f"{answer.study}: sent")
            elif answer.refusals + 1 < _MAX_REFUSALS:
                self._postpone(answer, refused[path], is_refusal=True)
            else:
                self.queue.park(answer.study, self.model, refused[path])
                self.tell(f"{answer.study}: parked, {refused[path]}")

    def _postpone(self, answer: Unsent, reason: str, *, is_refusal: bool = False) -> None:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(answer.attempts, 20))
        self.queue.postpone(answer, self.model, time.time() + pause_s, reason, is_refusal=is_refusal)
