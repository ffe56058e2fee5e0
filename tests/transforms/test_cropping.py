"""A box is what lies there, and 0 where nothing does."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from transforms.cropping import crop


@given(
    st.tuples(*[st.integers(1, 6)] * 3).flatmap(
        lambda shape: st.tuples(
            st.just(shape),
            st.tuples(*[st.integers(-4, n - 1) for n in shape]),
            st.tuples(*[st.integers(5, 12)] * 3),
        )
    )
)
def test_a_box_is_cut_from_a_volume_with_zeros_around(places):
    shape, start, size = places
    volume = torch.arange(1, 1 + 2 * shape[0] * shape[1] * shape[2], dtype=torch.int16).view(2, *shape)
    surrounded = torch.zeros(2, *(4 + n + 12 for n in shape), dtype=torch.int16)
    surrounded[:, 4 : 4 + shape[0], 4 : 4 + shape[1], 4 : 4 + shape[2]] = volume
    expected = surrounded[(slice(None), *(slice(4 + s, 4 + s + n) for s, n in zip(start, size, strict=True)))]
    box = crop(volume, start, size)
    assert box.dtype == torch.int16
    assert torch.equal(box, expected)
