"""Which checkpoint a person means: a run, `latest`, a file, or a registered model."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint import Checkpoint, read_checkpoint
from pipeline.errors import ConfigError, Fault
from pipeline.tracking import (
    STORE,
    RunFolder,
    fetch_model,
    find_child,
    find_run,
    is_run_id,
    read_settings,
)

BEST = Path("checkpoints/best.safetensors")
LAST = Path("checkpoints/last.safetensors")
WINNER_TAG = "clinseg.winner"
"""Names the best trial of a sweep."""


def load_model(model: str, store: Path = STORE, uri: str | None = None) -> Checkpoint:
    """Loads the checkpoint that `model` names.

    Args:
        model: A checkpoint file, `models:/name@alias`, `latest`, or a run by name or MLflow id (of a sweep
            its winner); an id that is unknown here is asked of MLflow.
        store: Folder of the runs.
        uri: Tracking URI of a job; None takes `MLFLOW_TRACKING_URI`, else the database in `store`.

    Raises:
        ConfigError: If nothing is called so, or it is no checkpoint of ours.
        IntegrityError: If the file is damaged.
        ServiceError: If a registered model cannot be fetched.
    """
    if model.startswith("models:/"):
        return read_checkpoint(fetch_model(model, store, uri))
    path = Path(model).expanduser()
    if path.suffix or len(path.parts) > 1 or path.is_file():
        return read_checkpoint(path)
    try:
        run = find_run(model, store)
    except ConfigError:
        if not is_run_id(model):
            raise
        return read_checkpoint(fetch_model(model, store, uri))  # a run of another disk, on the server
    return read_checkpoint(find_checkpoint(with_model(run)))


def pin_model(model: str, store: Path = STORE) -> str:
    """The same model by a name that does not pass to the next run: `latest` becomes the run's own.

    Raises:
        ConfigError: If there is no run yet.
    """
    return find_run(model, store).name if model == "latest" else model


def find_checkpoint(run: RunFolder) -> Path:
    """The checkpoint that a run is judged by: its best, or while there is none its last.

    Raises:
        ConfigError: If the run has not saved any.
    """
    for name in (BEST, LAST):
        if (run.path / name).is_file():
            return run.path / name
    message = "the run has no checkpoint yet; let it finish an epoch, or choose another run (`clinseg runs`)"
    raise ConfigError(Fault(run.name, "no-checkpoint", message))


def with_model(run: RunFolder) -> RunFolder:
    """The run that holds the model of a run: of a sweep that has ended its winner, else itself."""
    _, tags = read_settings(run)
    part = tags.get(WINNER_TAG, "").removeprefix(f"{run.name}-")
    return (find_child(run, part) if part else None) or run
