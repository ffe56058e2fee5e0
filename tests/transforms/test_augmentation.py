"""Each change is what its definition says, belongs to its sample alone, and repeats with its seed."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.config import AugmentationSection
from transforms.augmentation import Augmentation

OFF = {
    f"{name}_probability": 0.0
    for name in ("rotation", "scaling", "noise", "blur", "brightness", "contrast", "gamma")
}


def only(**changes):
    return AugmentationSection(**(OFF | changes))


def source_of(augmentation, num=1, channels=1):
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(num, channels, *augmentation.source_size, generator=generator)
    return image, (image[:, 0] > 0).to(torch.uint8)


def test_nothing_switched_on_is_a_centre_crop():
    augmentation = Augmentation(only(), (8, 10, 6))
    image, label = source_of(augmentation)
    changed, changed_label = augmentation(image, label, [0])
    assert torch.equal(changed, image) and torch.equal(changed_label, label)


def test_a_sample_does_not_depend_on_its_batch():
    augmentation = Augmentation(
        AugmentationSection(rotation_probability=1, noise_probability=1, gamma_probability=1), (8, 10, 6)
    )
    image, label = source_of(augmentation, num=3)
    together = augmentation(image, label, [11, 12, 13])
    alone = augmentation(image[1:2], label[1:2], [12])
    assert torch.equal(together[0][1:2], alone[0]) and torch.equal(together[1][1:2], alone[1])
    assert not torch.equal(augmentation(image, label, [11, 99, 13])[0][1], together[0][1])


def test_image_and_label_move_together():
    augmentation = Augmentation(
        only(rotation_probability=1, scaling_probability=1, mirror_axes=(0, 2)), (24, 24, 24)
    )
    axes = [torch.linspace(-1, 1, n) for n in augmentation.source_size]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    blob = ((x - 0.2) ** 2 + (y + 0.1) ** 2 + z**2 < 0.15).float()
    for seed in range(5):
        image, label = augmentation(blob[None, None], blob[None].to(torch.uint8), [seed])
        assert ((image[0, 0] > 0.5) == (label[0] > 0)).float().mean() > 0.98


def test_rotation_turns_by_the_drawn_angle_in_millimetres():
    """A quarter turn in a plane of 1 mm by 2 mm voxels maps twice as many voxels of one axis to the other."""
    augmentation = Augmentation(only(rotation_probability=1, rotation_degrees=90), (9, 9), spacing=(1.0, 2.0))
    matrix = augmentation._build_matrix([math.pi / 2], 1.0)
    assert torch.allclose(matrix, torch.tensor([[0.0, -2.0], [0.5, 0.0]], dtype=torch.float64), atol=1e-12)


def test_scaling_enlarges_by_the_factor():
    augmentation = Augmentation(only(scaling_probability=1, scaling_range=(2.0, 2.0)), (20, 20, 20))
    image = torch.zeros(1, 1, 20, 20, 20)
    image[..., 7:13, 7:13, 7:13] = 1
    found = augmentation(image, image[:, 0].to(torch.uint8), [0])[1].sum()
    assert found == 12**3


def test_mirroring_flips_the_named_axis_only():
    augmentation = Augmentation(only(mirror_axes=(1,)), (6, 6, 6))
    image, label = source_of(augmentation)
    found = [augmentation(image, label, [seed]) for seed in range(8)]
    flipped = [torch.equal(f[0], image.flip(3)) and torch.equal(f[1], label.flip(2)) for f in found]
    kept = [torch.equal(f[0], image) for f in found]
    assert any(flipped) and any(kept) and all(a or b for a, b in zip(flipped, kept, strict=True))


def test_blur_is_gaussian():
    augmentation = Augmentation(only(blur_probability=1, blur_sigma=(0.8, 0.8)), (12, 14, 10))
    image, label = source_of(augmentation)
    expected = gaussian_filter(image[0, 0].numpy(), 0.8, mode="nearest", radius=3)
    assert torch.allclose(augmentation(image, label, [0])[0][0, 0], torch.from_numpy(expected), atol=1e-5)


def test_brightness_and_contrast_follow_their_definitions():
    image, label = source_of(Augmentation(only(), (6, 6, 6)), channels=2)
    brightness = Augmentation(only(brightness_probability=1, brightness_range=(1.5, 1.5)), (6, 6, 6))
    assert torch.allclose(brightness(image, label, [0])[0], image * 1.5)
    contrast = Augmentation(only(contrast_probability=1, contrast_range=(0.5, 0.5)), (6, 6, 6))
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    assert torch.allclose(contrast(image, label, [0])[0], (image - mean) / 2 + mean, atol=1e-6)


def test_gamma_keeps_mean_deviation_and_order():
    augmentation = Augmentation(only(gamma_probability=1, gamma_range=(1.5, 1.5)), (8, 8, 8))
    image, label = source_of(augmentation)
    changed = augmentation(image, label, [0])[0]
    assert torch.allclose(changed.mean(), image.mean(), atol=1e-5)
    assert torch.allclose(changed.std(), image.std(), atol=1e-5)
    assert torch.equal(changed.flatten().argsort(stable=True), image.flatten().argsort(stable=True))
    assert not torch.allclose(changed, image, atol=1e-2)


def test_noise_has_at_most_the_stated_deviation():
    augmentation = Augmentation(only(noise_probability=1, noise_deviation=0.3), (16, 16, 16))
    image, label = source_of(augmentation)
    added = [(augmentation(image, label, [seed])[0] - image).std() for seed in range(20)]
    assert 0.1 < max(added) < 0.32


@pytest.mark.parametrize("size", [(8, 10), (8, 10, 6)])
def test_no_corner_is_empty(size):
    augmentation = Augmentation(AugmentationSection(rotation_probability=1, scaling_probability=1), size)
    image = torch.ones(1, 1, *augmentation.source_size)
    changed, _ = augmentation(image, image[:, 0].to(torch.uint8), [4])
    assert changed.shape[2:] == size and (changed > 0.5).all()
