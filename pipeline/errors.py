"""What can be wrong, said so that a person can act on it.

Everything this project refuses is a `Fault`; a `FaultError` carries all the faults found together. Its
`exit_code` is what the command line ends with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    BUG = 1
    USAGE = 2
    INPUT_REFUSED = 3
    RESOURCES = 4
    SERVICE = 5
    INTEGRITY = 6
    STOPPED = 75


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        where: Case, file, `file:line:column` or argument.
        rule: Short stable name of the rule that is broken, such as `affine-mismatch`.
        message: What was expected, what came, and what to do.
    """

    where: str
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


class FaultError(ValueError):
    """Something a person can mend; carries every fault found, not only the first.

    Attributes:
        faults: The faults, in the order in which they were found; never empty.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, faults: Fault | Iterable[Fault]) -> None:
        self.faults = (faults,) if isinstance(faults, Fault) else tuple(faults)
        assert self.faults, "an error without a fault tells nobody anything"
        super().__init__("\n".join(str(fault) for fault in self.faults))


class ConfigError(FaultError):
    """A config file, an override or an argument is wrong."""


class InputError(FaultError):
    """Images, labels or other data were refused."""

    exit_code = ExitCode.INPUT_REFUSED


class ResourceError(FaultError):
    """Memory, disk or a permission is missing."""

    exit_code = ExitCode.RESOURCES


class ServiceError(FaultError):
    """An external service (tracking server, PACS) failed or is out of reach."""

    exit_code = ExitCode.SERVICE


class IntegrityError(FaultError):
    """A file is not what its hash says it was."""

    exit_code = ExitCode.INTEGRITY


class Stopped(BaseException):
    """SIGTERM or SIGINT was received and the work so far is saved.

    Like `KeyboardInterrupt` no `Exception`, so that nobody's `except Exception` takes it for an error.
    """
