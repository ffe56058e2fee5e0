"""Blended scores are those of MONAI, and do not depend on how a volume was cut or what memory there was."""

import math
import threading
import time
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import nn

from pipeline.inference.budget import Work
from pipeline.inference.sliding_window import sweep
from pipeline.inference.window_runner import WindowRunner
from pipeline.inference.windows import Windows, lay_windows, space_evenly, space_stepwise, weigh_voxels
from pipeline.memory import is_out_of_memory

CPU = torch.device("cpu")


def context(dims=3, channels=1, outputs=3, seed=0):
    torch.manual_seed(seed)
    kind = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(kind(channels, 4, 3, padding=1), nn.ReLU(), kind(4, outputs, 3, padding=1))


def monai_windows(shape, size, overlap):
    """Windows where MONAI has them: the last of an axis moved back, padding split before and behind."""
    padded = [max(n, w) for n, w in zip(shape, size, strict=True)]
    steps = [w if w == n else max(1, int(w * (1 - overlap))) for n, w in zip(padded, size, strict=True)]
    places = [[part.start for part in place] for place in dense_patch_slices(padded, size, steps)]
    before = [max(0, w - n) // 2 for n, w in zip(shape, size, strict=True)]
    starts = [sorted({place[k] - before[k] for place in places}) for k in range(3)]
    return Windows(tuple(shape), tuple(size), tuple(tuple(axis) for axis in starts))


def blend(
    network,
    image,
    windows,
    *,
    parts=1,
    keep=0,
    batch=2,
    lanes=1,
    flipped_axes=(),
    skips_empty=False,
    joins=False,
    mode="gaussian",
):
    """Whole-volume scores from the slabs of a sweep, and the runner."""
    runner = WindowRunner(
        network if isinstance(network, list) else [network],
        windows.size,
        flipped_axes=flipped_axes,
        batch_size=batch,
        num_lanes=lanes,
        skips_empty=skips_empty,
        joins=joins,
        device=CPU,
    )
    work = Work(windows, 3, (keep, keep, keep), normalises=True)
    scores = None
    with torch.inference_mode():
        for box in work.boxes(parts):
            for block in sweep(
                runner,
                image,
                windows,
                weigh_voxels(windows.size, mode, CPU),
                box=box,
                axis=work.axis,
                keep=keep,
                normalises=True,
            ):
                if scores is None:
                    scores = torch.full((len(block.scores), *windows.shape), math.nan)
                place = tuple(
                    slice(first, first + size)
                    for first, size in zip(block.origin, block.scores.shape[1:], strict=True)
                )
                scores[(slice(None), *place)] = block.scores
    return scores, runner


VOLUMES = st.tuples(*[st.integers(1, 12)] * 3)
SIZES = st.tuples(*[st.sampled_from([4, 5, 8])] * 3)


@settings(max_examples=40)
@given(
    shape=VOLUMES,
    size=SIZES,
    overlap=st.sampled_from([0, 0.25, 0.5, 0.7]),
    outputs=st.integers(1, 5),
    parts=st.integers(1, 4),
    keep=st.integers(0, 1),
    batch=st.integers(1, 9),
    lanes=st.integers(1, 3),
    mode=st.sampled_from(["gaussian", "constant"]),
)
def test_equals_monai(shape, size, overlap, outputs, parts, keep, batch, lanes, mode):
    network, image = context(outputs=outputs), torch.randn(1, *shape)
    windows = monai_windows(shape, size, overlap)
    with torch.inference_mode():
        expected = SlidingWindowInferer(size, 2, overlap, mode)(image[None], network)[0]
    parts = min(parts, Work(windows, 3, (keep, keep, keep), normalises=True).most_parts)
    scores, _ = blend(network, image, windows, parts=parts, keep=keep, batch=batch, lanes=lanes, mode=mode)
    assert torch.allclose(scores, expected, atol=1e-5)
    if outputs > 1:
        top = expected.topk(2, dim=0).values
        is_clear = top[0] - top[1] > 1e-5
        assert torch.equal(scores.argmax(0)[is_clear], expected.argmax(0)[is_clear])
        assert is_clear.float().mean() > 0.99


@settings(max_examples=20)
@given(shape=VOLUMES, size=SIZES, overlap=st.floats(0, 0.8), parts=st.integers(1, 5), keep=st.integers(0, 1))
def test_however_it_is_cut_the_bits_are_the_same(shape, size, overlap, parts, keep):
    network, image = context(), torch.randn(1, *shape)
    windows = lay_windows(shape, size, overlap)
    whole, _ = blend(network, image, windows, batch=1, keep=keep)
    parts = min(parts, Work(windows, 3, (keep, keep, keep), normalises=True).most_parts)
    cut, _ = blend(network, image, windows, batch=1, parts=parts, keep=keep)
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("shape", [(20, 17, 9), (5, 30, 1), (8, 8, 8)])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("flipped_axes", [(), (0, 1, 2)])
def test_a_voxelwise_network_gives_the_whole_volumes_answer(shape, mode, flipped_axes):
    torch.manual_seed(0)
    network, image = nn.Conv3d(2, 3, 1), torch.randn(2, *shape)
    scores, _ = blend(
        network, image, lay_windows(shape, (8, 8, 8), 0.4), mode=mode, flipped_axes=flipped_axes
    )
    assert torch.allclose(scores, network(image[None])[0], atol=1e-5)


def sweep_slices(network, image, axis, batch):
    windows = lay_windows(tuple(image.shape[1:]), (8, 8), 0.5)
    runner = WindowRunner(
        [network], (8, 8), flipped_axes=(), batch_size=batch, num_lanes=2, skips_empty=False, device=CPU
    )
    weights = weigh_voxels((8, 8), "gaussian", CPU)
    box = tuple((0, n) for n in windows.shape)
    with torch.inference_mode():
        blocks = sweep(runner, image, windows, weights, box=box, axis=axis, keep=0, normalises=True)
        return torch.cat([block.scores.clone() for block in blocks], dim=1 + axis)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_for_slices_predicts_every_slice_alone(axis):
    network, image = context(dims=2), torch.randn(1, 20, 12, 4)
    with torch.inference_mode():
        inferer = SlidingWindowInferer((8, 8), 1, 0.5, "gaussian")
        expected = torch.stack([inferer(image[None, ..., k], network)[0] for k in range(4)], dim=-1)
    assert torch.allclose(sweep_slices(network, image, axis, batch=3), expected, atol=1e-5)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 8, 16])
@pytest.mark.parametrize("flipped_axes", [(0, 1, 2), (1,)])
def test_flips_are_the_mean_over_all_copies_mirrored_along_those_axes(flipped_axes, batch, lanes):
    network, image = context(), torch.randn(1, 8, 8, 8)
    windows = lay_windows((8, 8, 8), (8, 8, 8), 0.5)
    scores, _ = blend(network, image, windows, flipped_axes=flipped_axes, batch=batch, lanes=lanes)
    with torch.inference_mode():
        axes = [some for n in range(4) for some in combinations(flipped_axes, n)]
        copies = [
            network(image.flip([a + 1 for a in some])[None])[0].flip([a + 1 for a in some]) for some in axes
        ]
    assert torch.allclose(scores, torch.stack(copies).mean(0), atol=1e-6)


class Scarce(nn.Module):
    """A network with memory for `limit` windows, from the given call on for fewer."""

    def __init__(self, inner, limits):
        super().__init__()
        self.inner, self.limits, self.largest = inner, limits, []

    def forward(self, windows):
        limit = self.limits[min(len(self.largest), len(self.limits) - 1)]
        if len(windows) > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")
        self.largest.append(len(windows))
        return self.inner(windows)


@pytest.mark.parametrize("flipped_axes", [(), (0, 1, 2)])
def test_running_out_of_memory_on_the_way_halves_the_batch_and_changes_no_label(flipped_axes):
    network, image = context(), torch.randn(1, 20, 9, 11)
    windows = lay_windows((20, 9, 11), (8, 8, 8), 0.5)
    plain, _ = blend(network, image, windows, flipped_axes=flipped_axes, batch=8)
    scarce = Scarce(network, [8, 3, 3, 1])
    scores, runner = blend(scarce, image, windows, flipped_axes=flipped_axes, batch=8)
    assert torch.allclose(scores, plain, atol=1e-6)
    assert torch.equal(scores.argmax(0), plain.argmax(0))
    assert runner.batch_size == 1
    assert scarce.largest[0] == 8


class Narrow(nn.Module):
    """A network with memory for one pass at a time, which it learns when two have begun."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.num_running, self.most_running = inner, 0, 0
        self.both_run = threading.Barrier(2)

    def forward(self, windows):
        self.num_running += 1
        try:
            if self.most_running < 2:
                self.both_run.wait(timeout=60)
                self.most_running = 2
                raise torch.OutOfMemoryError("no room for two")
            assert self.num_running == 1
            return self.inner(windows)
        finally:
            self.num_running -= 1


def test_what_does_not_fit_side_by_side_goes_on_one_after_the_other():
    network, image = context(), torch.randn(1, 20, 9, 11)
    windows = lay_windows((20, 9, 11), (8, 8, 8), 0.5)
    plain, _ = blend(network, image, windows, batch=1)
    scores, runner = blend(Narrow(network), image, windows, batch=1, lanes=2)
    assert torch.equal(scores, plain)
    assert runner.num_lanes == 1


def test_of_many_lanes_none_of_which_fits_every_pass_is_done_alone():
    network, image = context(), torch.randn(1, 20, 9, 11)
    windows = lay_windows((20, 9, 11), (8, 8, 8), 0.5)

    def alone(windows):
        if threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("no room beside others")
        return network(windows)

    plain, _ = blend(network, image, windows, batch=1)
    scores, runner = blend(alone, image, windows, batch=1, lanes=4)
    assert torch.equal(scores, plain)
    assert runner.num_lanes == 1


def test_lanes_are_given_up_where_their_scores_have_to_wait():
    image, windows = torch.randn(1, 8, 8, 60), lay_windows((8, 8, 60), (8, 8, 8), 0.5)

    def run(network, pause):
        settings = {"flipped_axes": (), "batch_size": 1, "skips_empty": False, "device": CPU}
        runner = WindowRunner([network], windows.size, num_lanes=2, **settings)
        starts = windows.along(2, tuple((0, n) for n in windows.shape))
        scores = []
        for _, some in runner.run(image, windows, starts):
            time.sleep(pause)
            scores.append(some)
        return runner.num_lanes, torch.stack(scores)

    def slow(batch):
        time.sleep(0.02)
        return 2 * batch

    assert windows.num > 8
    lanes, hurried = run(lambda batch: 2 * batch, pause=0.02)
    assert lanes == 1
    lanes, waited = run(slow, pause=0)
    assert lanes == 2 and torch.equal(hurried, waited)


def test_lanes_share_the_threads_and_give_them_back():
    before = torch.get_num_threads()
    seen = []

    def network(windows):
        time.sleep(0.005)  # or lanes would be given up
        seen.append((threading.current_thread(), torch.get_num_threads()))
        return windows

    torch.set_num_threads(4)
    try:
        blend(network, torch.randn(1, 20, 9, 11), lay_windows((20, 9, 11), (8, 8, 8), 0.5), batch=1, lanes=2)
        assert {number for _, number in seen} == {2}
        assert threading.main_thread() not in {thread for thread, _ in seen}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_not_even_one_window_is_an_error_of_its_own():
    windows = lay_windows((8, 8, 8), (8, 8, 8), 0.5)
    with pytest.raises(torch.OutOfMemoryError):
        blend(Scarce(context(), [0]), torch.randn(1, 8, 8, 8), windows)


def test_other_errors_are_not_taken_for_lack_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    windows = lay_windows((8, 8, 8), (8, 8, 8), 0.5)
    with pytest.raises(RuntimeError, match="channels"):
        blend(context(channels=2), torch.randn(1, 8, 8, 8), windows)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("flipped_axes", [(), (0, 1, 2)])
def test_skipping_empty_windows_changes_nothing(lanes, flipped_axes):
    image = torch.zeros(1, 40, 8, 8)
    image[:, 16:24] = torch.randn(1, 8, 8, 8)
    image[:, 32:] = 3
    windows = lay_windows((40, 8, 8), (8, 8, 8), 0.5)
    plain, _ = blend(context(), image, windows, batch=1, flipped_axes=flipped_axes)
    scores, runner = blend(
        context(), image, windows, batch=1, lanes=lanes, flipped_axes=flipped_axes, skips_empty=True
    )
    assert torch.equal(scores, plain)
    assert runner.num_skipped == 3  # at 0, 4 and 8 all is 0, at 28 it is mixed, at 32 all is 3


@given(size=st.integers(1, 200), window=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_windows_cover_an_axis_evenly_and_are_no_more_than_needed(size, window, overlap):
    starts = space_evenly(size, window, overlap)
    if size <= window:
        assert starts == (-((window - size) // 2),)
        return
    gaps = [second - first for first, second in pairwise(starts)]
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert max(gaps) - min(gaps) <= 1
    assert max(gaps) <= max(1, math.ceil(window * (1 - overlap)))
    assert len(starts) == math.ceil((size - window) / max(1.0, window * (1 - overlap))) + 1


@pytest.mark.parametrize("size", [5, 16, 17, 24, 30, 47])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_steps_are_monais(size, overlap):
    from monai.data.utils import dense_patch_slices

    padded = max(size, 16)
    interval = 16 if padded == 16 else max(1, int(16 * (1 - overlap)))
    theirs = [place.start for (place,) in dense_patch_slices((padded,), (16,), (interval,))]
    pad = (padded - size) // 2
    assert list(space_stepwise(size, 16, overlap)) == [start - pad for start in theirs]
