"""The entry of the program, and what it tells of itself: doctor, schema."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import NoReturn

from rich.table import Table

from pipeline.cli.app import app
from pipeline.cli.showing import ERR, OUT, show_faults
from pipeline.errors import ExitCode, Fault, FaultError, Stopped
from pipeline.files import resource_error
from pipeline.signals import StopSignals


def main() -> NoReturn:
    """Runs a command and ends with its exit code; only a bug of ours shows a traceback."""
    # What libraries say to their programmers is no use to the people at the command line.
    warnings.simplefilter("ignore")
    try:
        with StopSignals():
            app(prog_name="clinseg")
    except FaultError as error:
        show_faults("error", error.faults)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        ERR.print(f"stopped; {stopped}" if stopped.args else "stopped")
        sys.exit(ExitCode.STOPPED)
    except MemoryError:
        show_faults("error", [Fault("memory", "out-of-memory", "it does not suffice; end other programs")])
        sys.exit(ExitCode.RESOURCES)
    except OSError as error:
        show_faults("error", resource_error(Path(error.filename or "disk"), error).faults)
        sys.exit(ExitCode.RESOURCES)
    sys.exit(ExitCode.DONE)


@app.command()
def doctor() -> None:
    """Show versions, device, memory, and what is missing."""
    from pipeline.workflows.doctor import doctor as diagnose

    diagnosis = diagnose()
    table = Table(box=None, show_header=False)
    for name, value in diagnosis.facts.items():
        table.add_row(name, value)
    OUT.print(table)
    for problem in diagnosis.problems:
        OUT.print(f"! {problem}")


@app.command(hidden=True)
def schema() -> None:
    """Print the JSON schema of a job, for editors; `configs/schema.json` is made with it."""
    import json

    from pipeline.config import job_schema

    print(json.dumps(job_schema(), indent=2))
