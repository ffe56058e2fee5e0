"""Each change is what its definition says, belongs to its sample alone, and repeats with its seed."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from pipeline.config import AugmentationSection
from transforms.augmentation import Augmentation, ChannelDraw, Draw
from transforms.augmentation.drawing import count_points, draw_sample
from transforms.augmentation.spatial import build_matrix, place
from transforms.laterality import Laterality

STEPS = (
    *("rotation", "scaling", "elastic", "noise", "blur", "brightness", "contrast"),
    *("low_resolution", "inverted_gamma", "gamma"),
)
OFF = {f"{name}_probability": 0.0 for name in STEPS}
EVERYTHING = AugmentationSection(**dict.fromkeys(OFF, 1.0), mirror_axes=(0, 1))


def only(**changes):
    return AugmentationSection(**(OFF | changes))


def source_of(augmentation, num=1, channels=1):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(num, channels, *augmentation.source_size, generator=generator)
    return image, (image[:, 0] > 0).to(torch.uint8)


def change(image, **step):
    """One image of no margin after one step of intensity."""
    augmentation = Augmentation(only(), image.shape[2:])
    draws = [Draw(tuple(ChannelDraw(**step) for _ in range(image.shape[1])))]
    return augmentation.apply(image, image[:, 0] > 0, draws)[0]


def move(image, label, settings=None, size=None, spacing=None, **draw):
    """One sample after one change of place, a patch as large as its source if not told otherwise."""
    augmentation = Augmentation(settings or only(), size or label.shape[1:], spacing)
    channels = tuple(ChannelDraw() for _ in range(image.shape[1]))
    return augmentation.apply(image, label, [Draw(channels, **draw)])


def test_nothing_switched_on_is_a_centre_crop():
    augmentation = Augmentation(only(), (8, 10, 6))
    image, label = source_of(augmentation)
    changed, changed_label = augmentation(image, label, [0])
    assert torch.equal(changed, image) and torch.equal(changed_label, label)


@pytest.mark.parametrize("size", [(8, 10), (8, 10, 6)])
def test_a_sample_depends_on_its_seed_alone(size):
    augmentation = Augmentation(EVERYTHING, size)
    image, label = source_of(augmentation, num=3, channels=2)
    together = augmentation(image, label, [11, 12, 13])
    alone = augmentation(image[1:2], label[1:2], [12])
    assert torch.equal(together[0][1:2], alone[0]) and torch.equal(together[1][1:2], alone[1])
    assert not torch.equal(augmentation(image, label, [11, 99, 13])[0][1], together[0][1])


def test_the_source_is_left_as_it_was():
    augmentation = Augmentation(only(gamma_probability=1, brightness_probability=1), (8, 8, 8))
    image, label = source_of(augmentation)
    before = image.clone(), label.clone()
    augmentation(image, label, [1])
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


def test_image_and_label_move_together():
    augmentation = Augmentation(
        only(rotation_probability=1, scaling_probability=1, elastic_probability=1, mirror_axes=(0, 2)),
        (24, 24, 24),
    )
    axes = [torch.linspace(-1, 1, n) for n in augmentation.source_size]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    blob = ((x - 0.2) ** 2 + (y + 0.1) ** 2 + z**2 < 0.15).float()
    for seed in range(5):
        image, label = augmentation(blob[None, None], blob[None].to(torch.uint8), [seed])
        assert ((image[0, 0] > 0.5) == (label[0] > 0)).float().mean() > 0.98


@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2)])
def test_a_quarter_turn_is_rot90(plane):
    image, label = source_of(Augmentation(only(), (8, 8, 8)), channels=2)
    angles = tuple(math.pi / 2 * (plane == other) for other in [(0, 1), (0, 2), (1, 2)])
    turned, turned_label = move(image, label, angles=angles)
    from_end = [axis - 3 for axis in plane]
    assert torch.allclose(turned, torch.rot90(image, -1, from_end), atol=1e-4)
    assert torch.equal(turned_label, torch.rot90(label, -1, from_end))


def test_rotation_turns_by_the_drawn_angle_in_millimetres():
    """A quarter turn in a plane of 1 mm by 2 mm voxels maps twice as many voxels of one axis to the other."""
    matrix = build_matrix([math.pi / 2], 1.0, (1.0, 2.0))
    assert np.allclose(matrix, [[0.0, -2.0], [0.5, 0.0]], atol=1e-12)


def test_scaling_enlarges_by_the_factor():
    augmentation = Augmentation(only(scaling_probability=1, scaling_range=(2.0, 2.0)), (20, 20, 20))
    image = torch.zeros(1, 1, 20, 20, 20)
    image[..., 7:13, 7:13, 7:13] = 1
    found = augmentation(image, image[:, 0].to(torch.uint8), [0])[1].sum()
    assert found == 12**3


@pytest.mark.parametrize("size", [(9, 13), (9, 13, 7)])
def test_resampling_is_that_of_grid_sample(size):
    augmentation = Augmentation(only(rotation_probability=1, elastic_probability=1, mirror_axes=(1,)), size)
    image, label = source_of(augmentation, channels=2)
    drawn = draw_sample(5, augmentation.settings, size, 2)
    sides = label.shape[1:]
    positions = place(drawn, drawn.mirrored, size, sides, (1.0,) * len(size)).along(0, size[0])
    grid = torch.stack([(2 * p + 1) / n - 1 for p, n in zip(positions, sides, strict=True)][::-1], dim=-1)
    changed, changed_label = augmentation.apply(image, label, [drawn])
    for mode, source, found in ("bilinear", image, changed), ("nearest", label[:, None], changed_label[None]):
        expected = F.grid_sample(source.float(), grid[None], mode, "border", align_corners=False)
        assert torch.allclose(found.float(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 12), (10, 12, 14)])
def test_an_elastic_deformation_without_displacement_is_a_crop(size):
    settings = only(elastic_probability=1, elastic_displacement=0.0, scaling_probability=0.5)
    augmentation = Augmentation(settings, size)
    image, label = source_of(augmentation)
    changed, changed_label = move(
        image,
        label,
        settings,
        size,
        displacement=np.zeros((len(size), *(count_points(n, 0.3) for n in size))),
        distance=0.3,
    )
    inner = tuple(
        slice((m - n) // 2, (m + n) // 2) for n, m in zip(size, augmentation.source_size, strict=True)
    )
    assert augmentation.source_size > size
    assert torch.allclose(changed, image[(..., *inner)], atol=1e-4)
    assert torch.equal(changed_label, label[(..., *inner)])


def test_an_elastic_deformation_is_a_cubic_spline_of_its_control_points():
    side, distance = 11, 0.4
    points = count_points(side, distance)
    displacement = np.random.default_rng(0).normal(size=(2, points, points))
    drawn = Draw((), angles=(0.3,), displacement=displacement, distance=distance)
    found = place(drawn, (), (side, side), (side, side), (1.0, 1.0)).along(0, side).numpy()
    knots = np.arange(-3, points + 1) * distance * side
    basis = BSpline.design_matrix(np.arange(side), knots, 3).toarray()
    bent = np.indices((side, side)) - 5 + np.einsum("dab,ia,jb->dij", displacement, basis, basis)
    assert np.allclose(found - 5, np.tensordot(build_matrix((0.3,), 1.0, (1, 1)), bent, 1), atol=1e-4)


def test_an_elastic_deformation_never_folds():
    settings, size = only(elastic_probability=1, elastic_displacement=0.4), (20, 30, 24)
    for seed in range(10):
        drawn = draw_sample(seed, settings, size, 1)
        bounds = np.reshape([0.4 * drawn.distance * n for n in size], (3, 1, 1, 1))
        assert (np.abs(drawn.displacement) <= bounds).all()
        # As far as is allowed, and against its neighbours.
        pattern = [np.indices(drawn.displacement.shape[1:])[axis] % 4 < 2 for axis in range(3)]
        worst = np.where(pattern, bounds, -bounds)
        for displacement in drawn.displacement, worst:
            positions = place(replace(drawn, displacement=displacement), (), size, size, (1.0, 1.0, 1.0))
            slopes = [np.gradient(p) for p in positions.along(0, 20).numpy()]
            assert np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))).min() > 0


def test_mirroring_flips_the_named_axis_only():
    augmentation = Augmentation(only(mirror_axes=(1,)), (6, 6, 6))
    image, label = source_of(augmentation)
    found = [augmentation(image, label, [seed]) for seed in range(8)]
    flipped = [torch.equal(f[0], image.flip(3)) and torch.equal(f[1], label.flip(2)) for f in found]
    kept = [torch.equal(f[0], image) for f in found]
    assert any(flipped) and any(kept) and all(a or b for a, b in zip(flipped, kept, strict=True))


@pytest.mark.parametrize("in_plane", [False, True])
def test_mirroring_within_the_resampling_is_a_flip_after_it(in_plane):
    settings, size, spacing = only(rotation_probability=1, in_plane=in_plane), (8, 6, 10), (3.0, 1.0, 1.0)
    augmentation = Augmentation(settings, size, spacing)
    image, label = source_of(augmentation)
    for num in 1, 2, 3:
        for axes in itertools.combinations(range(3), num):
            angles = (0.4,) if in_plane else (0.4, 0.1, -0.2)
            plain = move(image, label, settings, size, spacing, angles=angles)
            mirrored = move(image, label, settings, size, spacing, angles=angles, mirrored=axes)
            from_end = [axis - 3 for axis in axes]
            assert torch.allclose(mirrored[0], plain[0].flip(from_end), atol=1e-5)
            assert torch.equal(mirrored[1], plain[1].flip(from_end))


@pytest.mark.parametrize("draw", [{}, {"zoom": 1.1}], ids=["cropped", "resampled"])
def test_labels_change_sides_when_left_and_right_do(draw):
    augmentation = Augmentation(only(), (6, 6, 6), laterality=Laterality(axis=1, partners=(0, 2, 1, 3)))
    image, label = torch.zeros(1, 1, 6, 6, 6), torch.randint(0, 5, (1, 6, 6, 6), dtype=torch.uint8)
    plain = augmentation.apply(image, label, [Draw((ChannelDraw(),), **draw)])[1]
    across, along = (
        augmentation.apply(image, label, [Draw((ChannelDraw(),), mirrored=(axis,), **draw)])[1]
        for axis in (1, 2)
    )
    exchanged = torch.tensor([0, 2, 1, 3, 4], dtype=torch.uint8)[plain.long()]
    assert torch.equal(across, exchanged.flip(2)) and torch.equal(along, plain.flip(3))


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_in_plane_every_slice_is_changed_as_one_picture(coarse):
    spacing, size = [1.0, 1.0, 1.0], [12, 12, 12]
    spacing[coarse], size[coarse] = 4.0, 5
    settings = only(rotation_probability=1, scaling_probability=1, elastic_probability=1, in_plane=True)
    augmentation = Augmentation(settings, size, spacing)
    assert augmentation.source_size[coarse] == 5
    image, label = source_of(augmentation, channels=2)
    drawn = draw_sample(7, settings, (12, 12), 2)
    changed, changed_label = augmentation.apply(image, label, [drawn])
    flat = Augmentation(settings.model_copy(update={"in_plane": False}), (12, 12))
    for slice_ in range(5):
        part = flat.apply(image.select(coarse + 2, slice_), label.select(coarse + 1, slice_), [drawn])
        assert torch.allclose(changed.select(coarse + 2, slice_), part[0], atol=1e-5)
        assert torch.equal(changed_label.select(coarse + 1, slice_), part[1])


def test_blur_is_gaussian():
    image, _ = source_of(Augmentation(only(), (12, 14, 10)))
    expected = gaussian_filter(image[0, 0].numpy(), 0.8, mode="nearest", radius=3)
    assert torch.allclose(change(image, blur_sigma=0.8)[0, 0], torch.from_numpy(expected), atol=1e-5)


def test_brightness_and_contrast_follow_their_definitions():
    image, _ = source_of(Augmentation(only(), (6, 6, 6)), channels=2)
    assert torch.allclose(change(image, brightness=1.5), image * 1.5)
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    assert torch.allclose(change(image, contrast=0.25), (image - mean) / 4 + mean, atol=1e-6)


@pytest.mark.parametrize("size", [(10, 12), (10, 12, 14)])
def test_low_resolution_is_nearest_down_and_linear_up(size):
    image, _ = source_of(Augmentation(only(), size))
    few = F.interpolate(image, [n // 2 for n in size], mode="nearest-exact")
    expected = F.interpolate(few, size, mode="trilinear" if len(size) == 3 else "bilinear")
    assert torch.equal(change(image, low_resolution=0.5), expected)


def test_in_plane_the_coarse_axis_keeps_its_resolution():
    augmentation = Augmentation(only(in_plane=True), (10, 12, 6), (1.0, 1.0, 3.0))
    image, label = source_of(augmentation)
    found = augmentation.apply(image, label, [Draw((ChannelDraw(low_resolution=0.5),))])[0]
    for depth in range(6):
        expected = change(image[..., depth], low_resolution=0.5)
        assert torch.allclose(found[..., depth], expected, atol=1e-6)


@pytest.mark.parametrize("step", ["gamma", "inverted_gamma"])
def test_gamma_keeps_mean_deviation_and_order(step):
    image, _ = source_of(Augmentation(only(), (8, 8, 8)))
    changed = change(image, **{step: 1.5})
    assert torch.allclose(changed.mean(), image.mean(), atol=1e-5)
    assert torch.allclose(changed.std(), image.std(), atol=1e-5)
    assert torch.equal(changed.flatten().argsort(stable=True), image.flatten().argsort(stable=True))
    bends_up = changed.mean() - changed.median() > image.mean() - image.median()
    assert bends_up == (step == "gamma")


def test_gamma_leaves_what_is_constant():
    image = torch.full((1, 1, 6, 6, 6), 2.5)
    assert torch.allclose(change(image, gamma=1.4, inverted_gamma=0.8), image)


def test_noise_has_at_most_the_stated_deviation():
    augmentation = Augmentation(only(noise_probability=1, noise_deviation=0.3), (16, 16, 16))
    image, label = source_of(augmentation)
    added = [(augmentation(image, label, [seed])[0] - image).std() for seed in range(20)]
    assert 0.1 < max(added) < 0.32


def test_every_step_happens_as_often_as_its_probability_says():
    settings = AugmentationSection(elastic_probability=0.4, mirror_axes=(0,))
    draws = [draw_sample(seed, settings, (16, 16, 16), 2) for seed in range(3000)]
    happened = [
        (0.2, [drawn.angles for drawn in draws]),
        (0.4, [drawn.displacement for drawn in draws]),
        (0.1, [drawn.noise_deviation for drawn in draws]),
        (0.2 * 0.5, [drawn.channels[1].blur_sigma for drawn in draws]),
        (0.25 * 0.5, [drawn.channels[0].low_resolution for drawn in draws]),
        (0.1, [drawn.channels[1].inverted_gamma for drawn in draws]),
        (0.3, [drawn.channels[1].gamma for drawn in draws]),
        (0.5, [drawn.mirrored or None for drawn in draws]),
    ]
    for probability, found in happened:
        share = sum(value is not None for value in found) / len(found)
        assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / len(found))


@pytest.mark.parametrize("size", [(8, 10), (8, 10, 6)])
def test_no_corner_is_empty(size):
    augmentation = Augmentation(AugmentationSection(rotation_probability=1, scaling_probability=1), size)
    image = torch.ones(1, 1, *augmentation.source_size)
    changed, _ = augmentation(image, image[:, 0].to(torch.uint8), [4])
    assert changed.shape[2:] == size and (changed > 0.5).all()
