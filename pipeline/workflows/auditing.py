"""Every prediction leaves a line in the log of its folder; `clinseg audit verify` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.environment import code_version
from pipeline.errors import Fault
from pipeline.export.audit import NAME, Audit, append_entry, read_head, verify


class AuditLog:
    """The log of a folder.

    It lies with the results, not with the runs: it has to be where they are, also where nobody trained.

    Args:
        folder: Where results go.
        about: By what they are made, as `describe_model` tells it.

    Raises:
        ConfigError: If a log is there that is no chain.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._path = folder / NAME
        self._about = {
            "model": about["model_sha256"],
            "config": about["config_sha256"],
            "run": about["run"],
            "code": " ".join(filter(None, (about["environment"].get("clinseg"), code_version()))),
        }
        self.head = read_head(self._path)

    def add(
        self,
        case: str,
        inputs: Sequence[str],
        outputs: Mapping[str, str],
        faults: Sequence[Fault],
        **more: object,
    ) -> None:
        """Appends a case: hashes of what it was made from and of the files made, or why there are none."""
        entry = {
            "case": case,
            **self._about,
            "inputs": list(inputs),
            "outputs": dict(outputs),
            "faults": [fault.rule for fault in faults],
            **more,
        }
        self.head = append_entry(self._path, entry)


def verify_log(path: Path, head: str | None = None) -> Audit:
    """Whether a log, or the one in a folder, is what was written; see `verify`.

    Raises:
        FaultError: With everything that is not.
    """
    return verify(path / NAME if path.is_dir() else path, head)
