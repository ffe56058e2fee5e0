"""A job survives every way out and back."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import (
    SegmentationJob,
    job_from_mapping,
    job_parameters,
    job_to_mapping,
    job_to_yaml,
    load_job,
)
from pipeline.errors import ConfigError

MINIMAL = "data: {manifest: study/dataset.json}\ntraining:\n  epochs: 2\n"
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
jobs = st.builds(
    lambda labels, fold, features, rate, window, seed, experiment, uri: {
        "data": {
            "manifest": "/study/dataset.json",
            "labels": {name: value for value, name in enumerate(labels)},
            "fold": fold,
        },
        "preprocessing": {"normalisation": "window", "window": window},
        "network": {"features": features},
        "training": {"epochs": 1, "learning_rate": rate, "seed": seed},
        "tracking": {"experiment": experiment, "uri": uri},
    },
    st.lists(names, min_size=1, max_size=3, unique=True),
    st.integers(0, 10**25) | st.just("none"),
    st.lists(st.integers(1, 512), min_size=2, max_size=5),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2, unique=True).map(
        sorted
    ),
    st.integers(0, 2**31 - 1),
    names,
    st.none() | names,
)


@settings(max_examples=60)
@given(values=jobs)
def test_a_job_survives_every_way_out_and_back(tmp_path_factory, values):
    job = job_from_mapping(values)
    assert job_from_mapping(json.loads(json.dumps(job_to_mapping(job)))) == job
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(job_to_yaml(job), encoding="utf-8", newline="")
    assert load_job(path) == job


@pytest.mark.parametrize(
    "name",
    [
        *(
            "yes",
            "null",
            "~",
            "true",
            "1e-5",
            "010",
            "0x1F",
            "1_0",
            "12:30",
            "2024-01-01",
            "<<",
            ".inf",
            "-7",
        ),
        *("a: b", "#x", "*a", "&a", "!a", "5\n", " ", "\x85", "\u2028", "\ufeff", "\0", "x" * 200),
    ],
)
def test_text_that_looks_like_something_else_stays_text(load, name):
    job = job_from_mapping(
        {
            "data": {"manifest": "/m", "labels": {name: 0}},
            "training": {"epochs": 1},
            "inference": {"largest_component": [name]},
            "tracking": {"experiment": name},
        }
    )
    assert load(job_to_yaml(job)) == job


def test_a_written_config_is_complete_and_readable(load, tmp_path):
    text = job_to_yaml(load(MINIMAL + "  learning_rate: 1e-5"))
    assert f"  manifest: {tmp_path}/study/dataset.json\n" in text
    assert "  patch_size: [64, 64, 64]\n" in text
    assert "  learning_rate: 1.0e-05\n" in text
    assert list(job_to_mapping(load(MINIMAL))) == list(SegmentationJob.model_fields)


def test_faults_of_a_mapping_are_placed_at_their_keys():
    values = {"data": {"manifest": "m"}, "training": {"epochs": 0, "learning_rate": float("nan"), "lr": 1}}
    with pytest.raises(ConfigError) as caught:
        job_from_mapping(values)
    assert {fault.where for fault in caught.value.faults} == {
        "training.epochs",
        "training.learning_rate",
        "training.lr",
    }


@pytest.mark.parametrize("values", [None, 3, [], {}, {1: 2}, {"data": None, "training": []}])
def test_a_mapping_that_is_no_job_is_refused(values):
    with pytest.raises(ConfigError):
        job_from_mapping(values)


def test_parameters_are_flat_text(load):
    parameters = job_parameters(load(MINIMAL + "  learning_rate: 0.004", "data.labels={a: 0, é: 1}"))
    assert parameters["training.learning_rate"] == "0.004"
    assert parameters["training.patch_size"] == "[64, 64, 64]"
    assert parameters["training.minutes"] == "null"
    assert parameters["training.deterministic"] == "false"
    assert parameters["training.optimizer"] == "adamw"
    assert parameters["data.labels"] == '{"a": 0, "é": 1}'
    assert all(type(key) is str and type(value) is str for key, value in parameters.items())
