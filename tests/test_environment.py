"""Versions are read without importing what they belong to, and name nobody."""

import getpass
import os
import platform
import re
import shutil
import socket
import subprocess
import sys

import numpy
import pytest

from pipeline.environment import code_version, environment


def test_versions_are_those_that_would_be_imported():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__
    assert {"torch", "monai", "mlflow", "clinseg", "platform"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())


def test_neither_host_nor_user_is_named():
    text = " ".join(environment().values()).split()
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from pipeline.environment import *; environment(); code_version();"
        "print({'torch', 'monai', 'numpy', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_of_torch_spin_briefly_unless_the_user_says_otherwise(own, told):
    names = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    code = f"import os, pipeline; print(*map(os.environ.get, {names}))"
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def test_the_command_line_sets_that_before_it_imports_torch():
    code = "import sys, pipeline.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_code_version_is_a_commit_or_nothing():
    version = code_version()
    assert version is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", version)


def test_without_git_there_is_no_code_version_and_no_fault(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_version() is None
