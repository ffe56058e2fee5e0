"""With what a result was made: code, libraries and machine, read without importing any of them."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pipeline

_LIBRARIES = ("torch", "monai", "numpy", "scipy", "nibabel", "pydicom", "itk-core", "safetensors", "mlflow")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_GIT_TIMEOUT_S = 10.0


def environment() -> dict[str, str]:
    """Versions by name, such as `{"python": "3.11.7", "torch": "2.13.0", ...}`; what is absent is left out.

    Neither the host's nor the user's name is among them.
    """
    found = {
        "clinseg": pipeline.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
    }
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if _NVIDIA_DRIVER.is_file():
        found["nvidia-driver"] = _NVIDIA_DRIVER.read_text(encoding="utf-8").partition("\n")[0].strip()
    return found


def command_line() -> str:
    """The command that this process was started with, to be typed again in the same folder."""
    return shlex.join(["clinseg", *sys.argv[1:]])


def code_version() -> str | None:
    """The git commit of this code, with `-dirty` behind it if files were changed since; None without git.

    An installed copy that merely lies inside somebody's repository (as `.venv` does) has no commit.
    """
    git, source = shutil.which("git"), Path(__file__)
    if git is None or _git(git, source, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(git, source, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(git: str, source: Path, *arguments: str) -> str | None:
    command = [git, "-C", str(source.parent), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
