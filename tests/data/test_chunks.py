"""A large volume is the same in chunks, takes less room, and a box of it unpacks only what it touches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import chunks
from pipeline.data.cache import cached
from pipeline.data.chunks import Chunked, find, keep, load
from transforms.cropping import crop

TYPES = [torch.float32, torch.uint8, torch.int32]


def volume(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (100 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.fixture
def all_in_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "LARGE", 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 40, 33, 64), (2, 32, 32, 32), (3, 1, 70, 5), (1, 31, 200, 1)])
def test_what_comes_out_of_the_cache_is_what_went_in(tmp_path, all_in_chunks, shape, dtype):
    expected = volume(shape, dtype)
    found = find("image", cached(tmp_path, "a case", lambda: keep("image", expected)))
    assert isinstance(found, Chunked) and found.shape == expected.shape
    assert load(found).dtype == dtype and torch.equal(load(found), expected)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_box_is_that_of_the_whole(data):
    expected = volume((2, 50, 33, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "LARGE", 0)
        found = find("image", keep("image", expected))
    start = [data.draw(st.integers(-20, n - 1)) for n in expected.shape[1:]]
    # A box overlaps the volume.
    size = [data.draw(st.integers(max(1, 1 - low), 90)) for low in start]
    assert torch.equal(crop(found, start, size), crop(expected, start, size))


def test_only_what_is_touched_is_unpacked(all_in_chunks):
    expected = volume((1, 96, 96, 96))
    kept = keep("image", expected)
    first, last = kept["image/offsets"][13:15].tolist()  # of 27, the one in the middle
    kept["image/chunks"][:first] = 255
    kept["image/chunks"][last:] = 255
    found = find("image", kept)
    box = (slice(0, 1), *(slice(32, 64),) * 3)
    assert torch.equal(found[box], expected[box])
    with pytest.raises(RuntimeError):
        found[(slice(0, 1), slice(31, 64), slice(32, 64), slice(32, 64))]


def test_air_takes_no_room_and_small_volumes_stay_as_they_are():
    body = torch.zeros(1, 210, 210, 210)
    body[:, 60:150, 60:150, 60:150] = volume((90, 90, 90))
    assert body.nbytes > chunks.LARGE
    found = find("image", keep("image", body))
    assert isinstance(found, Chunked) and found.nbytes < body.nbytes / 8
    small = volume((1, 40, 40, 40))
    assert find("image", keep("image", small)) is small


def test_the_bytes_are_those_of_numpy_on_any_layout(all_in_chunks):
    turned = volume((1, 40, 50, 60)).flip(2).permute(0, 3, 1, 2)
    assert np.array_equal(load(find("image", keep("image", turned))).numpy(), turned.numpy())
