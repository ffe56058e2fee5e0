"""What the record costs a training: of its own thread, of the one that talks to MLflow, and of a whole job.

    python benchmarks/tracking.py -o docs/benchmarks/tracking.md [--epochs 40] [--only training record]

Costs are CPU times of single threads, which a busy machine does not change, and the time that the training's
thread is away in calls of the record, which it does: that is told as the median of the epochs and the most.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.config import load_job
from pipeline.data.synthetic import write_phantom_study
from pipeline.signals import StopSignals
from pipeline.tracking import Record, start_record
from pipeline.tracking.record import _Drain
from pipeline.training.distributed import ALONE
from pipeline.workflows.training import train

ROOT = Path(__file__).parents[1]
NUM_METRICS = 40
EPOCH_S = 1.1  # longer than the record's pause, so that each epoch is delivered by itself


@dataclass
class Cost:
    """Seconds that a record took.

    Attributes:
        away: Of each epoch, what the training's thread spent in calls, waiting included.
        calling: CPU of these calls, all together.
        writer: CPU of the thread that talks to MLflow.
        closing: What the end of the run took.
        undelivered: Events that MLflow lacks at the end.
    """

    away: list[float] = field(default_factory=list)
    calling: float = 0.0
    writer: float = 0.0
    closing: float = 0.0
    undelivered: int = 0


def measure(uri: str | None, num_epochs: int) -> Cost:
    """A training that does nothing but pass time and record its epochs."""
    cost = Cost()
    record = start_record("cost", uri, "segmentation")
    (drain,) = (thread for thread in threading.enumerate() if thread.name == "tracking")
    clock = time.pthread_getcpuclockid(drain.ident or 0)
    for epoch in range(num_epochs):
        time.sleep(EPOCH_S)
        began, calling = time.perf_counter(), time.thread_time()
        record.log_metrics(
            {f"validation/dice/structure {n}": epoch / (n + 1) for n in range(NUM_METRICS)}, epoch
        )
        cost.away.append(time.perf_counter() - began)
        cost.calling += time.thread_time() - calling
    cost.writer = time.clock_gettime(clock)
    began = time.perf_counter()
    cost.undelivered = record.close("FINISHED").undelivered
    cost.closing = time.perf_counter() - began
    drain.join(60)
    return cost


@contextmanager
def nobody() -> Iterator[str]:
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def silence() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class _Refusing(BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        self.send_error(401)

    do_GET = do_POST = do_PUT = do_PATCH = _refuse  # noqa: N815 - names that http.server gives

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""


@contextmanager
def password() -> Iterator[str]:
    """A server that answers 401 to everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def database() -> Iterator[None]:
    """The store's own."""
    yield None


def record_table(num_epochs: int) -> str:
    """Costs per epoch, by what MLflow does meanwhile."""
    places: dict[str, Callable[[], Any]] = {
        "is the store's own database": database,
        "is a server that is down": nobody,
        "is a server that hangs": silence,
        "is a server that answers 401": password,
    }
    lines = [
        f"`--only record`: {num_epochs} epochs of {EPOCH_S} s with {NUM_METRICS} metrics, CPU per epoch:",
        "",
        "| MLflow | training's thread | away: median (most) | writer's thread | last wait | left on disk |",
        "|---|---|---|---|---|---|",
    ]
    for name, place in places.items():
        with place() as uri:
            cost = measure(uri, num_epochs)
        cells = [
            name,
            f"{1000 * cost.calling / num_epochs:.2f} ms",
            f"{1000 * statistics.median(cost.away):.2f} ms ({1000 * max(cost.away):.1f} ms)",
            f"{1000 * cost.writer / num_epochs:.1f} ms",
            f"{cost.closing:.1f} s",
            str(cost.undelivered),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


@contextmanager
def watched() -> Iterator[Cost]:
    """Adds up what records cost; by wrapping their doors, which only a measurement may do."""
    cost, doors, run = Cost(), ("_append", "flush"), _Drain.run
    kept = {name: getattr(Record, name) for name in doors}

    def timed(door: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it is given
            began = time.thread_time()
            try:
                return door(*arguments, **named)
            finally:
                cost.calling += time.thread_time() - began

        return call

    def run_timed(drain: _Drain) -> None:
        run(drain)
        cost.writer += time.thread_time()

    for name, door in kept.items():
        setattr(Record, name, timed(door))
    setattr(_Drain, "run", run_timed)  # noqa: B010 - mypy takes a method for a constant
    try:
        yield cost
    finally:
        for name, door in kept.items():
            setattr(Record, name, door)
        setattr(_Drain, "run", run)  # noqa: B010 - as above


def training_table(num_epochs: int, num_steps: int) -> str:
    """Shares of the CPU time of a whole training, from its start to its report."""
    manifest = write_phantom_study(Path("study"), num_cases=10)
    settings = [f"data.manifest={manifest}", "data.terminology={}", "training.minutes=null"]
    settings += [f"training.epochs={num_epochs}", f"training.steps_per_epoch={num_steps}"]
    job = load_job(ROOT / "configs/hippocampus.yaml", settings)
    with watched() as cost, StopSignals() as signals:
        began = time.process_time()
        train(job, None, signals, ALONE, lambda _: None, lambda _: None)
        whole = time.process_time() - began
    rows = [
        ("the training's thread in calls of the record", cost.calling),
        ("the writer's thread, MLflow and its database in it", cost.writer),
    ]
    return "\n".join(
        [
            f"`--only training`: hippocampus, {num_epochs} epochs with {num_steps} steps, {whole:.0f} s CPU:",
            "",
            "| | CPU | share |",
            "|---|---|---|",
            *(f"| {name} | {seconds:.2f} s | {seconds / whole:.2%} |" for name, seconds in rows),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--training-epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=["training", "record"])
    options = parser.parse_args()
    output = options.output.resolve() if options.output else None
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    parts: dict[str, Callable[[], str]] = {
        "training": lambda: training_table(options.training_epochs, options.steps),
        "record": lambda: record_table(options.epochs),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tables = [part() for name, part in parts.items() if name in options.only]
        os.chdir("/")
    text = "\n\n".join(["# What the record costs", *tables]) + "\n"
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
