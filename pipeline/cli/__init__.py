"""The command line: `commands` parses, calls one workflow and ends with its exit code; `showing` prints.

Nothing heavy is imported before a command needs it, so that `clinseg --help` answers at once.
"""

from pipeline.cli.commands import app, main

__all__ = ["app", "main"]
