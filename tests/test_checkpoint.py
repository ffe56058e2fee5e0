"""Checkpoints come back exactly, are caught when a byte is wrong, and run nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import random
import resource
import struct
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.checkpoint import Checkpoint, Member, read_checkpoint, write_checkpoint
from pipeline.errors import ConfigError, FaultError, IntegrityError, ResourceError

# Unformatted: two lines say more than thirteen.
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
HASH_START = 8 + len(b'{"__metadata__":{"format":"clinseg-checkpoint","sha256":"')


def make_checkpoint(weights=None, state=None, **changes) -> Checkpoint:
    fields = {
        "weights": {"conv.weight": torch.arange(6.0).reshape(2, 3)} if weights is None else weights,
        "job": {"network": {"features": (16, 32), "dropout": 0.1}, "seed": 7},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "structures": {"whole": (1, 2), "anterior": (1,)},
        "channels": ("T1",),
        "intensity": {"mean": 0.1 + 0.2, "deviation": 1e-300},
        "provenance": {"epoch": 3, "metrics": {"validation/hd95/anterior": math.nan}, "cases": ["a", "ö"]},
        "state": state,
    }
    return Checkpoint(**(fields | changes))


def assert_same(got, wanted):
    """Equal in value, type, order and bits, all the way down."""
    if isinstance(wanted, torch.Tensor):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (got, wanted.detach())]
        assert torch.equal(*bits)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        assert [type(key) for key in got] == [type(key) for key in wanted]
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert type(got) is type(wanted)
        assert len(got) == len(wanted)
        for pair in zip(got, wanted, strict=True):
            assert_same(*pair)
    elif isinstance(wanted, float):
        assert type(got) is float
        assert struct.pack(">d", got) == struct.pack(">d", wanted)
    else:
        assert (type(got), got) == (type(wanted), wanted)


def rehashed(data: bytes) -> bytes:
    """The file with a right hash for whatever else it holds: what a forger, or a later version, writes."""
    zeros = data[:HASH_START] + b"0" * 64 + data[HASH_START + 64 :]
    return data[:HASH_START] + hashlib.sha256(zeros).hexdigest().encode() + data[HASH_START + 64 :]


def forged(path: Path, **changes: str) -> Path:
    """The checkpoint with other strings in its metadata and a right hash."""
    data = path.read_bytes()
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    header["__metadata__"] |= changes
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(rehashed(len(text).to_bytes(8, "little") + text + data[stop:]))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.safetensors"


# What was written comes back.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 5)], ids=str)
def test_a_tensor_of_any_type_and_shape_comes_back_exactly(path, dtype, shape):
    values = torch.randint(0, 2, shape).to(dtype)
    other = torch.ones(3, dtype=torch.uint8)  # an odd size, that alignment has to survive
    write_checkpoint(path, make_checkpoint({"w": values, "v": other}, state=[values]))
    read = read_checkpoint(path, with_state=True)
    assert_same(read.weights["w"], values)
    assert_same(read.weights["v"], other)
    assert_same(read.state, [values])


def test_a_model_that_makes_images_has_no_labels(path):
    write_checkpoint(path, make_checkpoint(labels={}, structures={}))
    assert (read_checkpoint(path).labels, read_checkpoint(path).structures) == ({}, {})


def make_ensemble(**changes) -> Checkpoint:
    members = []
    for n in range(12):
        weights = {"conv.weight": torch.full((2, 3), float(n)), "member/1/x": torch.ones(n)}
        members.append(Member(weights, {"n": n}, {"run": n}))
    return make_checkpoint(**({"weights": {}, "members": tuple(members), "intensity": None} | changes))


def test_an_ensemble_comes_back_member_by_member(path):
    written = make_ensemble()
    write_checkpoint(path, written)
    read = read_checkpoint(path, with_state=True)
    assert read.weights == {} and len(read.members) == 12
    for got, wanted in zip(read.members, written.members, strict=True):
        assert set(got.weights) == set(wanted.weights)
        for name, tensor in wanted.weights.items():
            assert_same(got.weights[name], tensor)
        assert_same((got.intensity, got.provenance), (wanted.intensity, wanted.provenance))
    assert set(load_file(path)) >= {"member/0/conv.weight", "member/11/conv.weight"}


def test_only_an_ensemble_asks_an_older_clinseg_for_an_update(path):
    for checkpoint, version in ((make_checkpoint(), b'"version":"1"'), (make_ensemble(), b'"version":"2"')):
        write_checkpoint(path, checkpoint)
        assert version in path.read_bytes()


@pytest.mark.parametrize("segmenter", ["single", "ensemble"])
@pytest.mark.parametrize("outer", ["single", "ensemble"])
def test_a_segmenter_travels_inside_with_its_own_hash(path, tmp_path, outer, segmenter):
    build = {"single": make_checkpoint, "ensemble": make_ensemble}
    write_checkpoint(tmp_path / "own.safetensors", build[segmenter](channels=("CT",)))
    inner = read_checkpoint(tmp_path / "own.safetensors")
    write_checkpoint(path, build[outer](segmenter=inner))
    read = read_checkpoint(path)
    assert read.segmenter.content_hash == inner.content_hash != read.content_hash
    write_checkpoint(tmp_path / "again.safetensors", read.segmenter)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "own.safetensors").read_bytes()
    assert not [name for name in read.weights if name.startswith("segmenter")]
    assert b'"version":"3"' in path.read_bytes()


def test_a_segmenters_training_state_is_left_behind(path):
    write_checkpoint(path, make_checkpoint(segmenter=make_checkpoint(state=[torch.ones(3)])))
    assert read_checkpoint(path, with_state=True).segmenter.state is None
    assert not [name for name in load_file(path) if "state" in name]


def test_weights_and_state_of_an_ensemble_are_its_members():
    for wrong in ({"weights": {"w": torch.ones(1)}}, {"state": [1]}, {"intensity": {"mean": 1.0}}):
        with pytest.raises(ValueError, match="of its members"):
            make_ensemble(**wrong)


def test_bits_of_not_a_number_survive_in_tensors(path):
    bits = torch.tensor([0x7FC00001, 0xFFC00000, 0x7F800000, 0x80000000], dtype=torch.uint32)
    write_checkpoint(path, make_checkpoint({"w": bits.view(torch.float32)}))
    assert_same(read_checkpoint(path).weights["w"].view(torch.uint32), bits)


def test_views_tied_and_trainable_tensors_come_back_by_value(path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tied = torch.nn.Parameter(torch.ones(5))
    weights = {
        "t": base.transpose(0, 2),
        "s": base[:, ::2],
        "e": torch.ones(1).expand(4),
        "a": tied,
        "b": tied,
    }
    write_checkpoint(path, make_checkpoint(weights))
    read = read_checkpoint(path).weights
    assert set(read) == set(weights)
    for name, tensor in weights.items():
        assert_same(read[name], tensor)
        assert type(read[name]) is torch.Tensor
        assert not read[name].requires_grad


def test_everything_that_is_not_a_tensor_comes_back_exactly(path):
    written = make_checkpoint()
    write_checkpoint(path, written)
    read = read_checkpoint(path)
    for name in ("job", "labels", "structures", "channels", "intensity", "provenance"):
        assert_same(getattr(read, name), getattr(written, name))
    assert read.state is None


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
tensors = st.binary(max_size=8).map(lambda raw: torch.tensor(list(raw), dtype=torch.uint8))
keys = (
    st.text() | st.integers() | st.floats(allow_nan=False) | st.none() | st.tuples(st.integers(), st.text())
)
marks = st.sampled_from(["__tensor__", "__tuple__", "__items__", "__float__", "__"])
nested = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys | marks, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=nested)
def test_any_nested_state_comes_back_exactly(path, state):
    write_checkpoint(path, make_checkpoint(state=state))
    assert_same(read_checkpoint(path, with_state=True).state, state)


@pytest.mark.parametrize(
    "state",
    [{"__tensor__": "w"}, {"__tuple__": [1]}, {"__items__": [[1, 2]]}, {"__float__": "7ff8000000000000"}],
    ids=str,
)
def test_a_dict_that_looks_like_a_mark_of_the_format_stays_a_dict(path, state):
    write_checkpoint(path, make_checkpoint({"w": torch.ones(1)}, state={"nested": [state]}))
    assert_same(read_checkpoint(path, with_state=True).state, {"nested": [state]})


def test_optimizer_and_random_states_resume_to_the_bit(path):
    def step(network, optimizer):
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()

    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), amsgrad=True)
    step(network, optimizer)
    generator = np.random.default_rng(5)
    state = {
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": generator.bit_generator.state,
        "python": random.getstate(),
    }
    write_checkpoint(path, make_checkpoint(OrderedDict(network.state_dict()), state))
    step(network, optimizer)
    numbers = generator.random(3), random.random()

    read = read_checkpoint(path, with_state=True)
    again = torch.nn.Linear(3, 2)
    again.load_state_dict(read.weights)
    optimizer_again = torch.optim.AdamW(again.parameters(), amsgrad=True)
    optimizer_again.load_state_dict(read.state["optimizer"])
    torch.set_rng_state(read.state["torch"])
    random.setstate(read.state["python"])
    generator.bit_generator.state = read.state["numpy"]
    step(again, optimizer_again)
    assert_same(dict(again.state_dict()), dict(network.state_dict()))
    assert_same(optimizer_again.state_dict(), optimizer.state_dict())
    assert np.array_equal(generator.random(3), numbers[0])
    assert random.random() == numbers[1]


def test_the_state_is_left_on_disk_unless_asked_for(path):
    write_checkpoint(path, make_checkpoint(state={"moments": torch.ones(4)}))
    assert read_checkpoint(path).state is None
    assert list(read_checkpoint(path).weights) == ["conv.weight"]


def test_the_same_checkpoint_gives_the_same_bytes_and_another_one_another_hash(path, tmp_path):
    first = write_checkpoint(path, make_checkpoint(state={"b": 1, "a": torch.ones(2)}))
    twin = tmp_path / "twin.safetensors"
    assert write_checkpoint(twin, make_checkpoint(state={"b": 1, "a": torch.ones(2)})) == first
    assert twin.read_bytes() == path.read_bytes()
    assert read_checkpoint(path).content_hash == first
    assert write_checkpoint(twin, make_checkpoint(state={"b": 2, "a": torch.ones(2)})) != first


def test_other_programs_read_the_weights_under_their_own_names(path):
    write_checkpoint(path, make_checkpoint())
    assert_same(load_file(path), make_checkpoint().weights)


def test_every_tensor_is_aligned_for_readers_that_map_the_file(path):
    weights = {str(dtype): torch.ones(3, dtype=dtype) for dtype in reversed(DTYPES)}
    write_checkpoint(path, make_checkpoint(weights))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    assert all(header[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in weights.items())


def test_what_cannot_be_stored_is_named_and_the_old_file_stays(path):
    write_checkpoint(path, make_checkpoint())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"state\.a\[1\]: .*set"):
        write_checkpoint(path, make_checkpoint(state={"a": [1, {2}]}))
    with pytest.raises(TypeError, match="weights or its state"):
        write_checkpoint(path, make_checkpoint(provenance={"loss": torch.ones(1)}))
    with pytest.raises(TypeError, match="complex64"):
        write_checkpoint(path, make_checkpoint({"w": torch.ones(1, dtype=torch.complex64)}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"anterior": 1}},
        {"labels": {"background": 0, "a": 1, "b": 1, "c": 2}},
        {"labels": {"background": False, "a": 1, "b": 2}},
        {"structures": {}},
        {"labels": {}},
        {"structures": {"none": ()}},
        {"structures": {"unknown": (1, 9)}},
        {"channels": ()},
        {"weights": {"state/0": torch.ones(1)}},
    ],
    ids=str,
)
def test_a_checkpoint_that_contradicts_itself_cannot_exist(changes):
    with pytest.raises(ValueError, match=r"labels|structures|channel|reserved"):
        make_checkpoint(**changes)


# What is damaged or foreign is refused.


def test_any_flipped_bit_of_any_byte_is_caught(path):
    state = {"moments": torch.ones(3, dtype=torch.uint8), "lr": 0.1}
    write_checkpoint(path, make_checkpoint(state=state, provenance={}))
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            read_checkpoint(path)
    for bit in range(8):  # letter case of the hash's own digits included
        for at in range(HASH_START, HASH_START + 64):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(IntegrityError):
                read_checkpoint(path)
    path.write_bytes(whole)
    read_checkpoint(path)


def test_a_missing_or_an_extra_byte_is_caught(path):
    write_checkpoint(path, make_checkpoint(state=[torch.ones(2)]))
    whole = path.read_bytes()
    for wrong in [
        *(whole[:stop] for stop in range(0, len(whole), 7)),
        whole[:-1],
        whole + b"\0",
        whole + b" ",
    ]:
        path.write_bytes(wrong)
        with pytest.raises(IntegrityError):
            read_checkpoint(path)


def test_padding_that_means_nothing_is_caught_too(path):
    write_checkpoint(path, make_checkpoint())
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :])
    assert load_file(path), "safetensors itself takes this file"
    with pytest.raises(IntegrityError):
        read_checkpoint(path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def foreign_files(folder: Path, marker: Path) -> list[Path]:
    contents = {
        "empty.safetensors": b"",
        "short.safetensors": b"\0" * 7,
        "random.safetensors": random.Random(3).randbytes(5000),
        "huge-header.safetensors": b"\xff" * 8 + b"{",
        "weights.pkl": pickle.dumps(Malicious(marker)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, new_format in (("zip.pt", True), ("old.pt", False)):
        torch.save({"w": Malicious(marker)}, folder / name, _use_new_zipfile_serialization=new_format)
    save_file({"w": torch.ones(2)}, folder / "someone-elses.safetensors", {"format": "pt"})
    return sorted(folder.iterdir())


def test_a_foreign_file_is_refused_clearly_and_never_run(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "files").mkdir()
    for file in foreign_files(tmp_path / "files", marker):
        with pytest.raises(IntegrityError, match="not a clinseg checkpoint") as caught:
            read_checkpoint(file, with_state=True)
        assert caught.value.exit_code == 6
        assert str(file) in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists(), "the trap itself must work"


def test_a_missing_file_a_folder_and_a_pipe_are_usage_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path / "none.safetensors", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="checkpoint file was expected"):
            read_checkpoint(wrong)


def test_a_newer_format_asks_for_an_update(path):
    write_checkpoint(path, make_checkpoint())
    with pytest.raises(ConfigError, match=r"format 4.*update clinseg"):
        read_checkpoint(forged(path, version="4", content="something else"))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        "[" * 1_000_000,
        '{"a":' * 100_000,
        "9" * 10_000,
        *(
            json.dumps({name: {} for name in ("job", "structures", "intensity", "provenance")} | change)
            for change in (
                {"labels": [0], "channels": []},
                {"labels": {"background": 0}, "channels": {"__tuple__": ["T1"]}},
                {"labels": {"__items__": [[[1], 2]]}, "channels": []},
                {"labels": {"__items__": [1]}, "channels": []},
                {"labels": {"__tensor__": "missing"}, "channels": []},
                {"labels": {"__float__": "00"}, "channels": []},
                {"labels": {"__float__": "zz"}, "channels": []},
            )
        ),
    ],
    ids=lambda content: content[:40],
)
def test_a_forged_content_is_refused(path, content):
    write_checkpoint(path, make_checkpoint())
    with pytest.raises(IntegrityError, match="not a checkpoint's"):
        read_checkpoint(forged(path, content=content), with_state=True)


def test_a_forged_header_is_refused(path):
    write_checkpoint(path, make_checkpoint())
    data = path.read_bytes()
    for old, new in ((b"[0,24]", b"[0,99]"), (b"[2,3]", b"[2,9]"), (b'"F32"', b'"F99"'), (b'"}', b'"]')):
        path.write_bytes(rehashed(data.replace(old, new)))
        with pytest.raises(IntegrityError, match="not a checkpoint's"):
            read_checkpoint(path)


# Trouble while writing or reading.


@pytest.fixture
def file_size_limit():
    """Files may grow to 64 KiB, then writing fails as on a full disk (EFBIG)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_write_that_fails_midway_leaves_the_old_checkpoint(path, file_size_limit):
    written = write_checkpoint(path, make_checkpoint())
    file_size_limit()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_checkpoint(path, make_checkpoint({"w": torch.ones(100_000)}))
    assert read_checkpoint(path).content_hash == written
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_checkpoint(small_disk):
    path = small_disk / "last.safetensors"
    written = write_checkpoint(path, make_checkpoint())
    with pytest.raises(ResourceError, match="disk is full") as caught:
        write_checkpoint(path, make_checkpoint({"w": torch.ones(100_000)}))
    assert caught.value.exit_code == 4
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert read_checkpoint(path).content_hash == written
    assert list(small_disk.iterdir()) == [path]


def test_a_checkpoint_replaced_while_it_is_read_is_never_a_mixture(path):
    written = {}
    stop = threading.Event()

    def keep_writing():
        epoch = 0
        while not stop.is_set() or epoch < 20:
            epoch += 1
            checkpoint = make_checkpoint({"w": torch.full((1000,), epoch)}, provenance={"epoch": epoch})
            written[write_checkpoint(path, checkpoint)] = epoch

    write_checkpoint(path, make_checkpoint({"w": torch.zeros(1000)}, provenance={"epoch": 0}))
    first = read_checkpoint(path).content_hash
    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        read = [read_checkpoint(path) for _ in range(200)]
    finally:
        stop.set()
        writer.join()
    for checkpoint in read:
        epoch = checkpoint.provenance["epoch"]
        assert (checkpoint.weights["w"] == epoch).all()
        assert epoch == (0 if checkpoint.content_hash == first else written[checkpoint.content_hash])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), hashed=st.booleans())
def test_no_bytes_end_in_a_traceback(path, data, hashed):
    start = (
        len(data).to_bytes(8, "little")
        + b'{"__metadata__":{"format":"clinseg-checkpoint","sha256":"'
        + b"0" * 64
    )
    path.write_bytes(rehashed(start + data) if hashed else data)
    with pytest.raises(FaultError):
        read_checkpoint(path)
