"""A registered model answers what `predict` and `enhance` write, loaded by MLflow or asked over HTTP."""

import base64
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pipeline.data.images import read_image
from pipeline.errors import InputError
from pipeline.inference.class_table import read_class_table
from pipeline.tracking.store import connect
from pipeline.workflows.applying.served_rows import case_of_row, example_row

CONFIGS = Path(__file__).parents[2] / "configs/smoke"
COS, SIN = np.cos(0.1), np.sin(0.1)  # an oblique scan
AFFINE = np.array([[-1.5 * COS, -2 * SIN, 0, 10], [-1.5 * SIN, 2 * COS, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def _case(row, folder, num_channels=1, number=0):
    return case_of_row(row, number, num_channels, folder, classes=False)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32, np.int64, np.bool_])
def test_an_array_keeps_its_values_and_its_place(tmp_path, kind):
    array = (np.arange(60).reshape(3, 4, 5) % 2 if kind == np.bool_ else np.arange(60)).reshape(3, 4, 5)
    array = array.astype(kind)
    (volume,) = read_image(_case({"array": array, "affine": AFFINE}, tmp_path).images[0])
    assert np.array_equal(volume.array, array)
    assert np.allclose(volume.grid.affine, AFFINE, atol=1e-6)


def test_channels_stand_first_in_an_array_and_lists_will_do(tmp_path):
    array = np.random.default_rng(0).integers(-5000, 70000, (2, 3, 4, 5))
    row = {"array": array.tolist(), "affine": AFFINE.tolist()}
    volumes = read_image(_case(row, tmp_path, num_channels=2).images[0])
    assert np.array_equal([volume.array for volume in volumes], array)


def test_a_file_is_known_by_what_it_begins_with(tmp_path):
    plain = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE).to_bytes()
    for number, content in enumerate((plain, gzip.compress(plain))):
        (volume,) = read_image(_case({"image": content}, tmp_path, number=number).images[0])
        assert volume.array.shape == (3, 4, 5)
    (volume,) = read_image(_case(example_row(), tmp_path, number=2).images[0])
    assert volume.array.max() == 16**3 - 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "not none"),
        ({"path": "a.nii", "image": b"x"}, "not path and image"),
        ({"path": float("nan"), "image": None}, "not none"),
        ({"path": "absent.nii"}, "missing-file"),
        ({"array": np.zeros((3, 4, 5))}, "affine"),
        ({"array": np.zeros((3, 4)), "affine": np.eye(4)}, "row-array"),
        ({"array": [[[1], [2, 3]]], "affine": np.eye(4)}, "row-array"),
        ({"array": [[["a"]]], "affine": np.eye(4)}, "row-array"),
        ({"array": np.zeros((3, 4, 5)), "affine": np.eye(3)}, "row-array"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        _case(row, tmp_path)


def test_a_row_is_one_case(tmp_path):
    for name in "a.nii", "b.nii":
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), AFFINE), tmp_path / name)
    with pytest.raises(InputError, match="2 cases, and a row is one"):
        _case({"path": str(tmp_path)}, tmp_path)


def _address(folder):
    return f"sqlite:///{folder}/mlruns/mlflow.db"


def _load(folder, name):
    """The first version of a model, by its place: MLflow's own tracking URI holds for a whole process."""
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(connect(_address(folder)).get_model_version(name, "1").source)


def _as_image(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def _is_same(content, path):
    found, expected = _as_image(content), nib.load(path)
    same_voxels = np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    return same_voxels and np.array_equal(found.affine, expected.affine)


@pytest.fixture(scope="module")
def registered(trained, clinseg_in):
    """The folder of a trained segmentation, registered as `phantom` twice, and the masks of `predict`."""
    folder, images = trained.folder, trained.manifest.parent / "imagesTr"
    first = clinseg_in(folder, "register", "latest", "phantom", "--alias", "champion")
    again = clinseg_in(folder, "register", "latest", "phantom", "--alias", "spare")
    masks = folder / "masks"
    clinseg_in(folder, "predict", "models:/phantom@champion", images, "-o", masks)
    return trained, first, again, clinseg_in(folder, "models"), sorted(images.iterdir()), masks


@pytest.mark.slow
def test_a_model_has_versions_aliases_and_a_score(registered):
    trained, first, again, table, _, masks = registered
    assert f"{trained.run.name} is now version 1 of phantom" in first
    assert "mlflow models serve --env-manager local" in first
    assert "was already version 1 of phantom" in again
    (line,) = (line for line in table.splitlines() if trained.run.name in line)
    assert line.split()[:4] == ["phantom", "1", "champion,", "spare"]
    assert "segmentation" in line and "dice/mean 0." in line
    report = json.loads((masks / "report.json").read_text())
    assert report["run"] == trained.run.name

    client = connect(_address(trained.folder))
    version = client.get_model_version_by_alias("phantom", "champion")
    folder = Path(version.source.removeprefix("file://"))
    model = client.get_logged_model(folder.parent.name)
    assert (model.source_run_id, str(model.status)) == (version.run_id, "READY")
    stored = folder / "data/best.safetensors"
    assert stored.read_bytes() == trained.model.read_bytes()
    # Nothing that could run: no pickle and no code, only our file and MLflow's descriptions.
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    described = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
    assert names - {"input_example.json", "serving_input_example.json"} == {
        *described,
        "data/best.safetensors",
    }


@pytest.mark.slow
def test_mlflow_loads_it_and_it_answers_as_predict_does(registered):
    trained, *_, images, masks = registered
    model = _load(trained.folder, "phantom")
    answers = model.predict([{"path": str(path)} for path in images])
    report = json.loads((masks / "report.json").read_text())
    for path, answer, entry in zip(images, answers, report["cases"], strict=True):
        assert answer["mask"] == (masks / path.name).read_bytes()
        assert (answer["volumes_ml"], answer["faults"]) == (entry["volumes_ml"], [])
    image = nib.load(images[0])
    (answer,) = model.predict([{"array": np.asanyarray(image.dataobj), "affine": image.affine}])
    assert _is_same(answer["mask"], masks / images[0].name)
    assert model.predict(model.input_example)[0]["faults"] == []
    assert [field.name for field in model.metadata.signature.outputs][:2] == ["mask", "volumes_ml"]


def _serve(folder, reference, log):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = Path(sys.executable).parent / "mlflow"
    settings = {"MLFLOW_TRACKING_URI": _address(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
    settings["PATH"] = f"{program.parent}:{os.environ['PATH']}"  # as in an active environment
    command = [program, "models", "serve", "--env-manager", "local", "-p", str(port), "-m", reference]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
    )
    return f"http://127.0.0.1:{port}", process


def _wait_for(address, process):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=30):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail("the model's server did not come up")


def _ask(address, rows):
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["predictions"]


@pytest.mark.slow
def test_a_served_model_answers_requests_with_the_masks_of_predict(registered, tmp_path):
    trained, *_, images, masks = registered
    with (tmp_path / "log").open("wb") as log:
        address, process = _serve(trained.folder, "models:/phantom@champion", log)
        try:
            _wait_for(address, process)
            rows = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in images]
            for path, answer in zip(images, _ask(address, rows), strict=True):
                assert base64.b64decode(answer["mask"]) == (masks / path.name).read_bytes()
            image = nib.load(images[1])
            row = {"array": np.asanyarray(image.dataobj).tolist(), "affine": image.affine.tolist()}
            (answer,) = _ask(address, [row])
            assert _is_same(base64.b64decode(answer["mask"]), masks / images[1].name)
            # One broken row costs only itself, and is named by its number.
            good, bad = _ask(address, [{"path": str(images[0])}, {"path": "/absent.nii.gz"}])
            assert good["mask"] and "mask" not in bad and "missing-file" in bad["faults"][0]
            (bad,) = _ask(address, [{"image": base64.b64encode(images[0].read_bytes()[:-9]).decode()}])
            assert bad["faults"][0].startswith("row-0.nii.gz: ")
            with pytest.raises(urllib.error.HTTPError) as refused:
                _ask(address, [{"paht": str(images[0])}])
            assert "one of path, image, array, affine" in refused.value.read().decode()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.mark.slow
def test_a_classifier_answers_with_the_probabilities_of_predict(clinseg, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(16):
        kind = "disc" if number % 2 else "ring"
        picture = generator.integers(0, 90, (16, 16)).astype(np.uint8)
        picture[4:12, 4:12] += 120
        picture[6:10, 6:10] -= 100 * (kind == "ring")
        (tmp_path / "study" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "study" / kind / f"{number:02d}.png")
    job = {"data.manifest": "study", "preprocessing.size": "[16, 16]", "network.features": "[4, 8]"}
    job |= {
        "training.epochs": 1,
        "training.steps_per_epoch": 4,
        "training.batch_size": 4,
        "data.classes": "[disc, ring]",
        "data.split": "new",
    }
    arguments = [part for setting in job.items() for part in ("--set", "{}={}".format(*setting))]
    answer = clinseg("train", CONFIGS / "pneumonia.yaml", *arguments)
    assert answer.code == 0, answer.err
    assert clinseg("register", "latest", "shapes", "--alias", "champion").code == 0
    assert clinseg("predict", "models:/shapes@champion", "study", "-o", "out").code == 0
    table = read_class_table(tmp_path / "out/predictions.csv")
    model = _load(tmp_path, "shapes")
    pictures = sorted((tmp_path / "study").rglob("*.png"))
    rows = [{"path": str(path)} for path in pictures[:8]]
    (again,) = model.predict([{"image": pictures[0].read_bytes()}])
    answers = model.predict(rows)
    assert again["predicted"] == answers[0]["predicted"]
    assert again["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    for path, answer in zip(pictures, answers, strict=False):
        assert list(answer["probabilities"].values()) == pytest.approx(
            _probabilities(table, path.stem), abs=1e-6
        )


def _probabilities(table, case):
    return [float(value) for value in table.probabilities[table.cases.index(case)]]


@pytest.mark.slow
def test_an_enhancer_answers_with_the_images_of_enhance(clinseg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    place = np.indices((18, 18, 18))
    for number in range(6):
        values = 300 + 100 * np.sin(place[0] / 3 + number) + 20 * place[2]
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([1, 1.5, 2, 1]))
        nib.save(image, tmp_path / f"images/p{number}.nii.gz")
    settings = ["--set", "data.manifest=images", "--set", "training.epochs=1"]
    answer = clinseg("train", CONFIGS / "enhancement.yaml", *settings)
    assert answer.code == 0, answer.err
    assert clinseg("register", "latest", "clear").code == 0
    assert "psnr_after" in clinseg("models").out
    assert clinseg("enhance", "models:/clear/1", "images", "-o", "out").code == 0
    model = _load(tmp_path, "clear")
    (answer,) = model.predict([{"path": str(tmp_path / "images/p0.nii.gz")}])
    (image,) = answer["images"]
    assert image == (tmp_path / "out/p0.nii.gz").read_bytes()
    assert answer["faults"] == [] and answer["mean_change"] >= 0


def test_a_name_that_cannot_be_one_and_a_run_that_is_not_delivered_are_refused(
    clinseg, trained, tmp_path, monkeypatch
):
    import shutil

    store = tmp_path / "mlruns"
    shutil.copytree(trained.folder / "mlruns/runs", store / "runs")
    monkeypatch.chdir(tmp_path)
    for name in "a/b", "a:b", "a@b", "", "-a":
        answer = (
            clinseg("register", "latest", "--", name) if name == "-a" else clinseg("register", "latest", name)
        )
        assert answer.code == 2 and "a model's name has" in answer.err
    for alias in "a/b", "latest", "v3", "":
        answer = clinseg("register", "latest", "phantom", "--alias", alias)
        assert answer.code == 2 and "an alias has" in answer.err
    (store / "runs" / trained.run.name / "delivery.json").unlink()
    answer = clinseg("register", "latest", "phantom")
    assert answer.code == 2 and f"clinseg sync {trained.run.name}" in answer.err
    answer = clinseg("models")
    assert answer.code == 0 and "clinseg register" in answer.out
