"""`clinseg register` and `models`: checkpoints under names that people agree on."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint import read_checkpoint
from pipeline.errors import ConfigError, Fault
from pipeline.tracking import (
    RegisteredVersion,
    RunFolder,
    Servable,
    fetch_model,
    find_run,
    is_run_id,
    list_models,
    read_delivered_id,
    register_model,
    tracking_uri,
)
from pipeline.workflows.applying.served_rows import INPUTS, example_row
from pipeline.workflows.runs.models import find_checkpoint, with_model
from pipeline.workflows.serving import LOADER, OUTPUTS


def register(run: str, name: str, alias: str | None) -> tuple[RegisteredVersion, str]:
    """Makes the checkpoint of a run a version of the registered model `name`.

    Args:
        run: By name, MLflow id or `latest`; an id that is unknown here is asked of MLflow.
        name: Of the model.
        alias: Shall stand for this version from now on, such as `champion`; None to give none.

    Returns:
        The version, and the tracking URI where it is.

    Raises:
        FaultError: If there is no such run or checkpoint, or MLflow lacks some of the run or is out of reach.
    """
    path, run_id, uri = _find(run)
    checkpoint = read_checkpoint(path)
    servable = Servable(
        checkpoint=path,
        content_hash=str(checkpoint.content_hash),
        loader=LOADER,
        inputs=INPUTS,
        outputs=OUTPUTS[str(checkpoint.job["task"])],
        example=example_row(),
    )
    return register_model(servable, run_id, name, alias, uri), uri


def models() -> list[RegisteredVersion]:
    """All versions of all registered models."""
    return list_models()


def _find(run: str) -> tuple[Path, str, str]:
    """Checkpoint, MLflow's id and tracking URI of a run."""
    try:
        found = with_model(find_run(run))
    except ConfigError:
        if not is_run_id(run):
            raise
        return fetch_model(run), run, tracking_uri(None)  # a run of another disk, on the server
    return find_checkpoint(found), _delivered_id(found), found.uri


def _delivered_id(run: RunFolder) -> str:
    run_id = read_delivered_id(run)
    if run_id is None:
        message = f"MLflow has not all of this run yet; first: clinseg sync {run.name}"
        raise ConfigError(Fault(run.name, "run-undelivered", message))
    return run_id
