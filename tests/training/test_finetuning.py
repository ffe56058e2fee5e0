"""A training that starts from another model: what is frozen stays, what is slower moves less, all resumes."""

import copy

import pytest
import torch

from pipeline.config import SegmentationJob
from pipeline.data.batches import Batch
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.networks.pretrained import Source
from pipeline.training.optim import set_learning_rate
from pipeline.training.segmentation import SegmentationTask
from transforms.keys import IMAGE, LABEL

CONTRACT = LabelContract({"background": 0, "shell": 1, "core": 2})
OPTIMIZERS = pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])


def build_job(**training):
    section = {"epochs": 1, "patch_size": (8, 8), "start_from": "some-run", "learning_rate": 0.01}
    network = {"dimensions": 2, "features": (4, 6, 8), "dropout": 0.1}
    return SegmentationJob.model_validate(
        {"data": {"manifest": "m"}, "network": network, "training": section | training}
    )


def build_source(job, num_channels=1, num_outputs=3, inputs=(0,), outputs=(0, 1, 2)):
    torch.manual_seed(7)
    return Source(build_network(job.network, num_channels, num_outputs).state_dict(), inputs, outputs)


def build(job, source, contract=CONTRACT, num_channels=1):
    return SegmentationTask(job, contract, num_channels, [], torch.device("cpu"), source)


def draw(task, number, num_channels=1):
    """A batch that its number alone decides."""
    generator = torch.Generator().manual_seed(number)
    size = task.augmentation.source_size
    image = torch.randn(2, num_channels, *size, generator=generator)
    label = torch.randint(0, 3, (2, *size), generator=generator, dtype=torch.uint8)
    return Batch({IMAGE: image, LABEL: label}, (number, number + 1))


def step(task, number, progress, num_channels=1):
    return task.training_step(draw(task, number, num_channels), progress)


def moved(task, before):
    """The names of the network's tensors that are not what they were."""
    return {n for n, tensor in task.network.state_dict().items() if not torch.equal(tensor, before[n])}


def snapshot(task):
    return {name: tensor.clone() for name, tensor in task.network.state_dict().items()}


def of_encoder(task, *levels):
    return {n for n in snapshot(task) if n.startswith(tuple(f"encoder.{level}." for level in levels))}


@OPTIMIZERS
def test_a_frozen_encoder_stays_to_the_bit_and_moves_when_it_is_free(optimizer):
    job = build_job(optimizer=optimizer, freeze_encoder=0.5, weight_decay=0.1, ema_decay=0.9)
    task = build(job, build_source(job))
    start = snapshot(task)
    for number in range(4):
        step(task, number, number / 10)
    assert moved(task, start) == start.keys() - of_encoder(task, 0, 1, 2)
    assert all(parameter.grad is None for parameter in task.network.encoder.parameters())
    average = task.fitter.averaged.network.state_dict()
    assert all(torch.equal(average[name], start[name]) for name in of_encoder(task, 0, 1, 2))
    assert not any(torch.equal(average[name], start[name]) for name in moved(task, start))
    step(task, 4, 0.5)
    assert moved(task, start) == start.keys()


def test_gradually_the_coarsest_level_is_free_first():
    job = build_job(freeze_encoder=0.6, gradual_unfreezing=True)
    task = build(job, build_source(job))
    for progress, frozen in ((0.0, (0, 1, 2)), (0.2, (0, 1)), (0.4, (0,)), (0.6, ())):
        before = snapshot(task)
        step(task, 0, progress)
        assert moved(task, before) == before.keys() - of_encoder(task, *frozen), progress


def test_frozen_to_the_end_is_never_free():
    job = build_job(freeze_encoder=1.0)
    task = build(job, build_source(job))
    start = snapshot(task)
    step(task, 0, 0.999)
    assert not moved(task, start) & of_encoder(task, 0, 1, 2)


@OPTIMIZERS
def test_depth_decay_reaches_every_parameter_in_every_step(optimizer):
    job = build_job(optimizer=optimizer, depth_decay=0.5, schedule="cosine", momentum=0.0)
    task = build(job, build_source(job))
    for progress in (0.0, 0.5):
        step(task, 0, progress)
        rates = {id(p): group["lr"] for group in task.fitter.optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(task.network.parameters()))
        for distance, stage in enumerate(reversed(task.network.stages)):
            assert {rates[id(p)] for p in stage.parameters()} == {task.learning_rate * 0.5**distance}
        assert task.learning_rate == pytest.approx(0.01 * (1 - progress))


@OPTIMIZERS
def test_a_slower_group_moves_by_its_factor(optimizer):
    """One step from the same gradients: the same direction, as far as the factor says."""
    steps = []
    for decay in (1.0, 0.5):
        job = build_job(optimizer=optimizer, weight_decay=0.0, depth_decay=decay)
        task = build(job, build_source(job))
        set_learning_rate(task.fitter.optimizer, 0.01)
        before = snapshot(task)
        generator = torch.Generator().manual_seed(0)
        for parameter in task.network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        task.fitter.optimizer.step()
        steps.append({name: tensor - before[name] for name, tensor in task.network.state_dict().items()})
    factors = {"encoder.0": 0.5**5, "encoder.2": 0.5**3, "decoder.1": 0.5**2, "decoder.0": 0.5, "heads.1": 1}
    for prefix, factor in factors.items():
        for name in steps[0]:
            if name.startswith(prefix):
                assert torch.allclose(steps[1][name], factor * steps[0][name], atol=1e-7), name


@OPTIMIZERS
def test_it_goes_on_from_its_state_without_the_model_it_started_from(optimizer):
    """Stopped while frozen, and once more when partly free: as if never interrupted."""
    job = build_job(
        optimizer=optimizer, freeze_encoder=0.5, gradual_unfreezing=True, depth_decay=0.7, ema_decay=0.9
    )
    straight = build(job, build_source(job))
    torch.manual_seed(3)  # dropout's
    for number in range(8):
        step(straight, number, number / 8)
    resumed = build(job, build_source(job))
    torch.manual_seed(3)
    for number in range(8):
        if number in (2, 3):
            state, random = copy.deepcopy(resumed.state_dict()), torch.get_rng_state()
            resumed = build(job, None)
            resumed.load_state_dict(state)
            torch.set_rng_state(random)
        step(resumed, number, number / 8)
    for one, other in (
        (straight.network, resumed.network),
        (straight.fitter.averaged.network, resumed.fitter.averaged.network),
    ):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_average_starts_at_the_model():
    job = build_job(ema_decay=0.9)
    source = build_source(job)
    task = build(job, source)
    assert all(torch.equal(tensor, source.weights[name]) for name, tensor in task.weights().items())


@OPTIMIZERS
def test_more_channels_and_other_labels_train(optimizer):
    job = build_job(optimizer=optimizer, depth_decay=0.8)
    contract = LabelContract({"background": 0, "lesion": 1, "core": 2, "shell": 3})
    source = build_source(job, inputs=(0, None), outputs=(0, None, 2, 1))
    task = build(job, source, contract, num_channels=2)
    before = snapshot(task)
    losses = [float(step(task, 0, 0.0, num_channels=2)["training/loss"]) for _ in range(8)]
    assert losses[-1] < losses[0] and moved(task, before) == before.keys()


def test_what_does_not_fit_is_as_initialised_with_the_seed():
    job = build_job(seed=5)
    task, fresh = build(job, build_source(job, outputs=(0, None, None))), build(job, None)
    for name, tensor in fresh.network.state_dict().items():
        ours = task.network.state_dict()[name]
        if name.startswith("heads."):
            assert torch.equal(ours[1:], tensor[1:])
        else:
            assert tensor.ndim == 1 or not torch.equal(ours, tensor)


def test_a_rehearsal_takes_the_memory_of_a_step_with_nothing_frozen():
    job = build_job(freeze_encoder=0.5)
    task = build(job, build_source(job))
    reached = []
    for parameter in task.network.parameters():
        parameter.register_hook(lambda gradient: reached.append(gradient.shape))
    task.rehearse(draw(task, 0))
    assert len(reached) == len(list(task.network.parameters()))
