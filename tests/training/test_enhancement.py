"""The enhancement tasks: what a step learns, what it leaves alone, and that a state is the whole of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import EnhancementJob, load_job
from pipeline.data.batches import Batch
from pipeline.data.cases import Case
from pipeline.data.enhancement_images import EnhancementImage
from pipeline.errors import ConfigError
from pipeline.training.cyclegan import CycleGANTask
from pipeline.training.enhancement import validate_enhancement
from pipeline.training.supervised import SupervisedEnhancementTask
from transforms.enhancement import Scale
from transforms.keys import SOURCE, TARGET

CONFIG = Path(__file__).parents[2] / "configs/smoke/enhancement.yaml"
FINER = Path(__file__).parents[2] / "configs/smoke/super_resolution.yaml"
CPU = torch.device("cpu")


def make_job(**settings):
    job = load_job(CONFIG, [f"{name.replace('__', '.')}={value}" for name, value in settings.items()])
    assert isinstance(job, EnhancementJob)
    return job


def make_batch(job, seed=0, num_channels=1):
    size = job.training.patch_size
    num_seen = (2 * job.network.neighbours + 1) * num_channels
    drawn = torch.Generator().manual_seed(seed)
    images = [torch.randn(2, num_seen, *size, generator=drawn) for _ in range(2)]
    return Batch({SOURCE: images[0], TARGET: images[1]}, (0, 1))


def step(task, job, number):
    torch.manual_seed(number)
    return task.training_step(make_batch(job, number), number / 10)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norm", ["true", "false"])
def test_a_state_is_all_that_a_training_needs_to_go_on(norm):
    job = make_job(network__spectral_norm=norm, training__pool_size=2)
    straight, first, resumed = (CycleGANTask(job, 1, [], CPU) for _ in range(3))
    for number in range(6):
        losses = step(straight, job, number)
    for number in range(3):
        step(first, job, number)
    resumed.load_state_dict(first.state_dict())
    for number in range(3, 6):
        again = step(resumed, job, number)
    assert same(straight.weights(), resumed.weights()) and same(losses, again)
    assert len(resumed.source_pool.images) == 2


def test_how_thick_slices_are_is_learnt_and_goes_on_where_it_was():
    job = load_job(FINER, ["training.method=cyclegan"])
    straight, first, resumed = (CycleGANTask(job, 1, [], CPU) for _ in range(3))
    for task in straight, first:
        step(task, job, 0)
    resumed.load_state_dict(first.state_dict())
    for task in straight, resumed:
        assert step(task, job, 1)["training/cycle_target"] > 0
    assert same(straight.weights(), resumed.weights())
    assert float(straight.weights()["backward.log_thickness"]) != 0


def test_discriminators_learn_and_generators_do_not_in_their_step():
    job = make_job(training__adversarial_weight="0.0", training__target_cycle_weight="0.0")
    task = CycleGANTask(job, 1, [], CPU)
    before = {name: tensor.clone() for name, tensor in task.generators.state_dict()["networks"][0].items()}
    critic = [parameter.clone() for parameter in task.target_critic.parameters()]
    step(task, job, 0)
    assert same(before, task.generators.state_dict()["networks"][0])  # nothing was asked of it
    assert any(not torch.equal(a, b) for a, b in zip(critic, task.target_critic.parameters(), strict=True))


def test_a_rehearsal_changes_nothing():
    job = make_job()
    task, untouched = CycleGANTask(job, 1, [], CPU), CycleGANTask(job, 1, [], CPU)
    state = torch.get_rng_state()
    task.rehearse(make_batch(job))
    assert torch.equal(state, torch.get_rng_state()) and not task.source_pool.images
    assert same(step(task, job, 1), step(untouched, job, 1))
    assert same(task.weights(), untouched.weights())


def test_every_term_that_counts_is_recorded_and_no_other():
    all_terms = {"identity_weight": "1.0", "variation_weight": "0.1", "source_cycle_weight": "1.0"}
    job = make_job(**{f"training__{name}": value for name, value in all_terms.items()})
    names = set(step(CycleGANTask(job, 1, [], CPU), job, 0))
    sides = {
        f"{term}_{side}"
        for term in ("adversarial", "cycle", "identity", "discriminator")
        for side in ("source", "target")
    }
    judged = {f"judgement_{side}_{kind}" for side in ("source", "target") for kind in ("real", "made")}
    assert names == {f"training/{name}" for name in (*sides, *judged, "variation")}
    job = make_job()
    fewer = set(step(CycleGANTask(job, 1, [], CPU), job, 0))
    assert names - fewer == {
        f"training/{name}" for name in ("identity_source", "identity_target", "variation", "cycle_source")
    }


@pytest.mark.parametrize("noise", [("free", "1"), ("rician", "2"), ("grain", "2")])
@pytest.mark.parametrize("task_type", [CycleGANTask, SupervisedEnhancementTask])
def test_slices_with_neighbours(task_type, noise):
    settings = {"dimensions": "2", "neighbours": "1", "noise": noise[0], "noise_channels": noise[1]}
    job = make_job(
        **{f"network__{name}": value for name, value in settings.items()},
        training__patch_size="[16, 16]",
        augmentation__mirror_axes="[]",
    )
    task = task_type(job, 2, [], CPU)
    batch = make_batch(job, num_channels=2)
    if task_type is SupervisedEnhancementTask:  # the truth is of the slice alone
        batch = Batch({SOURCE: batch.tensors[SOURCE], TARGET: batch.tensors[TARGET][:, 2:4]}, (0, 1))
    losses = task.training_step(batch, 0.0)
    assert all(loss.isfinite() for loss in losses.values())
    assert {tuple(image.shape) for image in task.render(batch).values()} == {(2, 2, 16, 16)}


def test_rician_noise_needs_to_know_where_nothing_is():
    with pytest.raises(ConfigError, match="rician needs to know where 0 is"):
        make_job(preprocessing__normalisation="zscore")


def test_what_is_learnt_from_pairs_is_in_the_unit_of_the_truth_already():
    with pytest.raises(ConfigError, match=r"truth's own unit already; set it to input"):
        make_job(training__method="supervised", inference__intensities="target")


def test_flips_cost_nothing_while_it_trains():
    job = make_job(inference__window_size="[16, 16, 16]")
    seen = []

    class Counted(torch.nn.Module):
        def forward(self, windows):
            seen.append(len(windows))
            return windows

    image = torch.rand(1, 16, 16, 16)
    case = EnhancementImage(Case("a", "a", ()), image, image + 1, (Scale(0.0, 1.0),), np.eye(4), 1.0)
    told = []
    for flips in (False, True):
        section = job.inference.model_copy(update={"flips": flips})
        validate_enhancement(Counted(), job.model_copy(update={"inference": section}), [case], CPU)
        told.append(sum(seen))
    assert told == [1, 2]


def test_a_constant_truth_judges_nothing():
    job = make_job(inference__window_size="[16, 16, 16]")
    image = torch.rand(1, 16, 16, 16)

    def case(truth):
        return EnhancementImage(Case("a", "a", ()), image, truth, (Scale(0.0, 1.0),), np.eye(4), 1.0)

    known, level, unknown = case(image.flip(1)), case(torch.full_like(image, 7)), case(None)
    alone = validate_enhancement(torch.nn.Identity(), job, [known], CPU)
    assert alone == validate_enhancement(torch.nn.Identity(), job, [level, unknown, known], CPU)
    assert validate_enhancement(torch.nn.Identity(), job, [level, unknown], CPU) == {}


def test_regression_comes_closer_to_the_truth():
    job = make_job(training__learning_rate="0.01")
    task = SupervisedEnhancementTask(job, 1, [], CPU)
    clean = torch.ones(2, 1, 16, 16, 16) * torch.linspace(-1, 1, 16)
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch({SOURCE: noisy, TARGET: clean}, (0, 1))
    losses = [float(task.training_step(batch, 0.0)["training/loss"]) for _ in range(20)]
    assert losses[0] == pytest.approx(float((noisy - clean).abs().mean()))  # it begins as the identity
    assert losses[-1] < 0.7 * losses[0]
