"""The command line: every command parses, calls one workflow, and `showing` prints what it returns.

A module per kind of command adds its own to `app`, in the order of the flow; `main` runs them and ends with
the exit code. Nothing heavy is imported before a command needs it, so that `clinseg --help` answers at once.
"""

# isort: off
from pipeline.cli.app import app
from pipeline.cli import training, applying, judging, records, papers, exchanging, images
from pipeline.cli.main import main
# isort: on

__all__ = ["app", "applying", "exchanging", "images", "judging", "main", "papers", "records", "training"]
