"""The command line answers at once and says what it can do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.cli import app
from pipeline.cli.showing import OUT, show_table

ROOT = Path(__file__).parents[1]


def cpu_seconds(*arguments):
    """Least processor time of some tries: other programs on the machine do not count."""
    spent = []
    for _ in range(4):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return min(spent)


def test_help_takes_half_a_second_at_most():
    assert cpu_seconds("-m", "pipeline", "--help") - cpu_seconds("-c", "pass") < 0.5


def test_nothing_heavy_is_imported_at_start():
    heavy = ("torch", "monai", "mlflow", "numpy")
    code = f"import sys, pipeline.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_every_command_says_what_it_does(clinseg):
    answer = clinseg("--help")
    assert answer.code == 0
    for command in app.registered_commands:
        assert command.callback.__doc__
        if not command.hidden:
            assert command.callback.__name__.replace("_", "-") in answer.out


def test_doctor_names_versions_device_and_store(clinseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = clinseg("doctor")
    assert answer.code == 0
    for word in ("torch", "monai", "device", "memory", "store", str(tmp_path)):
        assert word in answer.out


@pytest.mark.skipif(os.cpu_count() == 1, reason="one thread waits for no other")
def test_doctor_tells_of_programs_that_keep_the_cores_busy(tmp_path):
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        command = [sys.executable, "-m", "pipeline", "doctor"]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert "OMP_NUM_THREADS=1" in done.stdout


def test_runs_in_an_empty_folder_says_how_to_begin(clinseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "clinseg train" in clinseg("runs").out


def test_the_committed_schema_is_the_one_that_is_printed(clinseg):
    assert json.loads(clinseg("schema").out) == json.loads((ROOT / "configs/schema.json").read_text())


def test_names_are_shown_as_they_are_whatever_brackets_they_have(clinseg, tmp_path, capsys):
    name = "x [/b] [final] :a:"
    for folder in ("masks", "references"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / folder / "a.nii.gz")
    (tmp_path / "masks/report.json").write_text(json.dumps({"labels": {name: 1}}))
    answer = clinseg("evaluate", tmp_path / "masks", tmp_path / "references")
    assert answer.code == 0 and name in answer.out
    OUT.print(f"It lies in {name}")
    show_table(name, [name], [[name]])
    assert capsys.readouterr().out.count(name) == 4
