"""Every kind of job that the config allows can be trained, validated and predicted."""

import json
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.config import SegmentationJob
from pipeline.data.cases import read_manifest
from pipeline.data.checks import read_checked_case
from pipeline.data.chunks import find, keep
from pipeline.data.patches import PatchSampler
from pipeline.data.prepared_cases import prepare_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import ConfigError, InputError
from pipeline.inference.predictor import Predictor, build_preprocessing
from pipeline.training.segmentation import SegmentationTask
from pipeline.volume import Grid, Volume, without_geometry
from transforms.keys import IMAGE, LABEL
from transforms.preprocessing import Prepared


def ignore_a_corner(array):
    array[:8] = 9


PARTLY = {0: ["shell"], 2: ["shell"]}
KINDS = {
    "classes": {},
    "regions": {"data": {"regions": {"whole": (1, 2), "core": (2,)}}},
    "two channels": {"num_channels": 2},
    "slices": {
        "network": {"dimensions": 2},
        "training": {"patch_size": (16, 16)},
        "augmentation": {"rotation_probability": 1.0, "mirror_axes": (0, 1)},
    },
    "coarser grid, averaged, flipped": {
        "preprocessing": {"spacing": (1.5, 1.5, 1.5)},
        "augmentation": {"mirror_axes": (1, 2)},
        "training": {"ema_decay": 0.9, "optimizer": "sgd", "schedule": "cosine"},
        "inference": {"flips": True, "largest_component": ("core",)},
    },
    "sides": {
        "data": {"left_right_pairs": (("shell", "core"),)},
        "augmentation": {"mirror_axes": (0, 1)},
        "inference": {"flips": True},
    },
    "anisotropic": {
        "preprocessing": {"spacing": (1.0, 1.0, 2.0)},
        "augmentation": {"in_plane": True, "rotation_probability": 1.0, "elastic_probability": 1.0},
        "network": {
            "strides": ((1, 1, 1), (2, 2, 1)),
            "kernels": ((3, 3, 1), (3, 3, 3)),
            "blocks": "residual",
        },
    },
    "single slices of two channels, partly labelled": {
        "num_channels": 2,
        "shape": (24, 28, 1),
        "labelled": PARTLY,
        "network": {"dimensions": 2},
        "training": {"patch_size": (16, 16)},
    },
    "partly labelled, with ignored voxels": {
        "labelled": PARTLY,
        "edit": ignore_a_corner,
        "data": {"ignore_value": 9},
    },
    "partly labelled regions, with ignored voxels": {
        "labelled": {0: ["whole"], 2: ["whole"]},
        "edit": ignore_a_corner,
        "data": {"ignore_value": 9, "regions": {"whole": (1, 2), "core": (2,)}},
    },
    "plain, shallow loss": {"network": {"attention_gates": False, "deep_supervision": False}},
}


def edit_labels(manifest, labelled, edit):
    """Takes the core out of the cases in which it is not labelled, and changes all label maps with `edit`."""
    content = json.loads(manifest.read_text())
    for number, entry in enumerate(content["training"]):
        path = manifest.parent / entry["label"]
        stored = nib.load(path)
        array = np.asarray(stored.dataobj).copy()
        if number in labelled:
            entry["labelled"] = labelled[number]
            array[array == 2] = 1 if "whole" in labelled[number] else 0
        edit(array)
        nib.save(nib.Nifti1Image(array, stored.affine), path)
    manifest.write_text(json.dumps(content))


def build(tmp_path, changes):
    num_channels = changes.get("num_channels", 1)
    shape = changes.get("shape", (24, 28, 20))
    manifest = write_phantom_study(tmp_path / "study", num_cases=4, num_channels=num_channels, shape=shape)
    edit_labels(manifest, changes.get("labelled", {}), changes.get("edit", lambda array: None))
    job = SegmentationJob.model_validate(
        {
            "data": {"manifest": manifest, "cache_dir": tmp_path / "cache"} | changes.get("data", {}),
            "preprocessing": changes.get("preprocessing", {}),
            "augmentation": changes.get("augmentation", {}),
            "network": {"features": (8, 16)} | changes.get("network", {}),
            "training": {"epochs": 1, "patch_size": (16, 16, 16), "learning_rate": 0.01}
            | changes.get("training", {}),
            "inference": changes.get("inference", {}),
        }
    )
    study = read_manifest(job.data)
    chain = build_preprocessing(job.preprocessing, ())
    prepared = prepare_cases(study.cases, study.contract, num_channels, chain, job.data)
    contract = study.contract
    task = SegmentationTask(job, contract, num_channels, prepared[3:], torch.device("cpu"))
    size = job.training.patch_size
    return (
        job,
        study,
        contract,
        task,
        PatchSampler(prepared[:3], size, task.augmentation.source_size, 2, 0.5, 0),
    )


def test_a_slice_across_another_axis_is_not_cut_into_lines(tmp_path):
    job, study, contract, task, _ = build(tmp_path, KINDS["slices"])
    network = task.fitter.judged_network
    predictor = Predictor(job, contract, study.channels, [network], [()], torch.device("cpu"))
    array = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    for thin, affine in ((0, np.eye(4)), (2, np.eye(4)[[2, 0, 1, 3]])):  # both are thin from left to right
        slab = array.take([5], axis=thin)
        image = Volume(slab, Grid(slab.shape, affine))
        with pytest.raises(InputError, match="not along S"):
            predictor.prepare([image])
    image = without_geometry(array[..., :1])
    assert predictor.predict(predictor.prepare([image]), image.grid).array.shape == (20, 24, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_validates_and_predicts(tmp_path, kind):
    job, study, contract, task, sampler = build(tmp_path, KINDS[kind])
    losses = [float(task.training_step(sampler.draw(step), 0.0)["training/loss"]) for step in range(12)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    metrics = task.validate()
    assert set(metrics) == {f"validation/dice/{name}" for name in [*contract.structures, "mean"]}
    assert all(0 <= value <= 1 for value in metrics.values())
    network = task.fitter.judged_network
    predictor = Predictor(job, contract, study.channels, [network], [()], torch.device("cpu"))
    case = study.cases[3]
    images = read_checked_case(case, study.contract, len(study.channels)).images
    array = predictor.predict(predictor.prepare(images), images[0].grid).array
    assert array.shape == images[0].array.shape
    assert set(np.unique(array)) <= set(study.labels.values())


@pytest.mark.parametrize(
    "changes", [{}, {"data": {"regions": {"whole": (1, 2), "core": (2,)}}}], ids=["classes", "regions"]
)
def test_validation_counts_a_structure_where_it_is_labelled(tmp_path, changes):
    outer = "whole" if changes else "shell"
    *_, whole, _ = build(tmp_path / "whole", changes)
    *_, partly, _ = build(tmp_path / "partly", changes | {"labelled": {3: [outer]}})
    assert set(whole.validate()) == {f"validation/dice/{name}" for name in (outer, "core", "mean")}
    judged = partly.validate()
    assert set(judged) == {f"validation/dice/{outer}", "validation/dice/mean"}
    assert judged["validation/dice/mean"] == judged[f"validation/dice/{outer}"]
    both = [*partly.validation, *whole.validation]
    partly.validation = both
    assert partly.validate()["validation/dice/core"] == whole.validate()["validation/dice/core"]


def test_validation_does_not_ask_what_is_predicted_at_ignored_voxels(tmp_path):
    *_, task, _ = build(tmp_path, {"data": {"ignore_value": 9}})
    (prepared,) = task.validation
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.data.chunks.LARGE", 0)
        parts = {name: find(name, keep(name, getattr(prepared, name))) for name in ("image", "label")}
    plain = task.validate()
    task.validation = [replace(prepared, **parts)]
    assert task.validate() == plain and plain["validation/dice/mean"] < 1
    grid = Grid(tuple(prepared.label.shape[1:]), prepared.affine)
    predicted = task._build_labeller().label(Prepared(prepared.image, prepared.affine), grid).array
    is_wrong = torch.from_numpy(predicted.astype(np.uint8)) != prepared.label[0]
    task.validation = [replace(prepared, label=prepared.label.masked_fill(is_wrong, 3))]
    assert set(task.validate().values()) == {1.0}


def test_state_returns_exactly(tmp_path):
    changes = {"training": {"ema_decay": 0.9}}
    *_, task, sampler = build(tmp_path, changes)
    task.training_step(sampler.draw(0), 0.0)
    state = {name: _copy(value) for name, value in task.state_dict().items()}
    expected = task.training_step(sampler.draw(1), 0.5)
    *_, other, _ = build(tmp_path, changes)
    other.load_state_dict(state)
    assert torch.equal(other.training_step(sampler.draw(1), 0.5)["training/loss"], expected["training/loss"])
    for name, weight in task.weights().items():
        assert torch.equal(other.weights()[name], weight)


def test_compiled_it_learns_the_same_and_either_goes_on_with_the_others_state(tmp_path, monkeypatch):
    # All of torch.compile but the C++, which takes a minute.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    training = {"patch_size": (16, 16), "ema_decay": 0.9}
    changes = {"network": {"dimensions": 2}, "training": training}
    *_, eager, sampler = build(tmp_path, changes)
    *_, compiled, _ = build(tmp_path, changes | {"training": training | {"compile": True}})
    compiled.rehearse(sampler.draw(0))
    for step in range(3):
        for task in eager, compiled:
            task.training_step(sampler.draw(step), 0.0)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-3, atol=1e-4)
    assert compiled.validate().keys() == eager.validate().keys()
    eager_state, compiled_state = _copy(eager.state_dict()), _copy(compiled.state_dict())
    eager.load_state_dict(compiled_state)
    compiled.load_state_dict(eager_state)
    torch.testing.assert_close(eager.state_dict(), compiled_state, rtol=0, atol=0)
    torch.testing.assert_close(compiled.state_dict(), eager_state, rtol=0, atol=0)


def test_what_cannot_be_compiled_is_refused_before_training(tmp_path, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    *_, task, sampler = build(tmp_path, {"training": {"compile": True}})
    with pytest.raises(ConfigError, match="no compiler here"):
        task.rehearse(sampler.draw(0))


def _copy(value):
    import copy

    return copy.deepcopy(value)


def test_what_is_labelled_changes_sides_with_the_labels(tmp_path):
    """Mirrored by its seed, or before with the labels' sides exchanged by hand: it is the same sample."""
    still = {
        f"{name}_probability": 0.0
        for name in ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "gamma")
    }
    changes = {
        "data": {"left_right_pairs": (("shell", "core"),)},
        "augmentation": {"mirror_axes": (0,), "low_resolution_probability": 0.0, **still},
    }
    _, _, _, task, sampler = build(tmp_path, changes)
    mirrors = {
        task.augmentation.exchanges_sides(task.augmentation.draw([seed], 1)[0]): seed for seed in range(20)
    }
    drawn = sampler.draw(0)
    image, label = drawn.tensors[IMAGE], drawn.tensors[LABEL].clamp_max(1)
    losses = []
    for flipped, swapped, names, seed in (
        (image, label, frozenset({"shell"}), mirrors[True]),
        (image.flip(2), (2 * label).flip(1), frozenset({"core"}), mirrors[False]),
    ):
        batch = replace(
            drawn, tensors={IMAGE: flipped, LABEL: swapped}, seeds=(seed,) * 2, labelled=(names,) * 2
        )
        losses.append(task.training_step(batch, progress=1.0)["training/loss"])
    assert losses[0] == losses[1]
