"""Every kind of job that the config allows can be trained, validated and predicted."""

import numpy as np
import pytest
import torch

from pipeline.config import Job
from pipeline.data.cases import read_manifest
from pipeline.data.checks import read_checked_case
from pipeline.data.datasets import PatchSampler, prepare_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.inference.predictor import Predictor, build_preprocessing
from pipeline.labels import LabelContract
from pipeline.training.segmentation import SegmentationTask

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
        "training": {"ema_decay": 0.9, "optimizer": "sgd", "schedule": "cosine"},
        "inference": {"flips": True, "largest_component": ("core",)},
    },
    "anisotropic": {
        "network": {
            "strides": ((1, 1, 1), (2, 2, 1)),
            "kernels": ((3, 3, 1), (3, 3, 3)),
            "blocks": "residual",
        }
    },
    "plain, shallow loss": {"network": {"attention_gates": False, "deep_supervision": False}},
}


def build(tmp_path, changes):
    num_channels = changes.get("num_channels", 1)
    manifest = write_phantom_study(tmp_path / "study", num_cases=4, num_channels=num_channels)
    job = Job.model_validate(
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
    prepared = prepare_cases(study.cases, study.labels, num_channels, chain, job.data)
    contract = LabelContract(study.labels, job.data.regions)
    task = SegmentationTask(job, contract, num_channels, prepared[3:], torch.device("cpu"))
    size = job.training.patch_size
    return (
        job,
        study,
        contract,
        task,
        PatchSampler(prepared[:3], size, task.augmentation.source_size, 2, 0.5, 0),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_validates_and_predicts(tmp_path, kind):
    job, study, contract, task, sampler = build(tmp_path, KINDS[kind])
    losses = [float(task.training_step(sampler.draw(step), 0.0)["training/loss"]) for step in range(12)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    metrics = task.validate()
    assert set(metrics) == {f"validation/dice/{name}" for name in [*contract.structures, "mean"]}
    assert all(0 <= value <= 1 for value in metrics.values())
    network = task._judged_network()
    predictor = Predictor(job, contract, study.channels, [network], [()], torch.device("cpu"))
    case = study.cases[3]
    images = read_checked_case(case, study.labels, len(study.channels)).images
    array = predictor.predict(predictor.prepare(images), images[0].grid).array
    assert array.shape == images[0].array.shape
    assert set(np.unique(array)) <= set(study.labels.values())


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


def _copy(value):
    import copy

    return copy.deepcopy(value)
