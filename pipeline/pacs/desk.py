"""Where instances arrive, each on disk and entered before it is acknowledged; which studies are complete."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Final

from filelock import FileLock, Timeout

from pipeline.errors import ConfigError, Fault
from pipeline.files import check_writable
from pipeline.pacs.entries import Waiting
from pipeline.pacs.instances import Instance, hash_uid, write_instance
from pipeline.pacs.queue import Queue

BROKEN_OFF: Final = 10
"""How many times longer nothing may have come of a study whose sender broke off."""


class Desk:
    """See `Inbox`.

    Args:
        queue: Remembers what arrived.
        folder: Where studies lie, each in a folder of its own.
        settle_s: Seconds without a new instance after which a study is complete.
        keep_s: Seconds after which the images of an answered study are removed.
        tell: Is told what happens.
    """

    def __init__(
        self, queue: Queue, folder: Path, settle_s: float, keep_s: float, tell: Callable[[str], None]
    ) -> None:
        self._queue = queue
        self._folder = folder
        self._settle_s = settle_s
        self._keep_s = keep_s
        self._started = time.time()
        self._lock = Lock()
        self._brought: dict[Thread, set[str]] = {}
        self.tell = tell

    def put(self, instance: Instance, sender: Thread) -> None:
        """The file first, then the entry, so that what is entered is there."""
        study = hash_uid(instance.study)
        with self._lock:
            self._brought.setdefault(sender, set()).add(study)
        known = hashlib.sha256(instance.content).hexdigest()
        if not self._queue.holds(instance, known):
            write_instance(self._folder / study, instance)
            self._queue.put(instance, known, time.time())

    def end(self, sender: Thread, *, is_released: bool) -> None:
        """See `Inbox`."""
        with self._lock:
            brought = self._brought.pop(sender, set())
            done = brought.difference(*self._brought.values())
        if is_released and done:
            self._queue.close_studies(done)
        elif brought and not is_released:
            self.tell(f"a sender broke off while it sent {', '.join(sorted(brought))}")

    def complete(self, model: str) -> list[Waiting]:
        """Studies that a model has not answered and of which nothing is to be expected any more."""
        with self._lock:
            lost = [sender for sender in self._brought if not sender.is_alive()]
        for sender in lost:
            self.end(sender, is_released=False)
        now = time.time()
        patience_s = BROKEN_OFF * self._settle_s
        # While nobody listened no sender could come back: that silence does not count.
        abandoned = now - patience_s if now - self._started >= patience_s else 0.0
        waiting = self._queue.waiting(model, now - self._settle_s, abandoned)
        with self._lock:
            arriving = self._arriving()
        return [study for study in waiting if study.study not in arriving]

    def tidy(self) -> None:
        """Removes images that are no longer needed."""
        with self._lock:  # nothing begins to arrive meanwhile, to be entered and then removed with the rest
            for study in self._queue.forget(time.time() - self._keep_s, self._arriving()):
                shutil.rmtree(self._folder / study, ignore_errors=True)

    def folder_of(self, study: str) -> Path:
        """Where a study lies."""
        return self._folder / study

    def _arriving(self) -> set[str]:
        """Of living senders."""
        return {study for sender, studies in self._brought.items() if sender.is_alive() for study in studies}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder is ours alone: for other users of the machine, and for other listeners; clean, too.

    Raises:
        ConfigError: If another one works there.
        ResourceError: If it cannot be written.
    """
    is_new = not folder.exists()
    check_writable(folder)
    if is_new:
        folder.chmod(0o700)
    try:
        with FileLock(folder / "lock", timeout=0):
            for left in folder.rglob(".*-partial-*"):  # by one that was killed while it wrote
                left.unlink()
            yield
    except Timeout:
        message = "another listener works in this folder; stop it, or name another folder"
        raise ConfigError(Fault(str(folder), "in-use", message)) from None
