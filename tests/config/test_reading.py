"""What may stand in a config, and what it becomes."""

from pathlib import Path

import pytest

import pipeline.config as config

MINIMAL = "data: {manifest: study/dataset.json}\ntraining:\n  epochs: 2\n"


def test_a_minimal_job_has_defaults_and_absolute_paths(load, tmp_path):
    job = load(MINIMAL)
    assert job.data.manifest == tmp_path / "study/dataset.json"
    assert job.data.cache_dir == Path.home() / ".cache/clinseg"
    assert job.training.epochs == 2
    assert job.network == config.NetworkSection()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3", 3.0),
        ("7", 7.0),
        ("12345678901234567890", 12345678901234567890.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(load, text, value):
    rate = load(MINIMAL + f"  learning_rate: {text}\n").training.learning_rate
    assert rate == value
    assert type(rate) is float


@pytest.mark.parametrize(
    "text", ["yes", "No", "on", "2024-01-01", "010", "0o17", "0x1F", "1_000", "12:30", ".inf"]
)
def test_what_only_yaml_1_1_takes_for_something_else_is_text(load, text):
    assert load(MINIMAL + f"tracking: {{experiment: {text}}}").tracking.experiment == text


def test_lists_become_tuples_and_none_is_a_fold(load):
    job = load(
        "data: {manifest: m, fold: none, regions: {all: [1, 2]}}\n"
        "training: {epochs: 1, patch_size: [16, 16]}\n"
        "network: {dimensions: 2, features: [8, 24], strides: [[1, 1], [2, 2]]}\n"
    )
    assert job.data.fold == "none"
    assert job.data.regions == {"all": (1, 2)}
    assert job.network.features == (8, 24)
    assert job.network.strides == ((1, 1), (2, 2))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("best.safetensors", "best.safetensors"),
        ("../models/best.safetensors", "../models/best.safetensors"),
        ("models/best", "models/best"),
        ("/models/best", "/models/best"),
        ("latest", None),
        ("hippocampus-20261122-191500-3fa9", None),
        ("models:/liver@champion", None),
        ("models:/liver/3", None),
    ],
)
def test_a_model_to_start_from_is_a_path_from_the_file_or_a_name(load, tmp_path, text, path):
    job = load(MINIMAL + f"  start_from: {text}\n")
    assert job.training.start_from == (text if path is None else tmp_path / path)
    assert load(config.job_to_yaml(job)) == job == config.job_from_mapping(config.job_to_mapping(job))


def test_nothing_but_the_tilde_is_expanded(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load("data: {manifest: ~/m}\ntraining: {epochs: 1}").data.manifest == Path("/home/somebody/m")
    assert load("data: {manifest: $HOME/m}\ntraining: {epochs: 1}").data.manifest == tmp_path / "$HOME/m"


def test_a_byte_order_mark_and_windows_lines_do_not_matter(load, faults):
    assert load(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()) == load(MINIMAL)
    assert faults(b"\xef\xbb\xbfx: 1\r\n" + MINIMAL.encode())[0][0] == "1:1"
