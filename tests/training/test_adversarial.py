"""What generators and discriminators learn by, apart from any network."""

import pytest
import torch

from pipeline.config import EnhancementTrainingSection
from pipeline.training.adversarial import ImagePool, least_squares, linear_share, total_variation


def test_a_judgement_is_measured_by_its_distance_from_the_truth():
    judgement = torch.tensor([0.0, 0.5, 1.0])
    assert least_squares(judgement, is_real=True) == pytest.approx((1 + 0.25 + 0) / 3)
    assert least_squares(judgement, is_real=False) == pytest.approx((0 + 0.25 + 1) / 3)


def test_total_variation_is_of_all_axes():
    ramp = torch.arange(4.0).view(1, 1, 4, 1).expand(1, 1, 4, 6)
    assert total_variation(ramp) == pytest.approx(0.5)
    assert total_variation(torch.full((2, 3, 4, 5, 6), 7.0)) == 0


def test_the_rate_stays_then_falls_to_zero():
    section = EnhancementTrainingSection(epochs=1, learning_rate=0.5, constant_fraction=0.5)
    rates = [section.learning_rate * linear_share(section, progress) for progress in (0.0, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0.0])


def number(value):
    return torch.full((1, 1, 2, 2), float(value))


def test_a_pool_is_filled_first_and_then_gives_back_what_it_held():
    torch.manual_seed(0)
    pool = ImagePool(3)
    shown = [float(pool.exchange(number(k))[0, 0, 0, 0]) for k in range(200)]
    assert shown[:3] == [0, 1, 2]
    old = [k - value for k, value in enumerate(shown) if value != k]
    assert 60 < len(old) < 140 and min(old) > 0  # half of the others are older
    held = {float(image[0, 0, 0]) for image in pool.images}
    # Every image is in the pool, was shown as new, or came back once: none is lost or doubled.
    assert sorted([*shown, *held]) == sorted([0.0, 1.0, 2.0, *map(float, range(200))])


def test_an_empty_pool_shows_new_images_alone():
    images = torch.rand(2, 1, 3, 3, requires_grad=True)
    shown = ImagePool(0).exchange(images)
    assert torch.equal(shown, images) and not shown.requires_grad


def test_a_pool_goes_on_from_its_state():
    pool = ImagePool(4)
    torch.manual_seed(1)
    for k in range(10):
        pool.exchange(number(k))
    other = ImagePool(4)
    other.load_state_dict(pool.state_dict(), torch.device("cpu"))
    outcomes = []
    for one in (pool, other):
        torch.manual_seed(2)
        outcomes.append([one.exchange(number(k)) for k in range(10, 30)])
    assert all(map(torch.equal, *outcomes))
    empty = ImagePool(4)
    empty.load_state_dict(ImagePool(4).state_dict(), torch.device("cpu"))
    assert empty.images == []
