"""Overrides on the command line win over the file."""

import pytest

MINIMAL = "data: {manifest: study/dataset.json}\ntraining:\n  epochs: 2\n"


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
