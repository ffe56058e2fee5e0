"""Labels on the patient's grid are those of scores resampled whole, within the memory that was allowed."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import InferenceSection, NetworkSection
from pipeline.errors import IntegrityError, ResourceError
from pipeline.inference.labelling import Labeller
from pipeline.inference.windows import lay_windows, weigh_voxels
from pipeline.labels import LabelContract
from pipeline.memory import measure_peak, resident_bytes
from pipeline.networks import build_network
from pipeline.networks.blocks import Pointwise
from pipeline.volume import Grid
from transforms.laterality import Laterality
from transforms.postprocessing import Decision, label_map_on_grid
from transforms.preprocessing import Prepared

CPU = torch.device("cpu")


def contract(num_labels):
    return LabelContract({"background": 0} | {f"organ{n}": n for n in range(1, num_labels)})


def network(num_labels, features=(4, 6), seed=3):
    torch.manual_seed(seed)
    section = NetworkSection(features=features, deep_supervision=False)
    built = build_network(section, 1, num_labels)
    torch.nn.init.normal_(built.head.bias)
    return built.eval()


def labeller(num_labels, window=(8, 8, 8), features=(4, 6), networks=None, **settings):
    return Labeller(
        networks or [network(num_labels, features)],
        contract(num_labels),
        InferenceSection(**settings),
        window,
        CPU,
        mixed_precision=True,
    )


def whole_scores(net, image, window, overlap):
    """Scores of the whole volume, blended plainly in double precision."""
    windows = lay_windows(tuple(image.shape[1:]), window, overlap)
    weights = weigh_voxels(window, "gaussian", CPU).double()
    padded = torch.nn.functional.pad(image, [n for w in reversed(window) for n in (w, w)])
    total, share = 0, 0
    for start in windows.along(0, tuple((0, n) for n in windows.shape)):
        place = tuple(slice(s + w, s + 2 * w) for s, w in zip(start, window, strict=True))
        with torch.inference_mode():
            logits = net(padded[(slice(None), *place)][None])[0].double()
        if isinstance(total, int):
            total = torch.zeros(len(logits), *padded.shape[1:], dtype=torch.float64)
            share = torch.zeros(padded.shape[1:], dtype=torch.float64)
        total[(slice(None), *place)] += logits * weights
        share[place] += weights
    inner = tuple(slice(w, w + n) for w, n in zip(window, image.shape[1:], strict=True))
    return (total[(slice(None), *inner)] / share[inner]).float()


@settings(max_examples=12)
@given(
    shape=st.tuples(*[st.integers(2, 13)] * 3),
    spacing=st.tuples(*[st.sampled_from([1.0, 0.5, 0.7, 1.9])] * 3),
    num_labels=st.sampled_from([2, 4, 5, 11]),
    max_memory=st.booleans(),
)
def test_equals_resampling_all_scores_then_deciding(shape, spacing, num_labels, max_memory):
    image = torch.randn(1, *shape)
    target = tuple(max(1, round((n - 1) / mm) + 1) for n, mm in zip(shape, spacing, strict=True))
    grid = Grid(target, np.diag([*spacing, 1.0]))
    made = labeller(num_labels, overlap=0.5)
    label_map = made.label(Prepared(image, np.eye(4)), grid, 2**34 if max_memory else None)
    scores = whole_scores(network(num_labels), image, (8, 8, 8), 0.5)
    decision = Decision(tuple(range(num_labels)))
    expected = label_map_on_grid(scores, np.eye(4), target, grid.affine, decision)
    is_clear = np.ones(target, dtype=bool)
    if num_labels > 1:  # where the two best are as good as equal, rounding decides
        best = label_map_on_grid(scores + 0, np.eye(4), target, grid.affine, decision)
        noise = 1e-5 * torch.randn_like(scores)
        for sign in (1, -1):
            shaken = label_map_on_grid(scores + sign * noise, np.eye(4), target, grid.affine, decision)
            is_clear &= shaken == best
    assert np.mean(~is_clear) < 0.02
    assert np.array_equal(label_map.array[is_clear], expected[is_clear])
    assert label_map.array.flags.f_contiguous


def test_the_head_comes_last_where_there_are_fewer_features_than_classes():
    few, many = labeller(4), labeller(11)
    image = Prepared(torch.randn(1, 12, 12, 12), np.eye(4))
    grid = Grid((12, 12, 12), np.eye(4))
    assert few.label(image, grid).plan.buffer_bytes == 4 * 4 * 8 * 12 * 12
    assert many.label(image, grid).plan.buffer_bytes == 4 * (4 + 1) * 8 * 12 * 12  # not 11


@pytest.mark.parametrize("num_labels", [3, 11])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_with_flips_a_mirrored_patient_gets_the_mirrored_answer_with_sides_exchanged(num_labels, axis):
    """Whatever the network is, for the mean over all copies is symmetric; with few features as well."""
    pairs = range(1, num_labels, 2)
    laterality = Laterality(axis, (0, *(label for odd in pairs for label in (odd + 1, odd))))
    undecided = network(num_labels)
    torch.nn.init.zeros_(undecided.head.bias)
    made = Labeller(
        [undecided],
        contract(num_labels),
        InferenceSection(),
        (8, 8, 8),
        CPU,
        mixed_precision=True,
        flipped_axes=(0, 1, 2),
        laterality=laterality,
    )
    generator = torch.Generator().manual_seed(0)
    image, grid = torch.randn(1, 8, 8, 8, generator=generator), Grid((8, 8, 8), np.eye(4))
    plain = made.label(Prepared(image, np.eye(4)), grid).array
    mirrored = made.label(Prepared(image.flip(axis + 1), np.eye(4)), grid).array
    exchanged = np.array(laterality.partners)[plain]
    expected = np.flip(exchanged, axis)
    assert np.mean(mirrored != expected) < 0.01  # where two labels are as good as equal, rounding decides
    assert not np.array_equal(exchanged, plain)


def test_scores_that_are_no_numbers_are_never_written_as_background():
    damaged = network(3)
    with torch.no_grad():
        damaged.head.bias[1] = float("nan")
    made = labeller(3, networks=[damaged])
    with pytest.raises(IntegrityError, match="not numbers"):
        made.label(Prepared(torch.randn(1, 8, 8, 8), np.eye(4)), Grid((8, 8, 8), np.eye(4)))


def test_a_budget_that_cannot_be_kept_is_refused_before_any_work_with_the_least_that_would_do():
    image, grid = Prepared(torch.randn(1, 30, 30, 30), np.eye(4)), Grid((30, 30, 30), np.eye(4))
    with pytest.raises(ResourceError, match=r"the least that would do is [\d.]+ [MG]iB"):
        labeller(3).label(image, grid, 100 * 2**20)
    with pytest.raises(ResourceError, match="largest components"):
        labeller(3, largest_component=("organ1",)).label(image, grid, 100 * 2**20)


LIMITED = """
import resource, sys, threading, time
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_labelling import labeller
from pipeline.memory import resident_bytes
from pipeline.volume import Grid
from transforms.preprocessing import Prepared

torch.manual_seed(0)
torch.set_num_threads(2)
shape = (96, 80, 32)
image, grid = Prepared(torch.randn(1, *shape), np.eye(4)), Grid(shape, np.eye(4))
settings = {"window": (32, 32, 32), "features": (24, 24)}
small = Prepared(torch.randn(1, 32, 32, 32), np.eye(4))
made = labeller(24, **settings)
made.label(small, Grid((32, 32, 32), np.eye(4)), 2**40)  # libraries are loaded, the window is measured
is_cut = sys.argv[2] == "cut"
torch.set_num_threads(1 if is_cut else 2)  # one lane, or two
def stop(plan):
    global budget
    budget = plan.expected_bytes + (-plan.buffer_bytes // 3 if is_cut else 4 * 2**20)
    raise InterruptedError
for _ in range(5):  # what is taken before the first window has settled by then
    try:
        made.label(image, grid, 2**40, stop)
    except InterruptedError:
        pass
torch.set_num_threads(2)
stacks = 0 if is_cut else 16 * 2**20
plans = []
look = plans.append
data = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmData:")) * 1024
_, hard = resource.getrlimit(resource.RLIMIT_DATA)
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], resident_bytes())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
resource.setrlimit(resource.RLIMIT_DATA, (data + budget - resident_bytes() + stacks, hard))
limited = made.label(image, grid, budget, look).array
assert peak[0] <= budget, (peak[0], budget)
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
free = made.label(image, grid, None, look).array
assert [len(plan.boxes) > 1 for plan in plans] == [is_cut, False], plans
assert plans[0].num_lanes == (1 if is_cut else 2), plans
assert np.array_equal(limited, free) and len(np.unique(free)) > 3
"""


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["cut", "two lanes"])
def test_a_budget_is_kept_under_a_hard_limit_and_changes_no_label(request, budget):
    command = [sys.executable, "-c", LIMITED, str(request.path.parent), budget]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


class Ready(torch.nn.Module):
    """A network that takes no time: its logits are ready-made."""

    def __init__(self, num_labels, window):
        super().__init__()
        self.head = Pointwise(num_labels, num_labels)
        self.logits = torch.rand(1, num_labels, *window)

    def forward(self, windows):
        return self.logits.repeat(len(windows), 1, 1, 1, 1)


def test_parts_of_a_volume_are_never_in_memory_together():
    window, shape = (32, 32, 32), (96, 160, 128)
    ready = Ready(96, window)
    made = Labeller([ready], contract(96), InferenceSection(), window, CPU, mixed_precision=True)
    image, grid = Prepared(torch.zeros(1, *shape), np.eye(4)), Grid(shape, np.eye(4))
    made.label(Prepared(image.image[..., :32], np.eye(4)), Grid((96, 160, 32), np.eye(4)), 2**40)
    plans = []

    def look(plan):
        plans.append(plan)
        if len(plans) == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        made.label(image, grid, 2**40, look)
    before = resident_bytes()
    budget = plans[0].expected_bytes - plans[0].buffer_bytes // 3
    peak = measure_peak(lambda: made.label(image, grid, budget, look), CPU)
    assert len(plans[1].boxes) == 2
    assert before + peak <= budget + 2**23
