"""Every shipped config is complete, valid, and builds a network that takes a step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ClassificationJob, EnhancementJob, SegmentationJob, job_to_mapping, load_job
from pipeline.data.batches import Batch
from pipeline.data.cases import Case
from pipeline.data.class_images import ClassImage
from pipeline.data.class_study import ClassStudy
from pipeline.labels import LabelContract
from pipeline.training.classification import ClassificationTask
from pipeline.training.cyclegan import CycleGANTask
from pipeline.training.segmentation import SegmentationTask
from transforms.keys import CLASS, IMAGE, LABEL, SOURCE, TARGET

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(ROOT.rglob("*.yaml"))


def leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_is_written_out(path):
    import yaml

    written = set(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert written == set(leaves(job_to_mapping(load_job(path))))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_builds_and_takes_a_step(path):
    job = load_job(path)
    if isinstance(job, ClassificationJob):
        check_classification(job)
        return
    if isinstance(job, EnhancementJob):
        check_enhancement(job)
        return
    # The network as it is, on the smallest patch that it takes: a step of the full size takes seconds.
    small = tuple(2 * stride for stride in job.network.total_stride)
    job = SegmentationJob(**(dict(job) | {"training": job.training.model_copy(update={"patch_size": small})}))
    sides = [name for pair in job.data.left_right_pairs for name in pair]
    contract = LabelContract({"background": 0, "thing": 3, **{name: 4 + k for k, name in enumerate(sides)}})
    task = SegmentationTask(job, contract, 1, [], torch.device("cpu"))
    size = task.augmentation.source_size
    tensors = {IMAGE: torch.randn(2, 1, *size), LABEL: torch.randint(0, 2, (2, *size), dtype=torch.uint8)}
    before = {name: weight.clone() for name, weight in task.weights().items()}
    losses = task.training_step(Batch(tensors, (1, 2)), progress=0.0)
    assert all(loss.isfinite() for loss in losses.values())
    assert any(not torch.equal(before[name], weight) for name, weight in task.weights().items())


def check_enhancement(job):
    # The smallest patch that generators and discriminators take.
    stride, judged = job.network.total_stride, job.network.smallest_judged
    small = tuple(-(-max(2 * s, judged) // s) * s for s in stride)
    training = job.training.model_copy(update={"patch_size": small})
    task = CycleGANTask(EnhancementJob(**(dict(job) | {"training": training})), 1, [], torch.device("cpu"))
    shape = (2, 2 * job.network.neighbours + 1, *small)
    tensors = {SOURCE: torch.randn(shape), TARGET: torch.randn(shape)}
    before = {name: weight.clone() for name, weight in task.weights().items()}
    losses = task.training_step(Batch(tensors, (1, 2)), progress=0.1)
    assert all(loss.isfinite() for loss in losses.values())
    assert any(not torch.equal(before[name], weight) for name, weight in task.weights().items())


def check_classification(job):
    names = tuple(job.data.classes)
    study = ClassStudy((), names, ("image",), job.data.multi_label)
    image = torch.zeros(1, *job.preprocessing.size)
    training = [
        ClassImage(Case(n, n, ()), image, torch.eye(len(names))[k], np.eye(4), n) for k, n in enumerate(names)
    ]
    task = ClassificationTask(job, study, 1, training, [], torch.device("cpu"))
    tensors = {IMAGE: torch.randn(2, 1, *task.augmentation.source_size), CLASS: torch.eye(len(names))[:2]}
    before = {name: weight.clone() for name, weight in task.weights().items()}
    losses = task.training_step(Batch(tensors, (1, 2)), progress=0.1)
    assert all(loss.isfinite() for loss in losses.values())
    assert any(not torch.equal(before[name], weight) for name, weight in task.weights().items())


def test_the_smoke_configs_are_the_jobs():
    assert {p.name for p in (ROOT / "smoke").glob("*.yaml")} <= {p.name for p in ROOT.glob("*.yaml")}
