"""What is said about everything that may not stand in a config, and where."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_job
from pipeline.errors import ConfigError, Fault

MINIMAL = "data: {manifest: study/dataset.json}\ntraining:\n  epochs: 2\n"


@pytest.mark.parametrize(
    ("lines", "where", "rule", "says"),
    [
        ("  epoch: 3", "4:3", "unknown-key", "did you mean `training.epochs`?"),
        ("epochs: 3", "4:1", "unknown-key", "did you mean `training.epochs`?"),
        ("'training.epochs': 3", "4:1", "unknown-key", "did you mean `training.epochs`?"),
        ("inference: {patch_size: [8, 8, 8]}", "4:13", "unknown-key", "did you mean `training.patch_size`?"),
        ("  overlap: 0.3", "4:3", "unknown-key", "did you mean `inference.overlap`?"),
        ("  Learning-Rate: 1", "4:3", "unknown-key", "did you mean `training.learning_rate`?"),
        ("batchsize: 3", "4:1", "unknown-key", "`training.batch_size` or `inference.batch_size`?"),
        ("tracking: {zzz: 1}", "4:12", "unknown-key", "tracking takes experiment, uri, overlays"),
        ("  batch_size: yes", "4:3", "wrong-value", "expected a whole number, got the text 'yes'"),
        ("  batch_size: true", "4:3", "wrong-value", "expected a whole number, got true"),
        ("  batch_size: 2.0", "4:3", "wrong-value", "expected a whole number, got 2.0"),
        ("  batch_size: 0", "4:3", "wrong-value", "expected a number of at least 1, got 0"),
        ("  batch_size: {a: 1}", "4:3", "wrong-value", "expected a whole number, got a mapping"),
        ("  momentum: 1", "4:3", "wrong-value", "expected a number below 1.0, got 1"),
        ("  learning_rate: true", "4:3", "wrong-value", "expected a number, got true"),
        ("  learning_rate: .nan", "4:3", "wrong-value", "expected a number, got the text '.nan'"),
        ("  learning_rate: 1e999", "4:3", "wrong-value", "expected a finite number, got inf"),
        ("augmentation: {blur_sigma: [-1e999, 1]}", "4:29", "wrong-value", "expected a finite number"),
        ("  deterministic: on", "4:3", "wrong-value", "expected true or false, got the text 'on'"),
        ("  start_from: 3", "4:3", "wrong-value", "expected the path of a file or folder or text"),
        ("  start_from: ''", "4:3", "wrong-value", "expected the path of a file or folder"),
        ("  depth_decay: 0", "4:3", "wrong-value", "expected a number above 0.0, got 0"),
        ("  device: gpu", "4:3", "wrong-value", "expected 'auto', 'cpu' or 'cuda', got the text 'gpu'"),
        (
            "  patch_size: [64, 8, x]",
            "4:23",
            "wrong-value",
            "`training.patch_size[2]`: expected a whole number",
        ),
        ("  patch_size: [64]", "4:3", "wrong-value", "a list of at least 2 value(s), got a list of 1"),
        ("  patch_size:\n  - 64\n  - 1.5", "6:5", "wrong-value", "`training.patch_size[1]`"),
        ("preprocessing: {spacing: [1, 1]}", "4:17", "missing-key", "`preprocessing.spacing[2]`"),
        ("preprocessing: {window: [1, 2, 3]}", "4:17", "wrong-value", "a list of at most 2 value(s)"),
        ("preprocessing:", "4:1", "wrong-value", "expected a section of `key: value` lines, got nothing"),
        ("tracking: {experiment: 2024}", "4:12", "wrong-value", "text (in quotes if it looks like something"),
        ("tracking: {experiment: ''}", "4:12", "wrong-value", "text of at least 1 character(s)"),
        ("network: {features: 8}", "4:11", "wrong-value", "expected a list, got 8"),
    ],
)
def test_a_wrong_line_is_named_with_its_place(faults, lines, where, rule, says):
    [(found_where, found_rule, message)] = faults(MINIMAL + lines)
    assert (found_where, found_rule) == (where, rule)
    assert says in message


def test_all_members_of_a_choice_are_named(faults):
    assert faults("data: {manifest: m, fold: -1}\ntraining: {epochs: 1}") == [
        ("1:21", "wrong-value", "`data.fold`: expected a number of at least 0 or 'all' or 'none', got -1")
    ]


def test_a_missing_key_is_placed_at_its_section(faults):
    [training, manifest] = faults("\ndata:\n  fold: 1\n")
    assert training[:2] == ("1:1", "missing-key")
    assert manifest[:2] == ("2:1", "missing-key")
    assert "`data.manifest`" in manifest[2]
    assert "dataset.json" in manifest[2]


@pytest.mark.parametrize(
    ("lines", "where", "key"),
    [
        ("  minutes: 3\n  deterministic: true", "5:3", "training.deterministic"),
        ("preprocessing:\n  normalisation: window", "4:1", "preprocessing.window"),
        ("preprocessing:\n  normalisation: window\n  window: [2, 2]", "6:3", "preprocessing.window"),
        ("network: {dimensions: 2}", "2:1", "training.patch_size"),
        ("  patch_size: [30, 32, 32]", "4:3", "training.patch_size"),
        ("augmentation: {mirror_axes: [3]}", "4:16", "augmentation.mirror_axes"),
        ("augmentation: {mirror_axes: [0, 0]}", "4:16", "augmentation.mirror_axes"),
        ("inference: {flips: true}", "4:13", "inference.flips"),
        ("augmentation: {in_plane: true}", "4:16", "augmentation.in_plane"),
        (
            "augmentation: {in_plane: true}\npreprocessing: {spacing: [1, 3, 3]}",
            "4:16",
            "augmentation.in_plane",
        ),
        ("augmentation: {elastic_distance: [0.01, 0.4]}", "4:16", "augmentation.elastic_distance"),
        ("network: {kernels: [[3, 3, 3]]}", "4:11", "network.kernels"),
        ("network: {features: [8, 8], strides: [[2,2,2],[2,2,2]]}", "4:29", "network.strides"),
        (
            "  patch_size: [1, 1, 1]\nnetwork: {features: [8, 8], strides: [[1, 1, 1], [1, 1, 1]]}",
            "4:3",
            "training.patch_size",
        ),
        ("  freeze_encoder: 0.5", "4:3", "training.freeze_encoder"),
        ("  start_from: latest\n  gradual_unfreezing: true", "5:3", "training.gradual_unfreezing"),
    ],
)
def test_a_contradiction_is_placed_at_the_key_it_names(faults, lines, where, key):
    [(found, rule, message)] = faults(MINIMAL + lines)
    assert (found, rule) == (where, "contradiction")
    assert message.startswith(f"`{key}`: ")


def test_all_faults_are_reported_together_from_top_to_bottom(faults):
    found = faults(
        "data: {manifst: x}\n"
        "training:\n"
        "  epoch: 3\n"
        "  batch_size: many\n"
        "network:\n"
        "  features: [8, eight]\n"
        "  dropout: 2\n"
        "epochs: 3\n",
        "training.seed=x",
        "nonsense",
    )
    assert [where for where, *_ in found] == [
        "--set nonsense",
        "1:1",
        "1:8",
        "3:3",
        "4:3",
        "6:17",
        "7:3",
        "8:1",
        "--set training.seed=x",
    ]


@pytest.mark.parametrize(
    ("text", "where", "rule"),
    [
        ("x: &a [1]", "4:4", "yaml-anchor"),
        ("x: &a 1\ny: *a", "5:4", "yaml-alias"),
        ("  minutes: *a", "4:12", "yaml-alias"),
        ("x: !!python/object/apply:os.system [touch /tmp/owned]", "4:4", "yaml-tag"),
        ("x: !!float 3", "4:4", "yaml-tag"),
        ("x: !mine 3", "4:4", "yaml-tag"),
        ("!!str x: 3", "4:1", "yaml-tag"),
        ("<<: {task: x}", "4:1", "yaml-merge"),
        ("training: {epochs: 3}", "4:1", "duplicate-key"),
        ("  epochs: 3", "4:3", "duplicate-key"),
        ("---\nx: 1", "4:1", "several-documents"),
        ("[a]: 1", "4:1", "yaml-key"),
        ("? {a: 1}\n: 1", "4:3", "yaml-key"),
        ("*a : 1", "4:1", "yaml-key"),
        ("x: [1", "4:6", "yaml-syntax"),
        ("x: 'a", "4:6", "yaml-syntax"),
        ("\tx: 1", "4:1", "yaml-syntax"),
        ("x: a\0b", "4:5", "yaml-syntax"),
        ('x: "\\uD800"', "4:4", "yaml-character"),
        ('x: "\\UFFFFFFFF"', "1:1", "yaml-syntax"),
        ('x: "\\U00110000"', "1:1", "yaml-syntax"),
        ("x: " + "[" * 40 + "]" * 40, "4:43", "too-deep"),
        ("x: " + "[" * 100_000, "4:43", "too-deep"),
        ("x: " + "{a: " * 100_000, "4:160", "too-deep"),
        ("x: " + "- " * 100_000, "4:4", "yaml-syntax"),
        ("x: [" + "1, " * 10_000 + "]", "4:29987", "too-large"),
    ],
)
def test_dangerous_and_ambiguous_yaml_is_refused(faults, text, where, rule):
    assert (where, rule) in [(w, r) for w, r, _ in faults(MINIMAL + text)]


def test_forty_levels_are_not_too_deep(faults):
    assert [rule for _, rule, _ in faults(MINIMAL + "x: " + "[" * 39 + "]" * 39)] == ["unknown-key"]


def test_a_refused_value_is_not_judged_twice(faults):
    found = faults("data: {manifest: *m}\ntraining: {epochs: !!int many, minutes: x}\n<<: *m")
    assert [rule for _, rule, _ in found] == [
        "yaml-alias",
        "yaml-tag",
        "yaml-merge",
        "yaml-alias",
        "wrong-value",
    ]


def test_nested_aliases_are_never_unfolded(faults):
    laughs = "a: &a [ha]\n" + "".join(f"{y}: &{y} [{f'*{x}, ' * 9}]\n" for x, y in pairwise("abcdefghi"))
    assert "yaml-alias" in {rule for _, rule, _ in faults(laughs)}


@pytest.mark.parametrize(
    ("content", "where", "rule"),
    [
        (b"", "1:1", "not-a-mapping"),
        (b"# only a comment\n", "1:1", "not-a-mapping"),
        (b"- data\n", "1:1", "not-a-mapping"),
        (b"data", "1:1", "not-a-mapping"),
        (b"data:\n  manifest: \xe9t\xe9\n", "2:13", "not-utf8"),
        (MINIMAL.encode("utf-16"), "1:1", "not-utf8"),
    ],
)
def test_what_is_no_config_is_refused(faults, content, where, rule):
    assert [(w, r) for w, r, _ in faults(content)] == [(where, rule)]


def test_a_file_over_a_megabyte_is_refused_unread(load):
    with pytest.raises(ConfigError, match="too-large"):
        load(b"#" * (2**20 + 1))


def test_what_cannot_be_read_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    looping = tmp_path / "loop"
    looping.symlink_to(looping)
    long_name = tmp_path / ("x" * 300)
    for path in (tmp_path, tmp_path / "absent.yaml", tmp_path / "pipe", looping, long_name, Path("a\0b")):
        with pytest.raises(ConfigError) as caught:
            load_job(path)
        assert caught.value.faults[0].where == str(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    path.chmod(0)
    with pytest.raises(ConfigError, match="not-readable"):
        load_job(path)


@pytest.mark.parametrize("path", ["''", '"a\\0b"', "~nobody-of-this-name/x", "3", "[a]"])
def test_a_path_that_cannot_be_one_is_refused(faults, path):
    [(where, rule, message)] = faults(f"data:\n  manifest: {path}\ntraining: {{epochs: 1}}")
    assert (where, rule) == ("2:3", "wrong-value")
    assert message.startswith("`data.manifest`: ")


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab01.-:,#~?|>%@&*!'\"[]{}<\\U\n\t ") | st.characters(), max_size=60))
def test_any_text_ends_in_a_job_or_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes((MINIMAL + text).encode(errors="surrogatepass"))
    try:
        load_job(path)
    except ConfigError as error:
        assert all(isinstance(fault, Fault) for fault in error.faults)
