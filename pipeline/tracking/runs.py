"""The runs on this disk: one folder each, readable without MLflow."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import ConfigError, Fault
from pipeline.files import resource_error, write_text

STORE = Path("mlruns")
ARTIFACTS = "artifacts"
"""Folder of MLflow's copies, in a store."""

_MIN_PREFIX = 6
_LOCK_PATIENCE_S = 1.0  # longer than a listing holds the lock while it looks whether anybody else does


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run on this disk: what it is. What happened in it stands in its `events.jsonl`.

    Attributes:
        path: The folder, absolute; `path.name` is the run's name.
        experiment: MLflow experiment.
        task: Such as `segmentation`.
        uri: Tracking URI that its events are delivered to.
        created: Milliseconds since 1970.
        parent: Name of the run that this one is a part of; None if it stands alone.
    """

    path: Path
    experiment: str
    task: str
    uri: str
    created: int
    parent: str | None = None

    @property
    def name(self) -> str:
        """Such as `hippocampus-20261122-191500-3fa9`."""
        return self.path.name

    @property
    def store(self) -> Path:
        """The folder that holds all runs, MLflow's database and its artifacts."""
        return self.path.parent.parent

    @property
    def events(self) -> Path:
        """The append-only log."""
        return self.path / "events.jsonl"

    def hold(self) -> FileLock:
        """Takes the run for this process until the lock is released or the process ends, however it ends.

        Raises:
            ConfigError: If another process holds it.
            ResourceError: If the folder cannot be written.
        """
        lock = FileLock(self.path / "lock", timeout=_LOCK_PATIENCE_S)
        try:
            lock.acquire()
        except Timeout:
            message = "another process is writing this run; let it end, or end it, then try again"
            raise ConfigError(Fault(self.name, "run-held", message)) from None
        except OSError as error:
            raise resource_error(self.path, error) from error
        return lock

    def is_held(self) -> bool:
        """Whether a process is writing this run now."""
        lock = FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError:  # a store that may only be read
            return False
        lock.release()
        return False


@dataclass(frozen=True, slots=True)
class DeliveryNote:
    """How much of a run MLflow has; kept in `delivery.json`, which only the deliverer writes.

    Attributes:
        run_id: MLflow's id of the run, once it has one.
        offset: Bytes of `events.jsonl` that are delivered.
        refused: What MLflow refused for its content, with the reason.
    """

    run_id: str | None = None
    offset: int = 0
    refused: tuple[str, ...] = ()


def database_uri(store: Path) -> str:
    """The tracking URI of a store's own database."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


def create_run(experiment: str, task: str, uri: str, now: int, store: Path) -> RunFolder:
    """Makes the folder of a new run, with a name that no other run has."""
    folder = store.resolve() / "runs"
    slug = re.sub(r"[^a-z0-9]+", "-", experiment.lower()).strip("-")[:40] or "run"
    stamp = datetime.fromtimestamp(now / 1000, UTC).astimezone().strftime("%Y%m%d-%H%M%S")
    path = folder / f"{slug}-{stamp}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except OSError as error:
        if path.is_dir():  # two runs of one second drew the same four letters
            return create_run(experiment, task, uri, now, store)
        raise resource_error(path, error) from error
    return _write_run(RunFolder(path, experiment, task, uri, now))


def create_child(parent: RunFolder, part: str, now: int) -> RunFolder:
    """Makes the folder of a part of a run, such as `fold0`; one that a kill left unfinished is completed."""
    path = parent.path.with_name(f"{parent.name}-{part}")
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise resource_error(path, error) from error
    return _write_run(replace(parent, path=path, created=now, parent=parent.name))


def find_child(parent: RunFolder, part: str) -> RunFolder | None:
    """The part of a run that `create_child` made; None if it did not."""
    return _read_run(parent.path.with_name(f"{parent.name}-{part}") / "run.json")


def find_parent(run: RunFolder) -> RunFolder | None:
    """The run that this one is a part of; None if it stands alone, or that run's folder was removed."""
    return None if run.parent is None else _read_run(run.path.with_name(run.parent) / "run.json")


def read_children(run: RunFolder) -> list[RunFolder]:
    """The parts of a run, in the order in which they began."""
    return [other for other in reversed(read_runs(run.store)) if other.parent == run.name]


def find_run(name: str, store: Path = STORE) -> RunFolder:
    """The run called `name`: `latest`, a run's name, or MLflow's run id or at least six of its first letters.

    The latest is one that stands alone or has parts, not a part.

    Raises:
        ConfigError: If there is none, or more than one; the nearest names are given.
    """
    runs = read_runs(store)
    if not runs:
        message = f"there is no run in {store}; train one, or work where its `{STORE}` folder lies"
        raise ConfigError(Fault(name, "run-unknown", message))
    if name == "latest":
        return next((run for run in runs if run.parent is None), runs[0])
    found = [run for run in runs if run.name == name] or _with_run_id(runs, name)
    if len(found) == 1:
        return found[0]
    if found:
        message = f"several runs begin so: {', '.join(run.name for run in found[:5])}; give more letters"
        raise ConfigError(Fault(name, "run-ambiguous", message))
    names = [run.name for run in runs]
    near = get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    message = f"no run has this name or MLflow id; the nearest are {', '.join(near)}"
    raise ConfigError(Fault(name, "run-unknown", message))


def read_runs(store: Path) -> list[RunFolder]:
    """All runs, newest first; a folder without a valid `run.json` was never begun and is passed over."""
    folder = store.resolve() / "runs"
    runs = [run for path in folder.glob("*/run.json") if (run := _read_run(path)) is not None]
    return sorted(runs, key=lambda run: (run.created, run.name), reverse=True)


def read_note(run: RunFolder) -> DeliveryNote:
    """What was delivered; nothing if the note is missing or not one, for then delivery begins anew."""
    try:
        raw = json.loads((run.path / "delivery.json").read_bytes())
        run_id, offset = raw["run_id"], int(raw["offset"])
        note = DeliveryNote(str(run_id) if run_id else None, offset, tuple(map(str, raw["refused"])))
    except (OSError, ValueError, TypeError, KeyError):
        return DeliveryNote()
    size = run.events.stat().st_size if run.events.exists() else 0
    return note if 0 <= offset <= size else replace(note, offset=0)


def write_note(run: RunFolder, note: DeliveryNote) -> None:
    """Keeps what was delivered, durably."""
    facts = {"run_id": note.run_id, "offset": note.offset, "refused": note.refused}
    write_text(run.path / "delivery.json", json.dumps(facts, indent=2) + "\n")


def _write_run(run: RunFolder) -> RunFolder:
    facts = {name: getattr(run, name) for name in ("name", "experiment", "task", "uri", "created", "parent")}
    if run.uri == database_uri(run.store):
        facts["uri"] = None  # wherever the store will be
    write_text(run.path / "run.json", json.dumps(facts, indent=2) + "\n")
    return run


def _read_run(path: Path) -> RunFolder | None:
    try:
        raw = json.loads(path.read_bytes())
        texts = (str(raw["experiment"]), str(raw["task"]), _read_uri(raw["uri"], path.parents[2]))
        parent = raw.get("parent")
        return RunFolder(path.parent, *texts, int(raw["created"]), None if parent is None else str(parent))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read_uri(uri: object, store: Path) -> str:
    """Where a run is delivered: its store's own database if it names none, or one in a folder that is gone.

    Runs of earlier versions name their own database absolutely, also after the store was moved.
    """
    match = re.fullmatch(r"sqlite:///(/.+)/mlflow\.db", str(uri))
    was_moved = match and not Path(match[1]).is_dir() and (store / "mlflow.db").is_file()
    return database_uri(store) if uri is None or was_moved else str(uri)


def _with_run_id(runs: list[RunFolder], prefix: str) -> list[RunFolder]:
    if len(prefix) < _MIN_PREFIX:
        return []
    return [run for run in runs if (read_note(run).run_id or "").startswith(prefix)]
