"""`clinseg runs`, `sync`, `ui` and `import-mlruns`: what was recorded, here and in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.tracking import (
    Delivery,
    Import,
    RunSummary,
    deliver,
    find_run,
    import_runs,
    list_runs,
    read_children,
    serve_ui,
)


def runs(limit: int) -> list[RunSummary]:
    """The newest runs on this disk, MLflow not asked."""
    return list_runs(limit=limit)


def sync(run: str) -> list[Delivery]:
    """Takes to MLflow what it lacks of a run and of its parts."""
    found = find_run(run)
    return [deliver(one) for one in (found, *read_children(found))]


def ui(port: int, on_ready: Callable[[str], None]) -> None:
    """Opens MLflow's UI on the project's store, on loopback, until it is stopped; tells its address."""
    serve_ui(port=port, on_ready=on_ready)


def import_mlruns(folder: Path) -> Import:
    """Copies the runs that an older MLflow kept as files in `folder`; see `pipeline.tracking.import_runs`."""
    return import_runs(folder)
