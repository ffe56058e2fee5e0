"""clinseg: train, compare and apply segmentation models on clinical volumes.

Floor plan, in the order of the flow: `cli` parses and calls one function of `workflows`, the only place
where rooms meet. `config` is the typed job, `volume` the geometry. `data` finds, checks and serves cases;
`planning` makes a job of what they are like; `networks` holds networks; `training` fits them; `inference`
applies them to full volumes; `export` writes masks; `report` draws. `checkpoint`, `metrics`, `statistics`
and `tracking` serve them all.
"""

import os

__version__ = "0.1.0"

# MONAI imports MLflow as soon as it is imported itself, and MLflow reads these then: nothing that comes later
# could still keep it from calling home. The user's own settings win.
_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own are 120 s and 7 retries: four minutes a call against a dead server. Ours come back later.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # No connection outlives its transaction, so loader processes forked from training inherit none.
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
}
for _name, _value in _MLFLOW.items():
    os.environ.setdefault(_name, _value)

# OpenMP, which torch computes with, reads this as torch is imported. By itself it lets a thread that has done
# its share spin for milliseconds, and where another program has a core, the one spun for cannot run. So few
# spins are what libgomp itself takes where it knows of more threads than cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
