"""A trained model for whoever needs one, and the command line without a new process for each call."""

import contextlib
import io
import os
import sqlite3
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Two workers share two cores; said before torch is imported, and heard by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline import cli
from pipeline.data.synthetic import write_phantom_study

ROOT = Path(__file__).parents[1]
settings.register_profile("any machine", deadline=None)  # a loaded one takes longer
settings.load_profile("any machine")
_ending = {}


# Begun last, one of these would be at work alone while the other worker has nothing to do.
_FIRST = (
    "test_serving.py",
    "test_exporting.py",
    "test_trouble.py",
    "test_resume.py",
    "test_distributed.py",
    "test_conformance.py",
    "test_cross_validation.py",
    "test_mlflow_pages.py",
    "test_cohort.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Puts the files that take longest first, then others with slow tests; what is quick fills the gaps."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        name = item.path.name
        return _FIRST.index(name) if name in _FIRST else len(_FIRST) + (item.path not in slow)

    items.sort(key=place)


def pytest_sessionfinish(exitstatus):
    _ending["status"] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    """Ends the process without tearing down its extension modules.

    After a whole run, with 249 of them loaded, one (ITK, it seems) crashes in the teardown: no Python frame
    is left by then and all results are told, but the exit status would be that of the crash. Commands that
    read DICOM end soundly; `test_end_to_end` runs one in a process of its own.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "status" in _ending and "PYTEST_XDIST_WORKER" not in os.environ:  # a worker's status is not asked for
        os._exit(_ending["status"])


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


def _run(*arguments):
    """The exit code of a command line, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clinseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
    return int(ending.value.code or 0)


@pytest.fixture
def clinseg(capsys, quick_databases):
    """Runs the command line as the shell would, in this process: `clinseg("predict", …) -> Answer`."""

    def run(*arguments):
        capsys.readouterr()
        answer = Answer(_run(*arguments), *capsys.readouterr())
        assert "Traceback" not in answer.err
        return answer

    return run


@pytest.fixture(scope="session")
def clinseg_in(quick_databases):
    """The same for fixtures that outlive a test: `clinseg_in(folder, "train", …)` gives what it printed."""

    def run(folder, *arguments):
        out = io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out):
            assert _run(*arguments) == 0
        return out.getvalue()

    return run


@pytest.fixture(scope="session")
def quick_databases(tmp_path_factory):
    """MLflow walks through all its versions to make a database, for seconds: the second one is a copy."""
    import mlflow.store.db.utils as mlflow_database

    first, make = tmp_path_factory.mktemp("database") / "first.db", mlflow_database._initialize_tables

    def copy_or_make(engine):
        if engine.dialect.name != "sqlite" or not first.exists():
            make(engine)
        if engine.dialect.name == "sqlite":
            ours = first, Path(engine.url.database)
            source, target = ours if first.exists() else reversed(ours)
            with (
                contextlib.closing(sqlite3.connect(source)) as here,
                contextlib.closing(sqlite3.connect(target)) as there,
            ):
                here.backup(there)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_database, "_initialize_tables", copy_or_make)
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory, quick_databases) -> Path:
    """MLflow's database with nothing in it, to be copied."""
    from pipeline.tracking.store import connect

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@dataclass(frozen=True)
class Trained:
    """A phantom study, the folder in which a model was trained on it, and that run."""

    manifest: Path
    folder: Path
    run: Path

    @property
    def model(self):
        return self.run / "checkpoints/best.safetensors"


@pytest.fixture(scope="session")
def trained(tmp_path_factory, clinseg_in):
    """A small network, trained for seconds on phantoms."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = write_phantom_study(folder / "study", num_cases=5)
    settings = {
        "data.manifest": manifest,
        "data.cache_dir": folder / "cache",
        "data.terminology": '{core: {code: "52988006", meaning: Lesion, colour: "#112233"}}',
        "training.epochs": 3,
        "training.steps_per_epoch": 20,
        "training.validate_every": 1,
        "training.learning_rate": 0.02,
        "network.features": "[8, 16]",
        "tracking.overlays": 1,
    }
    config = ROOT / "configs/smoke/hippocampus.yaml"
    clinseg_in(folder, "train", config, *(f"--set={name}={value}" for name, value in settings.items()))
    (run,) = (folder / "mlruns/runs").iterdir()
    return Trained(manifest, folder, run)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB."""
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
