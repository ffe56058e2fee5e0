"""`training.start_from` on the command line: what is refused, and what is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint import Checkpoint, Member, read_checkpoint, write_checkpoint
from pipeline.config import SegmentationJob, job_to_mapping, load_job
from pipeline.data.synthetic import write_phantom_study
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.workflows.runs.matching import match_inputs
from pipeline.workflows.runs.starting import find_start

CONFIG = Path(__file__).parents[1] / "configs/smoke/hippocampus.yaml"


@pytest.fixture
def command(clinseg, trained, tmp_path, monkeypatch):
    """Runs `train` or `check` with settings, in a folder that has a copy of the trained run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.run, tmp_path / "mlruns/runs" / trained.run.name)

    def run(name, **settings):
        settings = {
            "data.manifest": trained.manifest,
            "data.cache_dir": tmp_path / "cache",
            "network.features": "[8, 16]",
        } | {key.replace("__", "."): value for key, value in settings.items()}
        return clinseg(name, CONFIG, *(f"--set={key}={value}" for key, value in settings.items()))

    return run


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["train", "check"])
@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        ({"training__start_from": "no-such-run"}, 2, "run-unknown"),
        ({"training__start_from": "nowhere.safetensors"}, 2, "checkpoint-missing"),
        ({"training__start_from": "models:/a@b@c"}, 2, "model-reference"),
        ({"training__start_from": "damaged.safetensors"}, 6, "checkpoint-damaged"),
        ({"training__start_from": "ensemble.safetensors"}, 2, "model-is-ensemble"),
        ({"training__start_from": "latest", "network__features": "[9, 17]"}, 2, "model-unlike"),
        (
            {
                "training__start_from": "latest",
                "network__features": "[8, 16, 24]",
                "training__freeze_encoder": 0.5,
            },
            2,
            "has no encoder.2.0.weight",
        ),
    ],
    ids=lambda value: value.get("training__start_from") if isinstance(value, dict) else None,
)
def test_a_model_that_will_not_do_is_refused_before_any_case_is_read(
    command, trained, tmp_path, name, settings, code, told
):
    shutil.copy(trained.model, tmp_path / "damaged.safetensors")
    damage(tmp_path / "damaged.safetensors")
    one = read_checkpoint(trained.model)
    members = (Member(one.weights, one.intensity, one.provenance),) * 2
    write_checkpoint(
        tmp_path / "ensemble.safetensors", replace(one, weights={}, intensity=None, members=members)
    )
    answer = command(name, **settings)
    assert answer.code == code and told in answer.err, answer.err
    assert not (tmp_path / "cache").exists()
    assert [run.name for run in (tmp_path / "mlruns/runs").iterdir()] == [trained.run.name]


def test_a_run_tells_what_it_took(command, trained, tmp_path):
    answer = command(
        "train",
        training__start_from="latest",
        training__epochs=1,
        training__steps_per_epoch=2,
        training__freeze_encoder=0.5,
        training__depth_decay=0.8,
        data__labels="{background: 0, rind: 1, core: 2}",
        preprocessing__spacing="[1, 1, 1]",
        data__fold="none",
    )
    assert answer.code == 0, answer.err
    assert "2 adapted, 0 new; 0 of the model's unused" in answer.err
    assert "preprocessing.spacing was null and is [1.0, 1.0, 1.0]" in answer.err
    runs = tmp_path / "mlruns/runs"
    (run,) = (path for path in runs.iterdir() if path.name != trained.run.name)

    # "latest" is named for good: the next one would be another.
    assert load_job(run / "config.yaml").training.start_from == trained.run.name
    report = json.loads((run / "start_from.json").read_text())
    source = read_checkpoint(trained.model)
    assert report["model"] == report["run"] == trained.run.name and report["sha256"] == source.content_hash
    assert report["labels"] == {"background": True, "rind": False, "core": True}
    assert sorted(report["adapted"]) == ["heads.0.bias", "heads.0.weight"] and not report["new"]
    assert set(report["loaded"]) == source.weights.keys() - report["adapted"].keys()
    events = (run / "events.jsonl").read_text()
    assert source.content_hash in events and "start_from.json" in events


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory):
    """The manifest of a study with T1 and FLAIR images."""
    manifest = write_phantom_study(tmp_path_factory.mktemp("channels"), num_cases=2, num_channels=2)
    content = json.loads(manifest.read_text()) | {"modality": {"0": "T1", "1": "FLAIR"}}
    manifest.write_text(json.dumps(content))
    return manifest


def test_channels_of_one_name_are_matched_one_after_the_other():
    """nnU-Net names channels by their normalisation, so that names repeat."""
    assert match_inputs(("noNorm", "noNorm"), ("noNorm", "noNorm")) == (0, 1)
    assert match_inputs(("a", "b", "a"), ("a", "a", "b")) == (0, 2, 1)
    assert match_inputs(("a", "a"), ("a",)) == (0, 0)


OURS = {"dimensions": 2, "features": (4, 6)}
MONAIS = {"dimensions": 2, "name": "monai_unet", "arguments": {"channels": [4, 8], "strides": [2]}}


def match(folder, manifest, channels, labels, their_regions=None, our_regions=None, network=OURS):
    """What is taken from a model with these channels and labels."""
    values = {name: value for value, name in enumerate(labels)}
    training = {"epochs": 1, "patch_size": (8, 8)}
    data = {"manifest": manifest, "regions": our_regions}
    former = SegmentationJob.model_validate(
        {"data": data | {"regions": their_regions}, "network": network, "training": training}
    )
    contract = LabelContract(values, their_regions)
    model = Checkpoint(
        weights=build_network(former.network, len(channels), len(contract.channel_names)).state_dict(),
        job=job_to_mapping(former),
        labels=values,
        structures=contract.structures,
        channels=channels,
        intensity=None,
        provenance={},
    )
    write_checkpoint(folder / "model.safetensors", model)
    training["start_from"] = folder / "model.safetensors"
    return find_start(
        SegmentationJob.model_validate({"data": data, "network": network, "training": training})
    )


@pytest.mark.parametrize(
    ("channels", "inputs"),
    [
        (("T1", "FLAIR"), (0, 1)),
        (("FLAIR", "T1"), (1, 0)),
        (("CT", "PET"), (0, 1)),
        (("PET", "T1"), (1, 0)),
        (("FLAIR",), (None, 0)),
        (("CT",), (None, None)),
        (("PET", "CT", "T1"), (2, None)),
    ],
    ids=str,
)
def test_image_channels_are_matched_by_name_then_by_position(two_channels, tmp_path, channels, inputs):
    start = match(tmp_path, two_channels, channels, ("background", "shell", "core"))
    assert start.source.inputs == inputs
    assert bool(start.transfer.adapted) == (inputs != tuple(range(len(channels))))


@pytest.mark.parametrize(
    ("labels", "their_regions", "our_regions", "outputs"),
    [
        (("background", "shell", "core"), None, None, (0, 1, 2)),
        (("background", "core", "tail", "shell"), None, None, (0, 3, 1)),
        (("air", "liver", "spleen"), None, None, (None, None, None)),
        (("background", "shell", "core"), None, {"whole": (1, 2), "core": (2,)}, (None, None)),
        (("background", "a", "b"), {"core": (1,)}, {"whole": (1, 2), "core": (2,)}, (None, 0)),
        (("background", "a", "core"), {"core": (1,)}, None, (None, None, None)),
    ],
)
def test_outputs_are_matched_by_name_among_their_kind(
    two_channels, tmp_path, labels, their_regions, our_regions, outputs
):
    start = match(tmp_path, two_channels, ("T1", "FLAIR"), labels, their_regions, our_regions)
    assert start.source.outputs == outputs
    assert list(start.labels.values()) == [output is not None for output in outputs]


@pytest.mark.parametrize(
    ("labels", "taken"),
    [
        (("background", "shell", "core"), True),
        (("background", "core", "shell"), False),
        (("background", "shell", "core", "tail"), False),
    ],
)
def test_labels_are_told_as_taken_only_where_the_head_is(two_channels, tmp_path, labels, taken):
    """The head of one of MONAI's networks is not taken apart."""
    start = match(tmp_path, two_channels, ("T1", "FLAIR"), labels, network=MONAIS)
    assert start.labels == {"background": taken, "shell": taken, "core": taken}
    assert bool(start.transfer.new) != taken
