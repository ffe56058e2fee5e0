"""What a network takes over from another one, tensor by tensor."""

import pytest
import torch

from pipeline.config.segmentation import NetworkSection
from pipeline.networks import build_network
from pipeline.networks.pretrained import Source, load_pretrained

PLAIN = {"features": (4, 6, 8), "dimensions": 2}
IN_ORDER = tuple(range(9))
both_blocks = pytest.mark.parametrize("blocks", ["plain", "residual"])


def network(seed, in_channels=1, out_channels=3, **settings):
    torch.manual_seed(seed)
    return build_network(NetworkSection(**(PLAIN | settings)), in_channels, out_channels)


def start(target, source, inputs=None, outputs=None):
    """Loads `source` into `target`; what became of it, and what the target's tensors were before."""
    num_inputs, num_outputs = next(target.encoder.parameters()).shape[1], len(target.head.weight)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    matched = Source(
        source.state_dict(),
        IN_ORDER[:num_inputs] if inputs is None else inputs,
        IN_ORDER[:num_outputs] if outputs is None else outputs,
    )
    return load_pretrained(target, matched), before


def assert_told_truly(transfer, before, target, source):
    """Every tensor of both is told of once, and is what is told of it."""
    ours, theirs = target.state_dict(), source.state_dict()
    told = [*transfer.loaded, *transfer.adapted, *transfer.new]
    assert sorted(told) == sorted(ours) == sorted(set(told))
    assert set(transfer.unused) == theirs.keys() - {*transfer.loaded, *transfer.adapted}
    assert all(torch.equal(ours[name], theirs[name]) for name in transfer.loaded)
    assert all(torch.equal(ours[name], before[name]) for name in transfer.new)
    assert not any(torch.equal(ours[name], before[name]) for name in transfer.adapted)


@both_blocks
def test_the_same_network_is_taken_over_whole(blocks):
    target, source = network(0, blocks=blocks), network(1, blocks=blocks)
    transfer, before = start(target, source)
    assert_told_truly(transfer, before, target, source)
    assert not transfer.adapted and not transfer.new and not transfer.unused


@both_blocks
@pytest.mark.parametrize(
    ("settings", "new", "unused"),
    [
        ({"features": (4, 6)}, "", "encoder.2 gates.1 ups.1 decoder.1 heads.1"),
        ({"features": (4, 6, 8, 10)}, "encoder.3 gates.2 ups.2 decoder.2 heads.2", ""),
        ({"attention_gates": False}, "", "gates"),
        ({"deep_supervision": False}, "", "heads.1"),
        ({"features": (4, 6, 9)}, "encoder.2 gates.1 ups.1", "encoder.2 gates.1 ups.1"),
        ({"dimensions": 3}, None, None),
    ],
    ids=str,
)
def test_another_shape_takes_what_matches(blocks, settings, new, unused):
    target, source = network(0, blocks=blocks, **settings), network(1, blocks=blocks)
    transfer, before = start(target, source)
    assert_told_truly(transfer, before, target, source)
    if new is None:  # other dimensions: kernels differ, what is flat stays
        kernels = [name for name, tensor in target.state_dict().items() if tensor.ndim > 2]
        assert set(kernels) <= set(transfer.new)
        return
    assert {name for name in transfer.new if not name.startswith(tuple(new.split()))} == set()
    assert {name for name in transfer.unused if not name.startswith(tuple(unused.split()))} == set()
    assert bool(transfer.new) == bool(new) and bool(transfer.unused) == bool(unused)
    assert not transfer.adapted


@both_blocks
@pytest.mark.parametrize(("theirs", "ours"), [(1, 2), (2, 1), (3, 2), (1, 3)])
def test_other_image_channels_that_look_alike_are_answered_alike(blocks, theirs, ours):
    """One image in all channels, whatever their number, gives the model's own answer."""
    target, source = network(0, ours, blocks=blocks), network(1, theirs, blocks=blocks)
    transfer, before = start(target, source, inputs=(None,) * ours)
    assert_told_truly(transfer, before, target, source)
    readers = ["0.weight"] if blocks == "plain" else ["body.0.weight", "shortcut.0.weight"]
    assert sorted(transfer.adapted) == [f"encoder.0.{name}" for name in readers]
    image = torch.randn(1, 1, 16, 16)
    expected = source(image.expand(-1, theirs, -1, -1))
    assert torch.allclose(target(image.expand(-1, ours, -1, -1)), expected, atol=1e-5)


@both_blocks
def test_image_channels_in_another_order_are_answered_alike(blocks):
    target, source = network(0, 2, blocks=blocks), network(1, 2, blocks=blocks)
    transfer, _ = start(target, source, inputs=(1, 0))
    assert all(name.startswith("encoder.0.") for name in transfer.adapted) and not transfer.new
    image = torch.randn(1, 2, 16, 16)
    assert torch.allclose(target(image), source(image.flip(1)), atol=1e-5)


@pytest.mark.parametrize("outputs", [(2, None, 0, None), (None, 1), (0, 1), (2, 1, 0)], ids=str)
def test_heads_take_the_rows_that_mean_the_same(outputs):
    target, source = network(0, 1, len(outputs)), network(1)
    transfer, before = start(target, source, outputs=outputs)
    heads = [f"heads.{level}.{name}" for level in range(2) for name in ("weight", "bias")]
    assert sorted(transfer.adapted) == sorted(heads) and not transfer.new and not transfer.unused
    ours, theirs = target.state_dict(), source.state_dict()
    for name in heads:
        for row, known in enumerate(outputs):
            wanted = before[name][row] if known is None else theirs[name][known]
            assert torch.equal(ours[name][row], wanted)


def test_heads_of_other_labels_stay_as_initialised():
    target, source = network(0), network(1)
    transfer, before = start(target, source, outputs=(None, None, None))
    assert_told_truly(transfer, before, target, source)
    assert {name.split(".")[0] for name in transfer.new} == {"heads"}
    assert set(transfer.new) == set(transfer.unused)
