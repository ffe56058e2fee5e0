"""Several processes learn what one would with the whole batch: here threads, joined by real gloo."""

import socket
import threading
from copy import deepcopy
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.config import ClassificationJob, SegmentationJob
from pipeline.data.cases import Case, read_manifest
from pipeline.data.class_images import ClassImage, ClassSampler
from pipeline.data.class_study import ClassStudy
from pipeline.data.patches import PatchSampler
from pipeline.data.prepared_cases import prepare_cases
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import ConfigError, Stopped
from pipeline.inference.predictor import build_preprocessing
from pipeline.training import distributed
from pipeline.training.classification import ClassificationTask
from pipeline.training.distributed import ALONE, World, join_world
from pipeline.training.loop import fit
from pipeline.training.losses import IGNORED, DeepSupervision, DiceCrossEntropy
from pipeline.training.segmentation import SegmentationTask


def meet(work, size=2):
    """What `work(world)` gives in each of `size` worlds that are connected with each other."""
    store = dist.HashStore()
    results = [None] * size

    def run(rank):
        group = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=60))
        try:
            results[rank] = work(World(rank, size, group))
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_who_finds_no_other_is_told_so(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "1", "WORLD_SIZE": "2"}
    for name, value in (place | {"TORCHELASTIC_RUN_ID": "alone", "LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "_PATIENCE", timedelta(seconds=1))
    with pytest.raises(Stopped, match=r"did not all meet: .+"), join_world():
        pytest.fail("the other does not exist")


def values(results):
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("is_partly", [False, True])
@pytest.mark.parametrize("is_regions", [False, True])
def test_the_loss_and_its_gradient_are_those_of_the_whole_batch(is_regions, is_partly):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 3, n, n, generator=generator) for n in (8, 4)]
    target = torch.randint(0, 3, (4, 8, 8), generator=generator)
    target[2:] = 0  # a structure that only one process sees
    if is_regions:
        target = torch.stack([target > k for k in range(3)], dim=1).float()
    target[3, ..., :2] = IGNORED
    labelled = torch.tensor([[True] * 3] * 2 + [[True, False, True]] * 2)  # the first process has all

    def compute(world):
        share = slice(4 // world.size * world.rank, 4 // world.size * (world.rank + 1))
        scale = torch.ones((), requires_grad=True)
        loss = DeepSupervision(DiceCrossEntropy(is_regions=is_regions, has_ignored=True, total=world.total))
        known = labelled[share] if is_partly and not labelled[share].all() else None
        value = loss([level[share] * scale for level in logits], target[share], known)
        value.backward()
        parameter = torch.nn.Parameter(scale.detach())
        parameter.grad = scale.grad
        world.sum_gradients([parameter])
        return value.detach(), parameter.grad

    value, gradient = compute(ALONE)
    for found, slope in values(meet(compute)):
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(slope, gradient)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    job = build_job(write_phantom_study(folder / "study", num_cases=6), folder / "cache")
    study = read_manifest(job.data)
    chain = build_preprocessing(job.preprocessing, ())
    cases = prepare_cases(study.cases, study.contract, 1, chain, job.data)
    return job, study.contract, cases


def build_job(manifest, cache):
    return SegmentationJob.model_validate(
        {
            "data": {"manifest": manifest, "cache_dir": cache},
            "network": {"features": (4, 8)},
            "training": {
                "epochs": 2,
                "steps_per_epoch": 2,
                "patch_size": (16, 16, 16),
                "optimizer": "muon",
                "learning_rate": 0.01,
                "mixed_precision": False,  # sums in another order differ by less then
                "gradient_clip": 0.5,
                "ema_decay": 0.9,
            },
        }
    )


class Surroundings:
    """Remembers what the loop told it, and asks it to stop before a step, or gives up after an epoch."""

    def __init__(self, last_step=None, last_epoch=None):
        self.metrics, self.state, self.last_step, self.step = [], None, last_step, 0
        self.last_epoch = last_epoch

    def log_metrics(self, values, epoch):
        self.metrics.append(values)

    def save_best(self, metrics, epoch):
        pass

    def save_last(self, state, epoch):
        self.state = deepcopy(state)

    def advance(self, progress, epoch):
        self.step += 1

    def is_given_up(self):
        return len(self.metrics) == self.last_epoch

    def is_stop_requested(self):
        return self.step == self.last_step


def build_task(prepared, world):
    job, contract, cases = prepared
    return SegmentationTask(job, contract, 1, cases[3:], torch.device("cpu"), world=world)


def train(prepared, world, task, *, state=None, last_step=None, last_epoch=None):
    job, _, cases = prepared
    size, share = task.augmentation.source_size, (world.rank, world.size)
    sampler = PatchSampler(cases[:3], (16, 16, 16), size, 4 // world.size, 0.5, 0, share=share)
    surroundings = Surroundings(last_step, last_epoch)
    surroundings.ending = fit(task, sampler, job.training, surroundings, deepcopy(state), world)
    return surroundings


def train_together(prepared, *, state=None, last_step=None, last_epoch=None):
    """Two of them; the second is asked to stop, the first gives up."""
    # Networks are drawn from torch's own generator, which threads share.
    tasks = {rank: build_task(prepared, World(rank, 2)) for rank in range(2)}

    def work(world):
        task = tasks[world.rank]
        task.world = task.fitter.world = world
        task.loss.loss.total = world.total
        asked = {"last_epoch": last_epoch} if world.is_first else {"last_step": last_step}
        return train(prepared, world, task, state=state, **asked)

    return values(meet(work))


def told(surroundings):
    names = ("training/loss", "validation/dice/mean")
    return [[metrics[name] for name in names] for metrics in surroundings.metrics]


def test_they_train_as_one_with_the_whole_batch_does(prepared):
    alone = train(prepared, ALONE, build_task(prepared, ALONE))
    first, second = train_together(prepared)
    assert told(first) == told(second)
    torch.testing.assert_close(torch.tensor(told(first)), torch.tensor(told(alone)), rtol=1e-4, atol=1e-4)
    weights = alone.state["task"]["network"]
    torch.testing.assert_close(first.state["task"]["network"], weights, rtol=1e-3, atol=1e-4)


def test_all_have_the_same_weights_averages_and_moments(prepared):
    first, second = train_together(prepared)
    torch.testing.assert_close(second.state["task"], first.state["task"], rtol=0, atol=0)


def test_one_asked_to_stop_stops_all_and_they_resume_to_the_bit(prepared):
    straight = train_together(prepared)[0]
    stopped = train_together(prepared, last_step=3)
    assert [surroundings.state["position"]["step"] for surroundings in stopped] == [3, 3]
    resumed = train_together(prepared, state=stopped[0].state)[0]
    torch.testing.assert_close(resumed.state["task"], straight.state["task"], rtol=0, atol=0)
    assert told(resumed) == told(straight)[1:]


def test_one_asked_to_stop_after_the_last_step_stops_all_and_nothing_is_left_to_train(prepared):
    stopped = train_together(prepared, last_step=4)
    assert [surroundings.ending for surroundings in stopped] == ["interrupted"] * 2
    resumed = train_together(prepared, state=stopped[0].state)
    assert [(surroundings.ending, surroundings.step) for surroundings in resumed] == [("finished", 0)] * 2


def test_one_that_was_given_up_stays_so_when_it_goes_on(prepared):
    given_up = train_together(prepared, last_epoch=1)
    resumed = train_together(prepared, state=given_up[1].state)
    found = [(surroundings.ending, surroundings.step) for surroundings in given_up + resumed]
    assert found == [("stopped early", 2)] * 2 + [("stopped early", 0)] * 2


def build_classifier(world):
    """Whose images are mixed with each other, and the sampler of its share."""
    images = [
        ClassImage(Case(f"{n}", f"{n}", ()), torch.full((1, 8, 8), float(n)), row, np.eye(4), f"{n}")
        for n, row in enumerate(torch.eye(4))
    ]
    job = ClassificationJob.model_validate(
        {
            "task": "classification",
            "data": {"manifest": "m"},
            "preprocessing": {"size": (8, 8)},
            "network": {"dimensions": 2, "features": (4, 6)},
            "training": {"epochs": 1, "mixup": 0.5, "mixed_precision": False},
        }
    )
    study = ClassStudy((), ("a", "b", "c", "d"), ("image",), is_multi_label=False)
    task = ClassificationTask(job, study, 1, images, [], torch.device("cpu"), world=world)
    share, size = (world.rank, world.size), task.augmentation.source_size
    return task, ClassSampler(images, size, 4 // world.size, is_balanced=False, seed=0, share=share)


def test_samples_are_mixed_as_one_with_the_whole_batch_mixes_them():
    built = {(rank, size): build_classifier(World(rank, size)) for size in (1, 2, 4) for rank in range(size)}

    def work(world):
        task, sampler = built[world.rank, world.size]
        task.world = task.fitter.world = world
        task.loss.total = world.total
        seen = []
        task.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        loss = task.training_step(sampler.draw(0), 0.0)["training/loss"]
        return seen[0], loss

    image, loss = work(ALONE)
    assert not torch.equal(image, image.roll(1, 0))
    for size in (2, 4):
        results = values(meet(work, size))
        assert torch.equal(torch.cat([result[0] for result in results]), image)
        for _, found in results:
            torch.testing.assert_close(found, loss)


def test_what_normalises_over_a_batch_is_trained_in_one_process(prepared):
    job, *others = prepared
    network = {"name": "monai_attention_unet", "arguments": {"channels": [4, 8], "strides": [2]}}
    normalising = SegmentationJob.model_validate(job.model_dump() | {"network": network})
    build_task((normalising, *others), ALONE)
    with pytest.raises(ConfigError, match="one process"):
        build_task((normalising, *others), World(0, 2))


def test_the_first_works_alone_before_the_others():
    order = []

    def work(world):
        with world.first_alone():
            order.append(world.rank)

    values(meet(work, size=3))
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_who_has_another_job_is_found_by_all():
    def work(world):
        world.check_agreement("the job")
        world.check_agreement("another" if world.rank == 1 else "the job")

    assert all(isinstance(result, ConfigError) for result in meet(work, size=3))


def test_who_is_left_by_another_is_stopped():
    def work(world):
        if world.rank == 1:
            world.group.abort()
        else:
            world.wait()

    assert isinstance(meet(work)[0], Stopped)
