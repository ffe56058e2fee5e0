"""Checkpoints come back from MLflow byte by byte, or the message says why not."""

import pytest

from pipeline.errors import ConfigError, ServiceError
from pipeline.tracking import fetch_model, start_record

WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def run_id(store):
    """MLflow's id of a run with a checkpoint in `model/`."""
    return _recorded({"best.safetensors": WEIGHTS, "last.safetensors": b"last"})


def _recorded(files):
    record = start_record("models", None, "segmentation")
    for name, content in files.items():
        (record.folder / name).write_bytes(content)
        record.log_artifact(record.folder / name, "model")
    delivery = record.close("FINISHED")
    assert delivery.is_complete
    return delivery.run_id


def _register(client, source, name="hippo"):
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, source=source).version
    client.set_registered_model_alias(name, "production", version)
    return version


def test_a_registered_model_is_found_by_alias_and_by_version(client, run_id, store):
    folder = f"{client.get_run(run_id).info.artifact_uri}/model"
    version = _register(client, folder)
    for reference in ("models:/hippo@production", f"models:/hippo/{version}", run_id):
        path = fetch_model(reference)
        assert (path.name, path.read_bytes()) == ("best.safetensors", WEIGHTS)
        assert path.is_relative_to(store / "models")
        assert [p.name for p in path.parent.iterdir()] == ["best.safetensors"]


def test_an_alias_that_moved_gives_the_new_model(client, run_id):
    _register(client, f"{client.get_run(run_id).info.artifact_uri}/model")
    assert fetch_model("models:/hippo@production").read_bytes() == WEIGHTS
    single = _recorded({"ema.safetensors": b"ema"})
    _register(client, f"{client.get_run(single).info.artifact_uri}/model")
    assert fetch_model("models:/hippo@production").read_bytes() == b"ema"
    assert fetch_model("models:/hippo/1").read_bytes() == WEIGHTS


def test_a_model_registered_as_the_file_itself_is_found(client, run_id):
    _register(client, f"{client.get_run(run_id).info.artifact_uri}/model/last.safetensors")
    assert fetch_model("models:/hippo@production").read_bytes() == b"last"


@pytest.mark.parametrize(
    "reference",
    ["models:/absent@production", "models:/absent/1", "models:/hippo@absent", "models:/hippo/9", "0" * 32],
)
def test_what_is_absent_is_a_fault_of_the_caller(client, run_id, reference):
    _register(client, f"{client.get_run(run_id).info.artifact_uri}/model")
    with pytest.raises(ConfigError, match="no such model"):
        fetch_model(reference)


@pytest.mark.parametrize(
    "reference", ["models:/hippo", "hippo", "models:/a/b/1", "models:/../x@y", "runs:/x"]
)
def test_what_is_no_reference_is_refused(store, reference):
    with pytest.raises(ConfigError, match="expected models:/"):
        fetch_model(reference)


@pytest.mark.parametrize("files", [{}, {"a.pt": b""}, {"a.safetensors": b"", "b.safetensors": b""}])
def test_a_run_without_one_clear_checkpoint_is_refused(store, files):
    with pytest.raises(ConfigError, match="one single"):
        fetch_model(_recorded(files))


def test_a_server_that_is_down_is_a_fault_of_the_service(store):
    with pytest.raises(ServiceError, match="out of reach"):
        fetch_model("models:/hippo@production", uri="http://127.0.0.1:9")
