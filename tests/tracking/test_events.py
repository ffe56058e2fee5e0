"""The log on disk: what was written is read, whatever tore the file."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ResourceError
from pipeline.tracking.events import Event, EventLog, parse_event, read_events

EVENTS = [
    Event("parameters", 1, {"network.features": "16, 32", "name": "Größe \n ✓"}),
    Event("metrics", 2, {"training/loss": 0.1, "validation/dice/anterior": 1 / 3}, step=7),
    Event("tags", 3, {"note": "second"}),
    Event("status", 4, {"status": "FINISHED"}),
]


def _write(path, events):
    log = EventLog(path)
    for event in events:
        log.append(event)
    log.close()


def _events(path, start=0):
    return [event for event, _ in read_events(path, start)]


def test_what_is_written_is_read_and_every_offset_starts_the_rest(tmp_path):
    path = tmp_path / "events.jsonl"
    _write(path, EVENTS)
    assert _events(path) == EVENTS
    for number, (_, offset) in enumerate(read_events(path), start=1):
        assert _events(path, offset) == EVENTS[number:]


def test_a_file_torn_at_any_byte_loses_only_its_last_line_and_takes_new_ones(tmp_path):
    path = tmp_path / "events.jsonl"
    _write(path, EVENTS)
    whole = path.read_bytes()
    ends = [offset for _, offset in read_events(path)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert _events(path) == EVENTS[:kept]
        _write(path, EVENTS[:1])
        # A line that lacks nothing but its end is whole once the next begins.
        kept += cut + 1 in ends
        assert _events(path) == [*EVENTS[:kept], EVENTS[0]]


@given(st.dictionaries(st.text(), st.floats()), st.integers(0, 2**53))
def test_every_number_comes_back_to_the_bit(tmp_path_factory, values, step):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    _write(path, [Event("metrics", 1, values, step)])
    (back,) = _events(path)
    assert back.step == step
    assert back.values.keys() == values.keys()
    for name, value in values.items():
        assert math.copysign(1, back.values[name]) == math.copysign(1, value) or math.isnan(value)
        assert back.values[name] == value or (math.isnan(back.values[name]) and math.isnan(value))


@given(st.binary())
def test_no_foreign_line_is_taken_for_an_event(line):
    assert parse_event(line) is None


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"kind":"metrics","time":1,"values":{"a":"x"}}', b"1", b"{}"]
)
def test_a_line_that_is_json_but_no_event_is_skipped(line):
    assert parse_event(line) is None


def test_a_full_disk_is_said():
    log = EventLog(Path("/dev/full"))
    with pytest.raises(ResourceError, match="disk is full"):
        log.append(EVENTS[0])
