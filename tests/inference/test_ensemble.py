"""An ensemble's labels are those of the mean of its members' logits, each computed plainly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from pipeline.config import InferenceSection, NetworkSection
from pipeline.errors import Stopped
from pipeline.inference.budget import Memory, Work, make_plan
from pipeline.inference.labelling import Labeller
from pipeline.inference.window_runner import WindowRunner
from pipeline.inference.windows import lay_windows
from pipeline.labels import LabelContract
from pipeline.networks import build_network
from pipeline.volume import Grid
from transforms.preprocessing import Prepared

CPU = torch.device("cpu")
WINDOW = (8, 8, 8)


def build_networks(num_labels, num_networks, features=(4, 6)):
    torch.manual_seed(3)
    section = NetworkSection(features=features, deep_supervision=False)
    networks = [build_network(section, 1, num_labels).eval() for _ in range(num_networks)]
    for network in networks:
        torch.nn.init.normal_(network.head.bias)
    return networks


def build_labeller(networks, num_labels, shares_image=True, flipped_axes=(), before_pass=None, **section):
    contract = LabelContract({"background": 0} | {f"organ{n}": n for n in range(1, num_labels)})
    return Labeller(
        networks,
        contract,
        InferenceSection(**section),
        WINDOW,
        CPU,
        mixed_precision=False,
        flipped_axes=flipped_axes,
        shares_image=shares_image,
        before_pass=before_pass,
    )


def label(labeller, image, sink=None):
    shape = tuple(image.shape[1:])
    return labeller.label(Prepared(image, np.eye(4)), Grid(shape, np.eye(4)), sink=sink)


def mirrored_mean(network):
    def logits(window):
        axes = [[k + 2 for k in range(3) if bits >> k & 1] for bits in range(8)]
        return torch.stack([network(window.flip(some)).flip(some) for some in axes]).mean(0)

    return logits


# Where MONAI, too, spaces its windows evenly.
SIZES = st.tuples(*[st.sampled_from([1, 3, 6, 8, 12])] * 3)


@settings(max_examples=15)
@given(
    shape=SIZES,
    num_labels=st.sampled_from([2, 5, 9, 14]),  # of 4 features each
    num_networks=st.integers(2, 3),
    flips=st.booleans(),
    batch=st.integers(1, 5),
)
def test_labels_are_those_of_the_mean_of_plainly_computed_logits(
    shape, num_labels, num_networks, flips, batch
):
    networks, image = build_networks(num_labels, num_networks), torch.randn(1, *shape)
    inferer = SlidingWindowInferer(WINDOW, 1, 0.5, "gaussian")
    with torch.inference_mode():
        plain = [inferer(image[None], mirrored_mean(net) if flips else net)[0] for net in networks]
    logits = torch.stack(plain).mean(0)
    labeller = build_labeller(networks, num_labels, flipped_axes=(0, 1, 2) if flips else (), batch_size=batch)
    best, second = logits.topk(2, dim=0).values
    is_clear = (best - second > 1e-5).numpy()
    assert is_clear.mean() > 0.97
    assert np.array_equal(label(labeller, image).array[is_clear], logits.argmax(0).numpy()[is_clear])


@pytest.mark.parametrize("num_labels", [3, 7, 14])
def test_the_same_network_twice_is_that_network(num_labels):
    (network,), image = build_networks(num_labels, 1), torch.randn(1, 12, 9, 8)
    found = []
    for networks in ([network], [network, network]):
        probabilities = torch.zeros(num_labels, 12, 9, 8)

        def sink(place, values, probabilities=probabilities):
            probabilities[(slice(None), *place)] = values

        found.append((label(build_labeller(networks, num_labels), image, sink).array, probabilities))
    (array, probabilities), (array_twice, probabilities_twice) = found
    assert torch.allclose(probabilities, probabilities_twice, atol=1e-6)
    assert np.array_equal(array, array_twice)


def test_networks_that_normalise_differently_each_see_their_own_image():
    networks, image = build_networks(3, 2), torch.randn(1, 12, 9, 8)
    other = 2 * image + 1
    with torch.inference_mode():
        singly = [
            SlidingWindowInferer(WINDOW, 1, 0.0, "constant")(own[None, :, :8, :8], net)[0]
            for own, net in zip((image, other), networks, strict=True)
        ]
    labeller = build_labeller(networks, 3, shares_image=False, blending="constant", overlap=0.0)
    found = label(labeller, torch.cat((image, other))[:, :8, :8]).array
    assert np.array_equal(found, torch.stack(singly).mean(0).argmax(0).numpy())


@pytest.mark.parametrize("flipped_axes", [(), (0, 2)])
@pytest.mark.parametrize("joins", [False, True])
def test_neither_lanes_nor_batches_change_what_is_summed(flipped_axes, joins):
    torch.manual_seed(0)
    kernels = torch.randn(3, 2, 1, 1, 1, 1)
    networks = [lambda windows, k=k: torch.nn.functional.conv3d(windows, k) for k in kernels]
    image, windows = torch.randn(1, 20, 9, 11), lay_windows((20, 9, 11), WINDOW, 0.5)

    def run(batch, lanes, **settings):
        settings = {
            "flipped_axes": flipped_axes,
            "joins": joins,
            "skips_empty": False,
            "device": CPU,
        } | settings
        runner = WindowRunner(networks, WINDOW, batch_size=batch, num_lanes=lanes, **settings)
        starts = windows.along(0, tuple((0, n) for n in windows.shape))
        with torch.inference_mode():
            return torch.stack([scores for _, scores in runner.run(image, windows, starts)])

    expected = run(1, 1)
    assert expected.shape[1] == (6 if joins else 2)
    for batch, lanes in ((1, 3), (4, 1), (4, 2), (7, 3)):
        assert torch.equal(run(batch, lanes), expected)


def test_memory_for_two_windows_serves_a_batch_of_eight_of_each_network():
    networks, image = build_networks(3, 2), torch.randn(1, 20, 9, 11)
    windows, largest = lay_windows((20, 9, 11), WINDOW, 0.5), []

    def scarce(network):
        def forward(seen):
            if len(seen) > 2:
                raise torch.OutOfMemoryError("no room")
            largest.append(len(seen))
            return network(seen)

        return forward

    def run(networks, batch, lanes):
        runner = WindowRunner(
            networks,
            WINDOW,
            flipped_axes=(0, 1, 2),
            batch_size=batch,
            num_lanes=lanes,
            skips_empty=False,
            device=CPU,
        )
        starts = windows.along(0, tuple((0, n) for n in windows.shape))
        with torch.inference_mode():
            return torch.stack([scores for _, scores in runner.run(image, windows, starts)]), runner

    expected, _ = run(networks, 8, 1)
    found, runner = run([scarce(network) for network in networks], 8, 3)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (runner.batch_size, max(largest)) == (2, 2)


def test_the_heads_come_last_only_where_all_features_are_fewer_than_the_labels():
    image = torch.randn(1, 12, 12, 12)
    for num_labels, num_networks, num_scores in ((3, 2, 3), (7, 1, 4 + 1), (7, 2, 7), (9, 2, 8 + 1)):
        plan = label(build_labeller(build_networks(num_labels, num_networks), num_labels), image).plan
        assert plan.buffer_bytes == 4 * num_scores * 8 * 12 * 12


def test_scores_that_wait_for_other_networks_are_part_of_the_plan():
    work = [
        Work(lay_windows((64, 64, 64), (32, 32, 32), 0.5), 10, (0, 0, 0), True, num_copies=num)
        for num in (1, 5)
    ]
    memory = Memory(limit=2**30, used=0, per_window=2**20)
    one, five = (make_plan(each, 4, 1, memory) for each in work)
    assert five.expected_bytes - one.expected_bytes == 4 * work[0].window_bytes


@pytest.mark.parametrize(("num_networks", "num_labels"), [(1, 3), (2, 3), (2, 9)])
@pytest.mark.parametrize("num_lanes", [1, 2])
def test_what_is_raised_before_a_pass_ends_the_prediction_there(num_networks, num_labels, num_lanes):
    calls, num_threads = [], torch.get_num_threads()

    def before_pass():
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    networks = build_networks(num_labels, num_networks)
    labeller = build_labeller(networks, num_labels, before_pass=before_pass, batch_size=1)
    torch.set_num_threads(num_lanes)  # as many lanes
    try:
        with pytest.raises(Stopped):
            label(labeller, torch.randn(1, 32, 32, 32))
    finally:
        torch.set_num_threads(num_threads)
    assert 3 <= len(calls) <= 3 + num_lanes
