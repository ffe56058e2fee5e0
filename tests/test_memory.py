"""Sizes are read and told as people write them, and a peak is seen however short it is."""

import sys

import numpy as np
import pytest
import torch
from monai.transforms import apply_transform

from pipeline.errors import ConfigError, ResourceError
from pipeline.memory import (
    available_bytes,
    format_need,
    format_size,
    freed_memory_kept,
    is_out_of_memory,
    measure_peak,
    memory_faults,
    parse_size,
    resident_bytes,
)

MIB = 2**20


def test_a_peak_is_seen_after_it_has_passed():
    device = torch.device("cpu")
    peak = measure_peak(lambda: np.ones(200 * MIB, dtype=np.uint8).sum(), device)
    assert 190 * MIB < peak < 260 * MIB
    assert measure_peak(lambda: None, device) < 20 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is told what to keep")
def test_freed_memory_is_kept_for_a_while_and_then_given_back():
    available_bytes()  # after it, what others freed has left
    before = resident_bytes()
    with freed_memory_kept():
        torch.ones(100 * MIB, dtype=torch.uint8)
        assert resident_bytes() > before + 90 * MIB
        available_bytes()  # is not told less for what could be given back
        assert resident_bytes() < before + 20 * MIB
        torch.ones(100 * MIB, dtype=torch.uint8)
        assert resident_bytes() > before + 90 * MIB
    assert resident_bytes() < before + 20 * MIB


def test_memory_is_counted_in_bytes():
    assert 10 * MIB < resident_bytes() < 100_000 * MIB
    assert available_bytes() > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2**31), ("2 gib", 2**31), ("1500MB", 1_500_000_000), ("0.5GiB", 2**29), ("1024", 1024)],
)
def test_sizes_are_read(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "2 TiBs", "-1GiB", "1e3"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="2GiB"):
        parse_size(text)


def test_sizes_are_told():
    assert format_size(3 * 2**29) == "1.50 GiB"
    assert format_size(5 * MIB) == "5 MiB"


@pytest.mark.parametrize("needed", [1, 5 * MIB, 5 * MIB + 1, 2**30 - 1, 2**30, 2**30 + 1, 7_777_777_777])
def test_a_need_that_is_told_would_do(needed):
    assert needed <= parse_size(format_need(needed)) < needed + 2**30 / 50


def allocate(num_bytes):
    return torch.empty(num_bytes, dtype=torch.uint8)


@pytest.mark.parametrize(
    "call", [allocate, lambda num: np.empty(num, np.uint8), lambda num: apply_transform(allocate, num)]
)
def test_lack_of_memory_is_told_whoever_found_it(call):
    told = pytest.raises(ResourceError, match="scan_1: it does not fit into memory; crop it")
    with told, memory_faults("scan_1", "it", "crop it"):
        call(2**60)


def test_other_errors_in_a_transform_stay_what_they_are():
    told = pytest.raises(RuntimeError, match="applying transform")
    with told as caught, memory_faults("scan_1", "it", "crop it"):
        apply_transform(lambda number: 1 / number, 0)
    assert not is_out_of_memory(caught.value)
