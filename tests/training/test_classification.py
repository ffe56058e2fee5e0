"""The classifier's task, sampler and loss: what is drawn, weighed, mixed, kept and taken up again."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.config import ClassificationJob
from pipeline.data.cases import Case
from pipeline.data.class_images import ClassImage, ClassSampler
from pipeline.data.class_study import ClassStudy
from pipeline.errors import ConfigError
from pipeline.training.class_losses import ClassLoss, balance_weights
from pipeline.training.classification import ClassificationTask
from pipeline.training.distributed import World
from pipeline.training.divergence import DivergedError
from pipeline.training.loop import fit
from transforms.keys import CLASS, IMAGE

NAMES = ("a", "b", "c")


def build_images(num=20, seed=0, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        ClassImage(
            Case(f"{n}", f"{n}", ()),
            torch.randn(1, 8, 8, generator=generator) + n % classes,
            torch.eye(classes)[n % classes],
            np.eye(4),
            f"{n}",
        )
        for n in range(num)
    ]


def build_job(**training):
    return ClassificationJob.model_validate(
        {
            "task": "classification",
            "data": {"manifest": "m"},
            "preprocessing": {"size": (8, 8)},
            "augmentation": {"rotation_probability": 1.0},
            "network": {"dimensions": 2, "features": (4, 6), "dropout": 0.2},
            "training": {"epochs": 3, "steps_per_epoch": 3, "batch_size": 4, "ema_decay": 0.9, "mixup": 0.3}
            | training,
        }
    )


def build(job, images=None):
    images = images or build_images()
    study = ClassStudy((), NAMES, ("image",), is_multi_label=False)
    task = ClassificationTask(job, study, 1, images[:15], images[15:], torch.device("cpu"))
    size = task.augmentation.source_size
    section = job.training
    sampler = ClassSampler(
        images[:15], size, section.batch_size, is_balanced=section.balanced_sampling, seed=section.seed
    )
    return task, sampler


class Surroundings:
    def __init__(self, last_step=None):
        self.metrics, self.state, self.last_step, self.step = [], None, last_step, 0

    def log_metrics(self, values, epoch):
        self.metrics.append({k: v for k, v in values.items() if "second" not in k})

    def save_best(self, metrics, epoch):
        pass

    def save_last(self, state, epoch):
        self.state = deepcopy(state)

    def advance(self, progress, epoch):
        self.step += 1

    def is_given_up(self):
        return False

    def is_stop_requested(self):
        return self.step == self.last_step


@pytest.mark.parametrize("is_balanced", [False, True])
def test_stopped_anywhere_it_ends_with_the_same_bits(is_balanced):
    job = build_job(balanced_sampling=is_balanced)

    def train(state=None, last_step=None):
        surroundings = Surroundings(last_step)
        task, sampler = build(job)
        fit(task, sampler, job.training, surroundings, deepcopy(state))
        return surroundings

    straight, stopped = train(), train(last_step=4)
    assert stopped.state["position"]["step"] == 4
    resumed = train(stopped.state)
    torch.testing.assert_close(resumed.state["task"], straight.state["task"], rtol=0, atol=0)
    assert resumed.metrics == straight.metrics[1:]


def test_a_training_that_diverges_is_stopped_and_keeps_nothing():
    job = build_job(learning_rate=1e30)
    surroundings, (task, sampler) = Surroundings(), build(job)
    with pytest.raises(DivergedError, match=r"training\.learning_rate: .*epoch 1 .*loss.* was nan"):
        fit(task, sampler, job.training, surroundings)
    assert surroundings.state is None and not surroundings.metrics


def test_a_rehearsal_changes_nothing():
    task, sampler = build(build_job())
    before, random = deepcopy(task.state_dict()), torch.get_rng_state()
    task.rehearse(sampler.draw(0))
    torch.testing.assert_close(task.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())
    assert task.least_bytes(sampler.shape) > 0 and sampler.shape == tuple(
        sampler.draw(0).tensors[IMAGE].shape
    )


def test_a_pass_shows_every_case_once_and_shares_are_those_of_the_whole():
    images = build_images(12)
    whole = ClassSampler(images, (8, 8), 4, is_balanced=False, seed=1)
    seen = torch.cat([whole.draw(step).tensors[IMAGE] for step in range(3)])
    assert sorted(seen.flatten(1).sum(1).tolist()) == sorted(i.image.sum().item() for i in images)
    parts = [ClassSampler(images, (8, 8), 2, is_balanced=False, seed=1, share=(r, 2)) for r in range(2)]
    together = torch.cat([part.draw(5).tensors[IMAGE] for part in parts])
    assert torch.equal(together, whole.draw(5).tensors[IMAGE])


def test_balanced_draws_show_every_class_as_often():
    images = build_images(30)
    rare = [image for image in images if image.target[0] != 1 or int(image.case.id) < 3]
    sampler = ClassSampler(rare, (8, 8), 30, is_balanced=True, seed=0)
    counts = sum(sampler.draw(step).tensors[CLASS].sum(0) for step in range(20))
    assert counts.min() > 150 and counts.sum() == 600


def test_the_edge_is_carried_on_round_an_image():
    sampler = ClassSampler(build_images(3), (11, 8), 1, is_balanced=False, seed=0)
    image = sampler.draw(0).tensors[IMAGE][0, 0]
    assert image.shape == (11, 8)
    assert torch.equal(image[0], image[1]) and torch.equal(image[-1], image[-2])


def test_the_loss_is_torchs_and_weights_keep_its_scale():
    logits, target = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    weights = torch.tensor([0.5, 1.0, 3.0])
    found = ClassLoss(weights, is_multi_label=False, label_smoothing=0.0)(
        logits, F.one_hot(target, 3).float()
    )
    torch.testing.assert_close(found, F.cross_entropy(logits, target, weights))
    plain = ClassLoss(torch.ones(3), is_multi_label=False, label_smoothing=0.1)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(plain(logits, F.one_hot(target, 3).float()), expected)
    labels = (logits > 0.3).float()
    several = ClassLoss(torch.ones(3, 2), is_multi_label=True)
    torch.testing.assert_close(several(logits, labels), F.binary_cross_entropy_with_logits(logits, labels))


def test_what_is_easy_counts_less_in_a_focal_loss():
    target = torch.eye(2)
    easy, hard = torch.tensor([[4.0, 0], [0, 4]]), torch.tensor([[0.2, 0], [0, 0.2]])

    def share(gamma):
        loss = ClassLoss(torch.ones(2), is_multi_label=False, focal_gamma=gamma)
        return loss(easy, target) / loss(hard, target)

    assert share(2.0) < 0.05 * share(0.0)


def test_balanced_weights_give_classes_the_same_sum():
    targets = torch.tensor([[1.0, 0, 0]] * 6 + [[0, 1, 0]] * 3 + [[0, 0, 1]])
    sums = (targets * balance_weights(targets, is_multi_label=False)).sum(0)
    assert torch.allclose(sums, sums[0].expand(3)) and float(sums.sum()) == pytest.approx(10)
    weights = balance_weights(targets, is_multi_label=True)
    torch.testing.assert_close((1 - targets).sum(0) * weights[:, 0], targets.sum(0) * weights[:, 1])


def test_frozen_batch_normalisation_stops_counting():
    job = ClassificationJob.model_validate(
        build_job(start_from="some-run", freeze_encoder=1.0).model_dump()
        | {"network": {"name": "resnet18", "dimensions": 2}, "preprocessing": {"size": (32, 32)}}
    )
    images = [replace(image, image=image.image.repeat(1, 4, 4)) for image in build_images()]
    task, sampler = build(job, images)
    before = {n: b.clone() for n, b in task.network.encoder.named_buffers()}
    task.training_step(sampler.draw(0), 0.5)
    assert all(torch.equal(before[n], b) for n, b in task.network.encoder.named_buffers())
    averaged = dict(task.fitter.averaged.network.named_buffers())
    assert all(torch.equal(averaged[n], b) for n, b in task.network.named_buffers())


def test_what_normalises_over_a_batch_is_trained_in_one_process_with_a_batch():
    changes = {"network": {"name": "resnet18", "dimensions": 2}, "preprocessing": {"size": (32, 32)}}
    job = ClassificationJob.model_validate(build_job().model_dump() | changes)
    study = ClassStudy((), NAMES, ("image",), is_multi_label=False)
    with pytest.raises(ConfigError, match="one process"):
        ClassificationTask(job, study, 1, build_images(), [], torch.device("cpu"), world=World(0, 2))
    with pytest.raises(ValueError, match="2 or more"):
        ClassificationJob.model_validate(build_job(batch_size=1).model_dump() | changes)


def test_a_shown_region_moves_with_the_image_and_keeps_its_values():
    values = build_job(mixup=0.0).model_dump()
    values["data"]["region_from"], values["preprocessing"]["region"] = "label_map", "channel"
    certain = {name: 1.0 for name in values["augmentation"] if name.endswith("_probability")}
    values["augmentation"] |= certain | {"noise_deviation": 0.5, "elastic_probability": 0.0}
    mask = torch.zeros(8, 8)
    mask[2:6, 1:4] = 1
    images = [replace(image, image=torch.stack([mask * 20, mask])) for image in build_images()]
    study = ClassStudy((), NAMES, ("image",), is_multi_label=False)
    job = ClassificationJob.model_validate(values)
    task = ClassificationTask(job, study, 2, images[:15], images[15:], torch.device("cpu"))
    seen = []
    task.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    size = task.augmentation.source_size
    sampler = ClassSampler(images[:15], size, 4, is_balanced=False, seed=0)
    task.training_step(sampler.draw(0), 0.0)
    bright = seen[0][:, 0] > seen[0][:, 0].amax((1, 2), keepdim=True) / 2
    shown = seen[0][:, 1]
    assert set(shown.unique().tolist()) == {0.0, 1.0} and not (shown == mask).all()
    assert (bright == (shown == 1)).float().mean() > 0.85
