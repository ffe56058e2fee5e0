"""The record of experiments: written to the local disk first, delivered to MLflow behind the training's back.

`runs` knows the folders and `listing` what they have come to; `events` is the append-only log in each,
`record` writes it and `delivery` carries it to MLflow; `store` is MLflow itself, `registry` puts
checkpoints there under a name, `models` fetches them, `server` shows it all in a browser,
and `importing` takes over what older MLflows kept as files.
MLflow is imported only when something is delivered, fetched or shown.
"""

from pipeline.tracking.delivery import Delivery, deliver
from pipeline.tracking.importing import Import, import_runs
from pipeline.tracking.listing import (
    BEST,
    RunSummary,
    list_runs,
    read_delivered_id,
    read_metrics,
    read_settings,
    read_status,
    summarise_run,
)
from pipeline.tracking.models import fetch_model, is_run_id
from pipeline.tracking.record import Record, resume_record, start_child, start_record
from pipeline.tracking.registry import RegisteredVersion, Servable, list_models, register_model
from pipeline.tracking.runs import STORE, RunFolder, find_child, find_run, read_children
from pipeline.tracking.server import serve_ui
from pipeline.tracking.store import NOTE_TAG, RUN_ID
from pipeline.tracking.uris import tracking_uri

__all__ = [
    "BEST",
    "NOTE_TAG",
    "RUN_ID",
    "STORE",
    "Delivery",
    "Import",
    "Record",
    "RegisteredVersion",
    "RunFolder",
    "RunSummary",
    "Servable",
    "deliver",
    "fetch_model",
    "find_child",
    "find_run",
    "import_runs",
    "is_run_id",
    "list_models",
    "list_runs",
    "read_children",
    "read_delivered_id",
    "read_metrics",
    "read_settings",
    "read_status",
    "register_model",
    "resume_record",
    "serve_ui",
    "start_child",
    "start_record",
    "summarise_run",
    "tracking_uri",
]
