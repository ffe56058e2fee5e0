"""What is told where `torch.compile` cannot do its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigError, Fault


@contextmanager
def compiler_faults(where: str, remedy: str) -> Iterator[None]:
    """Round the first call of what is compiled.

    Args:
        where: The setting or option that asked for it.
        remedy: What to do instead of installing a compiler.

    Raises:
        ConfigError: If it cannot be compiled.
    """
    try:
        yield
    except Exception as error:  # of a kind that has to be imported first, which takes every command a second
        from torch._dynamo.exc import BackendCompilerFailed  # noqa: PLC0415 - see above

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = " ".join(str(error).partition("\n\n")[0].split())  # torch's advice comes after it
        message = f"{reason}; install a C++ compiler (g++) and Python's headers, or {remedy}"
        raise ConfigError(Fault(where, "cannot-compile", message)) from error
