"""What may stand in a config, and what is said about everything else."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.config as config
from pipeline.config import (
    Job,
    job_from_mapping,
    job_parameters,
    job_schema,
    job_to_mapping,
    job_to_yaml,
    load_job,
)
from pipeline.errors import ConfigError, Fault

ROOT = Path(__file__).parents[1]
MINIMAL = "data: {manifest: study/dataset.json}\ntraining:\n  epochs: 2\n"


@pytest.fixture
def load(tmp_path):
    """Loads a text as a config file."""

    def load_text(text: str | bytes, *overrides: str) -> Job:
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_job(path, overrides)

    return load_text


@pytest.fixture
def faults(load, tmp_path):
    """The faults of a config text as (place, rule, message), places without the folder."""

    def faults_of(text: str | bytes, *overrides: str) -> list[tuple[str, str, str]]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return [
            (fault.where.removeprefix(f"{tmp_path}/job.yaml:"), fault.rule, fault.message)
            for fault in caught.value.faults
        ]

    return faults_of


# What is read


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


def test_nothing_but_the_tilde_is_expanded(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load("data: {manifest: ~/m}\ntraining: {epochs: 1}").data.manifest == Path("/home/somebody/m")
    assert load("data: {manifest: $HOME/m}\ntraining: {epochs: 1}").data.manifest == tmp_path / "$HOME/m"


def test_a_byte_order_mark_and_windows_lines_do_not_matter(load, faults):
    assert load(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()) == load(MINIMAL)
    assert faults(b"\xef\xbb\xbfx: 1\r\n" + MINIMAL.encode())[0][0] == "1:1"


# What is refused, and where


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
        ("1:21", "wrong-value", "`data.fold`: expected a number of at least 0 or 'none', got -1")
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
        ("network: {kernels: [[3, 3, 3]]}", "4:11", "network.kernels"),
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


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab01.-:,#~?|>%@&*!'\"[]{}<\\U\n\t ") | st.characters(), max_size=60))
def test_any_text_ends_in_a_job_or_a_config_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes((MINIMAL + text).encode(errors="surrogatepass"))
    try:
        load_job(path)
    except ConfigError as error:
        assert all(isinstance(fault, Fault) for fault in error.faults)


# Overrides


def test_overrides_win_over_the_file_and_the_last_one_first(load):
    job = load(
        MINIMAL,
        "training.epochs=7",
        "training.epochs=8",
        "training.learning_rate=1e-4",
        "network.features=[8, 24, 32]",
        "data.labels={background: 0, lesion: 1}",
        "data.labels.vessel=2",
        "tracking.uri=postgresql://host/db?x=1",
        "training.gradient_clip=",
    )
    assert job.training.epochs == 8
    assert job.training.learning_rate == 1e-4
    assert job.training.gradient_clip is None
    assert job.network.features == (8, 24, 32)
    assert job.data.labels == {"background": 0, "lesion": 1, "vessel": 2}
    assert job.tracking.uri == "postgresql://host/db?x=1"


def test_an_overridden_path_counts_from_the_current_folder(load, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(MINIMAL, "data.cache_dir=cache").data.cache_dir == elsewhere / "cache"
    assert load(MINIMAL, "data={manifest: m}").data.manifest == elsewhere / "m"
    assert load(MINIMAL, "training.epochs=3").data.manifest == tmp_path / "study/dataset.json"


def test_an_override_replaces_a_wrong_line(load):
    assert load(MINIMAL + "  batch_size: [1, x]", "training.batch_size=4").training.batch_size == 4


@pytest.mark.parametrize(
    ("override", "rule", "says"),
    [
        ("training.epoch=3", "unknown-key", "did you mean `training.epochs`?"),
        ("trainig.epochs=3", "unknown-key", "did you mean `training`?"),
        ("epochs=3", "unknown-key", "did you mean `training.epochs`?"),
        ("training.epochs=many", "wrong-value", "expected a whole number, got the text 'many'"),
        ("training.seed.low=1", "wrong-value", "expected a whole number, got a mapping"),
        ("training.epochs.low=1", "not-a-mapping", "`training.epochs` is 2"),
        ("network.features=[8, x]", "wrong-value", "`network.features[1]`"),
        ("training.epochs", "override-syntax", "expected `key.path=value`"),
        ("=3", "override-syntax", "expected `key.path=value`"),
        ("training..epochs=3", "override-syntax", "expected `key.path=value`"),
        ("training.epochs=[1", "yaml-syntax", "this is not YAML"),
        ("training.epochs=&a 1", "yaml-anchor", "anchors"),
        ("training.epochs=!!python/name:os.system", "yaml-tag", "tags"),
        ("tracking.uri=\udcff", "yaml-syntax", "is not allowed"),
        (".".join("a" * 50) + "=1", "too-deep", "40 levels"),
        ("training={batch_size: 3}", "contradiction", "`training.epochs`: give a budget"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(faults, override, rule, says):
    [(where, found, message)] = faults(MINIMAL, override)
    assert (where, found) == (f"--set {override}", rule)
    assert says in message


# Round trips

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


@settings(max_examples=60, deadline=None)
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
    assert list(job_to_mapping(load(MINIMAL))) == list(Job.model_fields)


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


# The schema for editors


def test_the_committed_schema_is_the_current_one():
    program = (
        "import json; from pathlib import Path; from pipeline.config import job_schema; "
        'Path("configs/schema.json").write_text(json.dumps(job_schema(), indent=2) + "\\n")'
    )
    committed = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))
    assert committed == job_schema(), f"configs/schema.json is old; run: python -c '{program}'"


def test_the_schema_refers_only_to_what_it_defines_and_forbids_unknown_keys():
    schema = job_schema()

    def walk(node):
        if isinstance(node, dict):
            yield node
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from walk(inner)

    references = {node["$ref"] for node in walk(schema) if "$ref" in node}
    assert references == {f"#/$defs/{name}" for name in schema["$defs"]}
    assert all(part["additionalProperties"] is False for part in (schema, *schema["$defs"].values()))
    assert schema["required"] == ["data", "training"]


def test_the_schema_tells_what_the_docstrings_tell():
    definitions = job_schema()["$defs"]
    for section in (config.DataSection, config.TrainingSection, config.NetworkSection):
        properties = definitions[section.__name__]["properties"]
        for name, field in section.model_fields.items():
            assert properties[name].get("description") == field.description
    assert "patient" in definitions["DataSection"]["properties"]["num_folds"]["description"]


def test_importing_the_config_imports_nothing_heavy():
    program = "import sys, pipeline.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "monai", "mlflow", "numpy", "nibabel"} & set(done.stdout.split())
