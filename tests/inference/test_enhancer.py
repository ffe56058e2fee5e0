"""An enhanced volume is what the network makes of the whole volume at once, in the unit of its image."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch import nn

from pipeline.config import EnhancementJob
from pipeline.errors import InputError, IntegrityError, ResourceError
from pipeline.inference.enhancer import Enhancer
from pipeline.inference.grids import in_axes_of
from pipeline.memory import measure_peak, resident_bytes
from pipeline.volume import Grid, Volume
from transforms.enhancement import Scale

CPU = torch.device("cpu")
SHAPE = (21, 13, 18)


def job(network=None, preprocessing=None, **inference):
    dims = (network or {}).get("dimensions", 3)
    return EnhancementJob.model_validate(
        {
            "task": "enhancement",
            "data": {"manifest": "a", "target": "b"},
            "preprocessing": preprocessing or {},
            "network": {"features": (4, 8), "discriminator_levels": 1, **(network or {})},
            "training": {"epochs": 1, "patch_size": (8,) * dims},
            "augmentation": {"mirror_axes": tuple(range(dims)) if inference.get("flips") else ()},
            "inference": inference,
        }
    )


class Filter(nn.Module):
    """A network without norm that sees three voxels along each axis."""

    def __init__(self, seed=0, inputs=1, outputs=1, dimensions=3):
        super().__init__()
        torch.manual_seed(seed)
        kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.layers = nn.Sequential(kind(inputs, 4, 3, padding=1), nn.ReLU(), kind(4, outputs, 1))

    def forward(self, windows):
        return self.layers(windows)


class Same(nn.Module):
    def forward(self, windows):
        return windows[:, :1]


def volume(shape=SHAPE, affine=None, seed=0):
    """Smooth enough for a scale that is not that of noise."""
    values = np.random.default_rng(seed).normal(300, 80, shape) + 40 * np.indices(shape)[0]
    return Volume(values.astype(np.float32), Grid(shape, np.eye(4) if affine is None else affine))


def enhance(networks, image, made=None, **settings):
    enhancer = Enhancer(made or job(**settings), ["image"], networks, (), CPU)
    scaled = enhancer.prepare("case", [image])
    return enhancer.enhance(scaled, image.grid), scaled


# Windows leave no seams.


@pytest.mark.parametrize("flips", [False, True])
def test_inside_of_a_volume_windows_give_what_the_whole_volume_gives(flips):
    """A window's edge sees 0 where the volume goes on; it hardly counts, for it is the middle of another."""
    network, image = Filter(), volume((48, 16, 16))
    result, scaled = enhance([network], image, window_size=(16, 16, 16), flips=flips)
    mirrored = [axes for n in range(4) for axes in itertools.combinations((1, 2, 3), n)] if flips else [()]
    (scale,) = scaled.scales
    with torch.inference_mode():
        answers = [network(scaled.image.flip(axes)[None])[0].flip(axes)[0] for axes in mirrored]
    expected = (torch.stack(answers).mean(0) * scale.deviation + scale.mean).numpy()
    # Far from a window's other edges: MONAI lets no weight fall below 0.001, so that there all count alike.
    inner = slice(None), slice(6, -6), slice(6, -6)
    assert np.abs(result.images[0] - expected)[inner].max() < 0.01 * expected.std()
    assert np.abs(result.images[0] - expected).max() > 0


def test_a_slice_across_another_axis_is_not_cut_into_lines():
    with pytest.raises(InputError, match="not along S"):
        enhance([Filter(dimensions=2)], volume((1, 12, 10)), job({"dimensions": 2}))


def test_where_windows_are_the_slices_of_a_network_of_two_dimensions_nothing_differs():
    """2.5D: every slice sees its neighbours, also those of other windows."""
    network = Filter(inputs=3, dimensions=2)
    made = job({"dimensions": 2, "neighbours": 1}, window_size=(24, 16))
    image = volume((24, 16, 5))
    result, scaled = enhance([network], image, made)
    assert scaled.image.shape == (3, 24, 16, 5)
    with torch.inference_mode():
        slices = [network(scaled.image[None, ..., k])[0, 0] for k in range(5)]
    (scale,) = scaled.scales
    expected = (torch.stack(slices, -1) * scale.deviation + scale.mean).numpy()
    assert np.allclose(result.images[0], expected, rtol=1e-5, atol=1e-3)


# The unit.


def test_the_scale_of_the_input_is_undone_and_that_of_the_targets_put_in_its_place():
    image = volume()
    kept, _ = enhance([Same()], image)
    assert np.allclose(kept.images[0], image.array, rtol=1e-5, atol=1e-3)
    scales = [(Scale(10.0, 2.0),), (Scale(20.0, 4.0),)]
    enhancer = Enhancer(job(intensities="target"), ["image"], [Same(), Same()], scales, CPU)
    scaled = enhancer.prepare("case", [image])
    made = enhancer.enhance(scaled, image.grid)
    seen = scaled.image[0].numpy()
    assert not enhancer.keeps_unit
    # The mean of what two networks make, each in the unit that it learnt.
    assert np.allclose(made.images[0], 3 * seen + 15, rtol=1e-5, atol=1e-4)
    assert np.allclose(made.deviations[0], np.abs(5 + seen), rtol=1e-3, atol=0.01)


# Uncertainty.


def test_the_deviation_is_that_of_all_mirrored_copies_and_members():
    networks = [Filter(seed) for seed in range(3)]
    image = volume((8, 8, 8))  # one window, so that copies alone differ
    result, scaled = enhance(networks, image, flips=True)
    answers = []
    for network in networks:
        for axes in (c for n in range(4) for c in itertools.combinations((2, 3, 4), n)):
            with torch.inference_mode():
                answers.append(network(scaled.image[None].flip(axes)).flip(axes)[0, 0].double())
    (scale,) = scaled.scales
    mean = torch.stack(answers).mean(0) * scale.deviation + scale.mean
    deviation = torch.stack(answers).std(0, unbiased=False) * scale.deviation
    assert len(answers) == 24
    assert np.allclose(result.images[0], mean.numpy(), rtol=1e-5, atol=1e-3)
    assert np.allclose(result.deviations[0], deviation.numpy(), rtol=1e-3, atol=1e-3 * scale.deviation)
    assert deviation.min() > 0


class Nearly(nn.Module):
    """Changes little, and that a little differently."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, windows):
        return windows + 0.01 + self.step


def test_a_small_spread_is_not_lost_in_large_intensities():
    image = volume()
    image.array[...] += 100_000
    result, scaled = enhance([Nearly(-1e-4), Nearly(1e-4)], image)
    (scale,) = scaled.scales
    assert np.allclose(result.deviations[0], 1e-4 * scale.deviation, rtol=0.2)


def test_answers_that_agree_have_no_deviation_also_between_voxels():
    """Resampled to the input's grid, neighbouring voxels are no answers of one another."""
    result, _ = enhance([Filter(), Filter()], volume(), preprocessing={"spacing": (1.7, 1.0, 0.6)})
    assert not result.deviations[0].any()
    result, _ = enhance([Filter()], volume())
    assert result.deviations == []


# The grid.

ORIENTATIONS = ["RAS", "LPS", "ASR", "ILP", "SRA"]


def stored(codes, shape=SHAPE, spacing=(1.0, 1.5, 2.0), world=lambda x, y, z: 2 * x + 3 * y - z):
    """An image that is a ramp in the patient, stored in an orientation, slightly oblique."""
    tilt = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, 0.02) * spacing, (4, -8, 2))
    places = nib.affines.apply_affine(tilt, np.stack(np.indices(shape), -1))
    image = nib.Nifti1Image(world(*np.moveaxis(places, -1, 0)).astype(np.float32), tilt)
    image = image.as_reoriented(ornt_transform(io_orientation(tilt), axcodes2ornt(codes)))
    return Volume(np.asarray(image.dataobj), Grid(image.shape, image.affine))


def ramp(grid):
    x, y, z = np.moveaxis(nib.affines.apply_affine(grid.affine, np.stack(np.indices(grid.shape), -1)), -1, 0)
    return 2 * x + 3 * y - z


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("spacing", [None, (1.0, 0.75, 0.8)])
def test_every_voxel_lies_where_it_did_in_the_patient(codes, spacing):
    image = stored(codes)
    preprocessing = {"spacing": spacing}
    kept, scaled = enhance([Same()], image, preprocessing=preprocessing)
    assert kept.grid is image.grid
    inner = (slice(2, -2),) * 3
    assert np.abs(kept.images[0] - image.array)[inner].max() < 0.02
    fine, _ = enhance([Same()], image, preprocessing=preprocessing, grid="network")
    assert fine.grid.orientation == image.grid.orientation == codes
    assert sorted(fine.grid.shape) == sorted(scaled.image.shape[1:])
    if spacing is None:
        assert fine.grid.is_close(image.grid, 1e-4)
    else:
        assert sorted(fine.grid.spacing) == pytest.approx(sorted(spacing))
        assert np.prod(fine.grid.shape) > 2 * image.array.size
    assert np.abs(fine.images[0] - ramp(fine.grid))[inner].max() < 0.02


def test_an_axis_that_runs_the_other_way_begins_at_the_other_end():
    grid = Grid((4, 5, 6), np.diag([-1.0, 1, 1, 1]))
    found = in_axes_of(grid, (8, 5, 6), np.diag([0.5, 1, 1, 1]))
    assert found.shape == (8, 5, 6)
    assert np.allclose(found.affine @ [0, 0, 0, 1], [3.5, 0, 0, 1])
    assert np.allclose(found.affine @ [7, 0, 0, 1], [0, 0, 0, 1])


# Noise.


def test_noise_is_that_of_the_case_and_no_windows():
    def prepare(case, **inference):
        made = job({"noise_channels": 2}, **inference)
        enhancer = Enhancer(made, ["image"], [Filter(inputs=3)], (), CPU, num_noise=2)
        return enhancer.prepare(case, [volume()]).image

    one = prepare("a")
    assert one.shape == (3, *SHAPE)
    assert torch.equal(one, prepare("a", window_size=(16, 16, 16)))
    assert torch.equal(one[:1], prepare("b")[:1]) and not torch.equal(one[1:], prepare("b")[1:])
    assert abs(float(one[1:].mean())) < 0.05 and abs(float(one[1:].std()) - 1) < 0.05


# What can go wrong.


def test_what_is_not_a_number_is_an_error():
    broken = Filter()
    with torch.no_grad():
        broken.layers[0].weight[:] = float("nan")
    with pytest.raises(IntegrityError, match="not numbers"):
        enhance([broken], volume())


def test_a_budget_is_kept_and_changes_no_voxel_or_is_refused():
    shape = (32, 200, 160)
    image = volume(shape)
    made, networks = job(window_size=(32, 32, 32)), [Filter(0), Filter(1)]
    enhancer = Enhancer(made, ["image"], networks, (), CPU, 2**40)
    scaled = enhancer.prepare("case", [image])
    plans = []
    free = enhancer.enhance(scaled, image.grid, plans.append)
    del enhancer
    before = resident_bytes()
    limited = Enhancer(made, ["image"], networks, (), CPU)
    # The result and what writing it takes, one window, and half of the scores.
    limited.max_memory = before + 30 * image.array.size + 48 * 2**20 + plans[0].buffer_bytes // 2 + 2**26
    results = []
    peak = measure_peak(lambda: results.append(limited.enhance(scaled, image.grid, plans.append)), CPU)
    assert before + peak <= limited.max_memory
    assert len(plans[0].boxes) == 1
    assert np.array_equal(results[0].images[0], free.images[0])
    assert np.array_equal(results[0].deviations[0], free.deviations[0])
    limited.max_memory = before + 2**20
    with pytest.raises(ResourceError, match=r"the enhanced image takes [\d.]+ [MG]iB"):
        limited.enhance(scaled, image.grid)
