"""The record of experiments: written to the local disk first, delivered to MLflow behind the training's back.

`runs` knows the folders and `listing` what they have come to; `events` is the append-only log in each,
`record` writes it and `delivery` carries it to MLflow; `store` is MLflow itself, `models` fetches checkpoints
from it and `server` shows it in a browser.
MLflow is imported only when something is delivered, fetched or shown.
"""

from pipeline.tracking.delivery import Delivery, deliver
from pipeline.tracking.listing import (
    BEST,
    RunSummary,
    list_runs,
    read_metrics,
    read_settings,
    read_status,
    summarise_run,
)
from pipeline.tracking.models import fetch_model, is_run_id
from pipeline.tracking.record import Record, resume_record, start_child, start_record
from pipeline.tracking.runs import STORE, RunFolder, find_child, find_run, read_children
from pipeline.tracking.server import serve_ui
from pipeline.tracking.store import tracking_uri

__all__ = [
    "BEST",
    "STORE",
    "Delivery",
    "Record",
    "RunFolder",
    "RunSummary",
    "deliver",
    "fetch_model",
    "find_child",
    "find_run",
    "is_run_id",
    "list_runs",
    "read_children",
    "read_metrics",
    "read_settings",
    "read_status",
    "resume_record",
    "serve_ui",
    "start_child",
    "start_record",
    "summarise_run",
    "tracking_uri",
]
