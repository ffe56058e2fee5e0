"""Whether eight trainings that begin at once on a fresh record, and write for ten minutes, lose a point.

    python benchmarks/tracking_together.py [--processes 8] [--minutes 10]

Every process starts a run in the same new `mlruns/` and records an epoch of 20 metrics a second, as fast a
pace as a real training's shortest epochs. Then the database is asked for every point of every run: what is
missing, there twice, or has another value is counted and named.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline.tracking import start_record
from pipeline.tracking.store import connect

NUM_METRICS = 20
_EXPERIMENT = "together"


def write(number: int, num_epochs: int) -> None:
    """One process: an epoch a second, whatever MLflow does meanwhile."""
    record = start_record(_EXPERIMENT, None, "segmentation")
    record.set_tags({"number": str(number)})
    began, slowest = time.monotonic(), 0.0
    for epoch in range(num_epochs):
        time.sleep(max(0.0, began + epoch - time.monotonic()))
        called = time.monotonic()
        record.log_metrics({name_of(k): value_of(number, epoch, k) for k in range(NUM_METRICS)}, epoch)
        slowest = max(slowest, time.monotonic() - called)
    delivery = record.close("FINISHED", timeout_s=300)
    print(f"{number}: {delivery.undelivered} undelivered, slowest call {1000 * slowest:.0f} ms", flush=True)


def name_of(metric: int) -> str:
    return f"validation/dice/structure_{metric}"


def value_of(number: int, epoch: int, metric: int) -> float:
    return number + epoch / 1000 + metric / 1_000_000


def count(num_processes: int, num_epochs: int) -> Counter[str]:
    """How many points are right, missing, doubled or wrong in the database."""
    client = connect(f"sqlite:///{Path('mlruns/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    assert experiment is not None, "the processes made it"
    runs = client.search_runs([experiment.experiment_id])
    counts = Counter({"runs": len(runs), "right": 0, "missing": 0, "doubled": 0, "wrong": 0})
    for run in runs:
        number = int(run.data.tags["number"])
        for k in range(NUM_METRICS):
            points = client.get_metric_history(run.info.run_id, name_of(k))
            values = {point.step: point.value for point in points}
            counts["doubled"] += len(points) - len(values)
            counts["missing"] += num_epochs - len(values)
            right = sum(value == value_of(number, step, k) for step, value in values.items())
            counts["right"] += right
            counts["wrong"] += len(values) - right
    counts["runs missing"] = num_processes - counts["runs"]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    num_epochs = round(60 * options.minutes)
    if options.number is not None:
        write(options.number, num_epochs)
        return
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        program = [sys.executable, str(Path(__file__).resolve()), "--minutes", str(options.minutes)]
        processes = [
            subprocess.Popen([*program, "--number", str(number)]) for number in range(options.processes)
        ]
        failed = sum(process.wait() != 0 for process in processes)
        counts = count(options.processes, num_epochs)
        os.chdir("/")
    print(
        f"{options.processes} processes, {num_epochs} epochs of {NUM_METRICS} metrics each, {failed} failed"
    )
    print(", ".join(f"{name}: {number}" for name, number in counts.items()))
    bad = failed + sum(counts[name] for name in ("runs missing", "missing", "doubled", "wrong"))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
