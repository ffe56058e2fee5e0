"""What was received, predicted and sent, in one SQLite file that a kill or a power loss does not harm.

A study is *open* from its first new instance until a sender of it says goodbye. Every change of what lies
there raises its *revision*; an answer tells of which revision it is. All times are seconds since 1970, given
by the caller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from pipeline.errors import ConfigError, Fault, ResourceError
from pipeline.pacs.entries import Standing, Unsent, Waiting
from pipeline.pacs.instances import Instance, hash_uid

NAME: Final = "queue.sqlite3"
_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE studies (
    id TEXT PRIMARY KEY, uid TEXT NOT NULL, changed REAL NOT NULL, revision INTEGER NOT NULL,
    is_open INTEGER NOT NULL
) STRICT;
CREATE TABLE instances (
    path TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies, sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE answers (
    study TEXT NOT NULL REFERENCES studies, model TEXT NOT NULL, revision INTEGER NOT NULL,
    state TEXT NOT NULL, starts INTEGER NOT NULL DEFAULT 0, inputs TEXT, attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0, reason TEXT, refusals INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (study, model)
) STRICT;
"""
_FROM_FIRST: Final = "ALTER TABLE answers ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;"


class Queue:
    """The queue in a folder; may be used by several threads, and by another process that looks at it.

    Args:
        folder: Made if it is not there.

    Raises:
        ConfigError: If what lies there is no queue of this version.
        ResourceError: If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = RLock()  # whom a signal takes out of a transaction closes the queue all the same
        try:
            self._base = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")  # what is acknowledged survives a power loss
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            if version in (0, 1):
                changes = _SCHEMA if version == 0 else _FROM_FIRST
                self._base.executescript(
                    f"BEGIN IMMEDIATE; {changes} PRAGMA user_version={_VERSION}; COMMIT;"
                )
        except sqlite3.OperationalError as error:
            raise self._failed(error) from error
        except sqlite3.DatabaseError as error:
            message = "it is no queue of clinseg, or it is damaged; move it aside, then start again"
            raise ConfigError(Fault(str(self._path), "queue-damaged", message)) from error
        if version not in range(_VERSION + 1):
            message = "another version of clinseg made this queue; use that one, or another folder"
            raise ConfigError(Fault(str(self._path), "queue-version", message))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._base.close()

    def holds(self, instance: Instance, sha256: str) -> bool:
        """Whether this very instance arrived before."""
        study = hash_uid(instance.study)
        with self._transaction() as base:
            found = base.execute("SELECT sha256 FROM instances WHERE path = ?", (f"{study}/{instance.path}",))
            return bool(found.fetchone() == (sha256,))

    def put(self, instance: Instance, sha256: str, now: float) -> None:
        """Enters an instance whose file is on disk; its study is open now."""
        study = hash_uid(instance.study)
        with self._transaction() as base:
            base.execute(
                "INSERT INTO studies VALUES (?, ?, ?, 1, 1) ON CONFLICT (id) DO UPDATE SET "
                "changed = excluded.changed, revision = revision + 1, is_open = 1",
                (study, instance.study, now),
            )
            base.execute(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?)",
                (f"{study}/{instance.path}", study, sha256),
            )

    def close_studies(self, studies: Collection[str]) -> None:
        """Their senders said goodbye."""
        with self._transaction() as base:
            base.executemany("UPDATE studies SET is_open = 0 WHERE id = ?", [(study,) for study in studies])

    def waiting(self, model: str, settled: float, abandoned: float) -> list[Waiting]:
        """Studies without an answer to what lies there now, oldest first.

        Args:
            model: That is to answer.
            settled: Since when nothing may have come.
            abandoned: The same, where the sender broke off.
        """
        with self._transaction() as base:
            rows = base.execute(
                """
                SELECT s.id, s.revision, CASE WHEN a.revision = s.revision THEN a.starts ELSE 0 END,
                    CASE WHEN a.state = 'sent' THEN a.inputs END
                FROM studies s LEFT JOIN answers a ON a.study = s.id AND a.model = ?
                WHERE s.changed <= (CASE WHEN s.is_open THEN ? ELSE ? END)
                    AND EXISTS (SELECT 1 FROM instances i WHERE i.study = s.id)
                    AND (a.study IS NULL OR a.revision < s.revision OR a.state = 'predicting')
                ORDER BY s.changed
                """,
                (model, abandoned, settled),
            )
            return [Waiting(*row) for row in rows]

    def begin(self, model: str, studies: Sequence[Waiting]) -> None:
        """Predicting them begins: if it never ends, the next time knows."""
        with self._transaction() as base:
            base.executemany(
                """
                INSERT INTO answers (study, model, revision, state, starts) VALUES (?, ?, ?, 'predicting', ?)
                ON CONFLICT DO UPDATE SET revision = excluded.revision, state = 'predicting',
                    starts = excluded.starts, attempts = 0, refusals = 0, due = 0, reason = NULL
                """,
                [(one.study, model, one.revision, one.starts + 1) for one in studies],
            )

    def leave(self, model: str) -> None:
        """Predicting ends in an orderly way: what began did no harm."""
        self._change("starts = max(starts - 1, 0)", "model = ? AND state = 'predicting'", model)

    def predicted(self, study: str, model: str, inputs: str) -> None:
        """The answer lies on disk, made of a series with this hash."""
        self._change(
            "state = 'predicted', starts = 0, inputs = ?", "study = ? AND model = ?", inputs, study, model
        )

    def unchanged(self, study: Waiting, model: str) -> None:
        """What the PACS has is the answer still: nothing that the model looks at has changed."""
        where = "study = ? AND model = ? AND state = 'sent'"
        self._change("revision = ?", where, study.revision, study.study, model)

    def park(self, study: str, model: str, reason: str) -> None:
        """A person has to look at it."""
        self._change(
            "state = 'parked', starts = 0, reason = ?", "study = ? AND model = ?", reason, study, model
        )

    def unsent(self, model: str, now: float, limit: int) -> list[Unsent]:
        """Answers that it is time to send."""
        with self._transaction() as base:
            rows = base.execute(
                "SELECT study, revision, attempts, refusals FROM answers "
                "WHERE model = ? AND state = 'predicted' AND due <= ? ORDER BY due LIMIT ?",
                (model, now, limit),
            )
            return [Unsent(*row) for row in rows]

    def sent(self, answer: Unsent, model: str) -> None:
        """The PACS acknowledged it; nothing, if another answer took its place meanwhile."""
        where = "study = ? AND model = ? AND revision = ? AND state = 'predicted'"
        self._change("state = 'sent', reason = NULL", where, answer.study, model, answer.revision)

    def postpone(
        self, answer: Unsent, model: str, due: float, reason: str, *, is_refusal: bool = False
    ) -> None:
        """It was sent in vain; when to try again."""
        where = "study = ? AND model = ? AND revision = ? AND state = 'predicted'"
        self._change(
            "attempts = attempts + 1, refusals = refusals + ?, due = ?, reason = ?",
            where, is_refusal, due, reason, answer.study, model, answer.revision,
        )  # fmt: skip

    def lost(self, answer: Unsent, model: str) -> None:
        """Its file is no longer there; it has to be predicted again."""
        self._change("state = 'predicting'", "study = ? AND model = ?", answer.study, model)

    def retry(self) -> int:
        """Takes all that is parked up again; how many."""
        with self._transaction() as base:
            changes = "revision = revision - 1, reason = NULL, attempts = 0, refusals = 0"
            return base.execute(f"UPDATE answers SET {changes} WHERE state = 'parked'").rowcount  # noqa: S608 - words of this file

    def forget(self, before: float, kept: Collection[str]) -> list[str]:
        """Forgets the instances of answered studies that are as old as that; gives these studies' ids.

        Args:
            before: When something came of them last, at the latest.
            kept: Studies that are not to be forgotten.
        """
        with self._transaction() as base:
            rows = base.execute(
                """
                SELECT DISTINCT i.study FROM instances i JOIN studies s ON s.id = i.study
                WHERE s.changed <= ?
                    AND EXISTS (SELECT 1 FROM answers a WHERE a.study = s.id AND a.revision = s.revision)
                    AND NOT EXISTS (
                        SELECT 1 FROM answers a
                        WHERE a.study = s.id AND a.revision = s.revision AND a.state != 'sent'
                    )
                """,
                (before,),
            )
            studies = [row[0] for row in rows if row[0] not in kept]
            base.executemany("DELETE FROM instances WHERE study = ?", [(study,) for study in studies])
            return studies

    def standings(self) -> list[Standing]:
        """Every study, oldest first."""
        with self._transaction() as base:
            rows = base.execute(
                """
                SELECT s.id, s.uid, coalesce(a.model, ''),
                    CASE WHEN a.study IS NULL OR a.revision < s.revision THEN 'receiving' ELSE a.state END,
                    (SELECT count(*) FROM instances i WHERE i.study = s.id), coalesce(a.reason, '')
                FROM studies s LEFT JOIN answers a ON a.study = s.id ORDER BY s.changed, a.model
                """
            )
            return [Standing(*row) for row in rows]

    def _change(self, what: str, where: str, *values: object) -> None:
        with self._transaction() as base:
            base.execute(f"UPDATE answers SET {what} WHERE {where}", values)  # noqa: S608 - words of this file

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                try:
                    yield self._base
                except BaseException:
                    self._base.execute("ROLLBACK")
                    raise
                self._base.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> ResourceError:
        message = f"the queue cannot be written ({error}); look at disk space and permissions of its folder"
        return ResourceError(Fault(str(self._path), "queue-failed", message))
