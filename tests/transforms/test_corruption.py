"""Each corruption does what its formula says, as much as it is told, and again with the same seed."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import rice

from transforms.corruption import (
    CORRUPTIONS,
    BiasField,
    Blur,
    LowDose,
    Motion,
    RicianNoise,
    ThickSlices,
    corrupt,
)
from transforms.corruption.low_dose import ParallelBeam
from transforms.corruption.motion import Pose, acquire, move

ANISOTROPIC = (1.0, 1.5, 2.0)
NOTHING = [RicianNoise(math.inf), LowDose(1), BiasField(0), Motion(0, 0), Blur(0), ThickSlices(1, axis=1)]
SOMETHING = [RicianNoise(20), LowDose(0.1), BiasField(0.3), Motion(3, 3), Blur(2), ThickSlices(2, axis=1)]
RANDOM = SOMETHING[:4]
SHAPES = [(2, 24, 30), (2, 24, 30, 12)]


def name_of(corruption):
    return type(corruption).__name__


def blobs(shape, width=5.0):
    """A smooth image from 0 to 1000, the same in both channels but for a factor."""
    grids = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape[1:]], indexing="ij")
    total = torch.zeros(shape[1:])
    for share, height in (0.35, 1000.0), (0.6, 700.0):
        squares = sum(((g - share * n) / width) ** 2 for g, n in zip(grids, shape[1:], strict=True))
        total = torch.maximum(total, height * torch.exp(-squares / 2))
    return torch.stack([total * (1 + channel) for channel in range(shape[0])])


def water(size, side, diameter=200.0, slices=0):
    """`(1, size, size[, slices])` in HU, and the distance of every pixel from the centre in mm."""
    places = (torch.arange(size) - (size - 1) / 2) * side
    radius = torch.hypot(places[:, None], places)
    image = torch.where(radius < diameter / 2, 0.0, -1000.0)[None]
    return (image[..., None].repeat(1, 1, 1, slices) if slices else image), radius


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corruption", NOTHING, ids=name_of)
def test_no_strength_is_the_identity(corruption, shape):
    image = blobs(shape)
    assert torch.allclose(corruption(image, ANISOTROPIC[: len(shape) - 1], 1), image, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corruption", SOMETHING, ids=name_of)
def test_type_and_shape_stay_and_so_does_the_original(corruption, shape):
    image = blobs(shape)
    before = image.clone()
    changed = corruption(image, ANISOTROPIC[: len(shape) - 1], 1)
    expected = list(shape)
    if isinstance(corruption, ThickSlices):
        expected[2] //= 2
    assert list(changed.shape) == expected and changed.dtype == torch.float32
    assert torch.equal(image, before) and changed.data_ptr() != image.data_ptr()
    assert changed.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corruption", RANDOM, ids=name_of)
def test_the_seed_decides_and_nothing_else(corruption, shape):
    image, spacing = blobs(shape), ANISOTROPIC[: len(shape) - 1]
    once = corruption(image, spacing, 5)
    torch.manual_seed(77)
    assert torch.equal(corruption(image, spacing, 5), once)
    assert not torch.allclose(corruption(image, spacing, 6), once, atol=0.1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_grade_is_worse_than_the_one_before(name):
    image = blobs((1, 36, 30, 60), width=4.0)
    errors = [0.0]
    for corruption in CORRUPTIONS[name]:
        changed = corruption(image, ANISOTROPIC, 3)
        if isinstance(corruption, ThickSlices):
            changed = changed.repeat_interleave(corruption.factor, dim=3)
        errors.append(float((changed - image).square().mean()))
    assert len(errors) == 6
    assert all(worse > 1.05 * better for better, worse in pairwise(errors)), errors


@pytest.mark.parametrize("signal", [0.0, 30.0, 400.0])
def test_rician_noise_has_ricean_moments(signal):
    image = torch.full((1, 100, 100, 20), signal)
    image[:, 0] = 0.0  # the range is 1000, whatever the rest is
    image[:, 99] = 1000.0
    sigma = 1000 * 10 ** (-25 / 20)
    inner = RicianNoise(25)(image, ANISOTROPIC, 2)[:, 1:99]
    expected = rice(signal / sigma, scale=sigma)
    assert float(inner.mean()) == pytest.approx(expected.mean(), rel=0.01)
    assert float(inner.var()) == pytest.approx(expected.var(), rel=0.02)


def test_rician_noise_reaches_its_psnr_in_tissue_and_in_every_channel():
    shape = (1, 40, 40, 40)
    tissue = 500 + 500 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    image = torch.cat([tissue, 7 * tissue])
    changed = RicianNoise(20)(image, ANISOTROPIC, 2)
    for before, after in zip(image, changed, strict=True):
        spread = np.subtract(*np.percentile(before.numpy(), [99.5, 0.5]))
        psnr = 10 * math.log10(spread**2 / float((after - before).square().mean()))
        assert psnr == pytest.approx(20, abs=0.1)
    noise = (changed - image).flatten(1)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.02


@pytest.mark.parametrize(("size", "spacing"), [((64, 64), (4.0, 4.0)), ((90, 60), (3.0, 4.5))])
def test_the_beam_takes_line_integrals_and_comes_back_from_them(size, spacing):
    places = [(torch.arange(n) - (n - 1) / 2) * side for n, side in zip(size, spacing, strict=True)]
    radius = torch.hypot(places[0][:, None], places[1])
    disc = ((100 - radius) / max(spacing) + 0.5).clamp(0, 1) * 0.02
    beam = ParallelBeam(size, spacing)
    rays = beam.project(disc.reshape(-1, 1))
    offsets = (torch.arange(rays.shape[1]) - (rays.shape[1] - 1) / 2) * max(spacing)
    chords = 0.02 * 2 * (100**2 - offsets**2).clamp_min(0).sqrt()
    assert (
        rays[..., 0] - chords
    ).abs().max() < 0.15 * chords.max()  # at the rim, where a ray is a pixel wide
    assert (rays[..., 0] - chords).abs().mean() < 0.015 * chords.max()
    back = beam.reconstruct(rays)[:, 0].reshape(size)
    assert float(back[radius < 70].mean()) == pytest.approx(0.02, rel=0.01)
    assert float(back[(radius > 120) & (radius < 125)].mean()) == pytest.approx(0, abs=2e-4)


@pytest.mark.parametrize("side", [2.5, 4.0])
def test_full_dose_noise_is_that_of_20_cm_of_water_on_any_grid(side):
    """Half of the dose adds as much variance as there was."""
    image, radius = water(round(220 / side), side, slices=20)
    noise = (LowDose(0.5, full_dose_noise=12)(image, (side, side, 3.0), 1) - image)[0]
    centre = noise[radius < 20]
    assert float(centre.std()) == pytest.approx(12, rel=0.06)
    # Nothing is left of the noise in the mean, of the whole disc less than in that of its centre.
    assert abs(float(noise[radius < 90].mean())) < 0.2
    # Fewer rays through much water reach the rim.
    assert float(noise[(radius > 80) & (radius < 95)].std()) < 0.8 * float(centre.std())


def test_added_variance_goes_with_the_inverse_of_the_dose():
    image, _ = water(48, 5.0)
    quiet = LowDose(0.5, electronic=0)
    half, quarter, twentieth = (
        (replace(quiet, dose=dose)(image, (5.0, 5.0), 1) - image).double() for dose in (0.5, 0.25, 0.05)
    )
    assert torch.allclose(quarter, half * math.sqrt(3), atol=1e-3)
    assert torch.allclose(twentieth, half * math.sqrt(19), atol=1e-3)


def test_electronic_noise_grows_faster_than_that_of_quanta():
    def spread(dose, electronic, diameter):
        image, _ = water(48, 6.0, diameter)
        corruption = LowDose(dose, full_dose_noise=1, electronic=electronic)
        return float((corruption(image, (6.0, 6.0), 1) - image).square().mean())

    def share(dose, diameter):
        return spread(dose, 0.5, diameter) / spread(dose, 0.0, diameter)

    assert share(0.1, 200.0) > 2 * share(0.5, 200.0)
    assert share(0.5, 240.0) > 1.5 * share(0.5, 120.0)


def test_noise_in_ct_is_correlated_and_streaks_along_what_is_dense():
    image, _ = water(64, 4.0, slices=16)
    image[0, 30:34, 8:12] = image[0, 30:34, 52:56] = 8000.0  # two pieces of metal in one line
    noise = (LowDose(0.1)(image, (4.0, 4.0, 2.0), 1) - image)[0]
    between, beside = noise[31:33, 16:48], noise[18:20, 16:48]
    assert float(between.std()) > 1.3 * float(beside.std())
    assert correlate_neighbours(between, axis=1) > 0.8 > 0.7 > correlate_neighbours(between, axis=0)
    for axis in 0, 1:
        assert 0.4 < correlate_neighbours(noise[20:28, 20:44], axis) < 0.8


def correlate_neighbours(noise, axis):
    count = noise.shape[axis] - 1
    first, second = noise.narrow(axis, 0, count), noise.narrow(axis, 1, count)
    return float((first * second).mean() / (first.std() * second.std()))


def test_what_no_quantum_passes_leaves_noise_that_is_finite():
    image = torch.full((1, 24, 24), 30_000.0)
    for electronic in 0.0, 0.01:
        noisy = LowDose(1e-4, full_dose_noise=0.1, electronic=electronic)(image, (10.0, 10.0), 1)
        assert noisy.isfinite().all()


def test_slices_are_noisy_on_their_own():
    """What is computed in parts is computed alike; 33 slices make two."""
    image, _ = water(24, 10.0, slices=33)
    noise = (LowDose(0.1)(image, (10.0, 10.0, 2.0), 1) - image)[0].flatten(0, 1)
    assert float(torch.corrcoef(noise.T).fill_diagonal_(0).abs().max()) < 0.5
    assert float(noise.std(dim=0).min()) > 0.7 * float(noise.std(dim=0).max())


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 20)])
def test_a_bias_field_is_smooth_positive_and_bounded(shape):
    image = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) + 1
    spacing = ANISOTROPIC[: len(shape)]
    field = BiasField(0.5)(image, spacing, 4) / image
    assert torch.allclose(field[0], field[1])
    logarithm = field[0].log()
    assert float(logarithm.abs().max()) == pytest.approx(math.log(1.5), rel=1e-4)
    # Not in the corners alone, where no patient is.
    inner = logarithm[tuple(slice(n // 4, n - n // 4) for n in shape)]
    assert float(inner.abs().max()) > 0.2 * math.log(1.5)
    # A polynomial of degree 3: the fourth difference along every axis is nothing.
    for axis in range(len(shape)):
        assert float(torch.diff(inner.double(), n=4, dim=axis).abs().max()) < 1e-4


def test_motion_by_shifts_is_that_of_the_shift_theorem():
    image = blobs((1, 40, 36, 32), width=4.0)
    poses = [
        Pose((0, 14), (0.0, 0.0, 0.0), (2.0, -1.5, 4.0)),
        Pose((28, 40), (0.0, 0.0, 0.0), (-1.0, 3.0, 0.0)),
    ]
    spectrum = torch.fft.fftshift(torch.fft.fftn(image[0]), dim=0)
    frequencies = torch.meshgrid(
        torch.fft.fftshift(torch.fft.fftfreq(40)), torch.fft.fftfreq(36), torch.fft.fftfreq(32), indexing="ij"
    )
    for pose in poses:
        voxels = [mm / side for mm, side in zip(pose.shift, ANISOTROPIC, strict=True)]
        ramp = torch.exp(-2j * math.pi * sum(f * n for f, n in zip(frequencies, voxels, strict=True)))
        spectrum[slice(*pose.lines)] *= ramp[slice(*pose.lines)]
    expected = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=0)).abs()
    assert torch.allclose(acquire(image, ANISOTROPIC, poses)[0], expected, atol=1e-3 * 1000)
    assert (expected - image[0]).abs().max() > 20


def test_a_quarter_turn_is_one_in_millimetres():
    first, second = torch.meshgrid(torch.arange(80.0) - 39.5, 2 * torch.arange(56.0) - 55, indexing="ij")
    image = torch.exp(-(((first - 6) / 4) ** 2 + ((second - 2) / 8) ** 2) / 2)[None]
    turned = move(image, (1.0, 2.0), Pose((0, 0), (math.pi / 2,), (0.0, 0.0)))
    moments = [second_moments(tensor[0].double(), (1.0, 2.0)) for tensor in (image, turned)]
    assert moments[0] == pytest.approx([16, 64], rel=0.01)
    assert moments[1] == pytest.approx([64, 16], rel=0.05)


def second_moments(image, spacing):
    found = []
    for axis, side in enumerate(spacing):
        line = image.sum(1 - axis)
        places = torch.arange(len(line)) * side
        mean = (line * places).sum() / line.sum()
        found.append(float((line * (places - mean) ** 2).sum() / line.sum()))
    return found


def test_ghosts_run_along_the_phase_encoding():
    image = torch.zeros(1, 64, 64)
    image[:, 24:40, 24:40] = 100.0
    changed = Motion(0, 4)(image, (1.0, 1.0), 1)[0]
    assert float(changed[:16, 26:38].mean()) > 10 * float(changed[26:38, :16].mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_of_k_space_is_of_a_patient_who_has_not_moved(seed):
    poses = Motion(5, 5).draw_poses(50, 3, seed)
    lines = [line for pose in poses for line in range(*pose.lines)]
    assert 25 not in lines and len(lines) == len(set(lines)) > 20
    assert all(abs(angle) <= math.radians(5) for pose in poses for angle in pose.angles)
    assert all(abs(mm) <= 5 for pose in poses for mm in pose.shift)


@pytest.mark.parametrize("fwhm", [0.5, 2.0, 5.0])
def test_a_blurred_point_has_the_width_in_millimetres(fwhm):
    image = torch.zeros(1, 41, 41, 41)
    image[:, 20, 20, 20] = 1.0
    blurred = Blur(fwhm)(image, ANISOTROPIC, 0)[0].double()
    assert float(blurred.sum()) == pytest.approx(1, rel=1e-5)
    for axis, side in enumerate(ANISOTROPIC):
        line = blurred.sum([other for other in range(3) if other != axis])
        variance = float((line * ((torch.arange(41) - 20) * side) ** 2).sum())
        assert variance == pytest.approx((fwhm / 2.35482) ** 2, rel=0.01)


def test_a_blur_leaves_even_ground_even():
    image = torch.full((2, 9, 8, 7), 50.0)
    assert torch.allclose(Blur(6)(image, ANISOTROPIC, 0), image)


OBLIQUE = np.array(
    [[0.8, -0.9, 0.1, -30.0], [0.6, 1.2, 0.2, 12.0], [0.05, 0.1, -1.9, 70.0], [0.0, 0.0, 0.0, 1.0]]
)


def centre_of_mass(image, affine):
    grids = np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij")
    voxel = [float((image * grid).sum() / image.sum()) for grid in grids]
    return (affine @ [*voxel, 1.0])[:3]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_thick_slices_stay_where_they_were_in_the_patient(axis, factor):
    image = torch.zeros(1, 48, 48, 48)
    grids = torch.meshgrid(*[torch.arange(48.0)] * 3, indexing="ij")
    centre = (20.3, 25.1, 22.7)
    image[0] = torch.exp(-sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) / (2 * 3.5**2))
    changed, affine = corrupt(ThickSlices(factor, axis), image, OBLIQUE, 0)
    assert changed.shape[axis + 1] == 48 // factor
    assert float(changed.mean()) == pytest.approx(float(image.mean()), rel=1e-5)
    before, after = centre_of_mass(image[0].numpy(), OBLIQUE), centre_of_mass(changed[0].numpy(), affine)
    assert np.abs(after - before).max() < 0.01
    # The first coarse centre is the mean of the fine ones.
    fine = [OBLIQUE @ [*(k * (np.arange(3) == axis)), 1.0] for k in range(factor)]
    assert np.allclose(affine[:, 3], np.mean(fine, axis=0))
    sides = np.linalg.norm(affine[:3, :3], axis=0) / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    assert sides.tolist() == pytest.approx([factor if other == axis else 1 for other in range(3)])


def test_slices_that_make_no_whole_one_are_left_out():
    image = torch.arange(11.0).expand(1, 4, 4, 11)
    assert ThickSlices(3)(image, ANISOTROPIC, 0)[0, 0, 0].tolist() == [1.0, 4.0, 7.0]


def test_the_spacing_of_an_image_comes_from_its_affine():
    image, flat = blobs((1, 20, 22, 18)), blobs((1, 20, 22))
    spacing = np.linalg.norm(OBLIQUE[:3, :3], axis=0).tolist()
    changed, affine = corrupt(Blur(4), image, OBLIQUE, 0)
    assert torch.equal(changed, Blur(4)(image, spacing, 0)) and affine is OBLIQUE
    assert torch.equal(corrupt(Blur(4), flat, OBLIQUE, 0)[0], Blur(4)(flat, spacing[:2], 0))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RicianNoise(0), "above 0 dB; it is 0"),
        (lambda: RicianNoise(math.nan), "above 0 dB; it is nan"),
        (lambda: LowDose(0), "between 0.0001 and 1; it is 0"),
        (lambda: LowDose(1.5), "it is 1.5"),
        (lambda: LowDose(0.5, full_dose_noise=-1), "between 0 and 1000; it is -1"),
        (lambda: LowDose(0.5, electronic=2), "between 0 and 1; it is 2"),
        (lambda: BiasField(-0.1), "0 or more and finite; it is -0.1"),
        (lambda: BiasField(math.inf), "0 or more and finite; it is inf"),
        (lambda: Motion(-1, 0), "between 0 and 180; it is -1"),
        (lambda: Motion(0, math.nan), "0 mm or more and finite; it is nan"),
        (lambda: Motion(1, 1, moves=0), "times, 1 to 64; given is 0"),
        (lambda: Motion(1, 1, moves=2.5), "given is 2.5"),
        (lambda: Blur(-2), "0 mm or more and finite; it is -2"),
        (lambda: ThickSlices(0), "whole number of them, 1 or more; given is 0"),
        (lambda: ThickSlices(1.5), "given is 1.5"),
        (lambda: ThickSlices(2, axis=3), "is 0, 1 or 2; given is 3"),
    ],
)
def test_a_strength_that_makes_no_sense_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("corruption", "image", "spacing", "sentence"),
    [
        (Blur(1), torch.zeros(1, 4), (1.0,), r"axes \(C, H, W\) or \(C, H, W, D\).*shape \(1, 4\)"),
        (Blur(1), torch.zeros(1, 4, 4, dtype=torch.int16), (1.0, 1.0), "float32; this is torch.int16"),
        (LowDose(0.5), torch.full((1, 4, 4), math.nan), (1.0, 1.0), "holds infinity or NaN"),
        (Blur(1), torch.zeros(1, 4, 4), (1.0, 1.0, 1.0), "An image of 2 axes needs as many spacings"),
        (Blur(1), torch.zeros(1, 4, 4), (1.0, 0.0), "all above 0; given are"),
        (RicianNoise(20), torch.full((1, 4, 4), -3.0), (1.0, 1.0), "Rician noise.*lowest value is -3"),
        (Motion(1, 1), torch.full((1, 4, 4), -3.0), (1.0, 1.0), "Motion needs the magnitude image"),
        (ThickSlices(2), torch.zeros(1, 4, 4), (1.0, 1.0), "has no axis 2"),
        (ThickSlices(5), torch.zeros(1, 4, 4, 4), ANISOTROPIC, "4 slices are too few to make one of 5"),
    ],
)
def test_an_image_that_cannot_be_corrupted_so_is_refused(corruption, image, spacing, sentence):
    with pytest.raises(ValueError, match=sentence):
        corruption(image, spacing, 0)
