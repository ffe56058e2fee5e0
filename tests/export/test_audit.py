"""No line of the log can be changed, removed or moved unseen."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, IntegrityError
from pipeline.export.audit import FIRST, append_entry, read_head, verify
from pipeline.files import sha256_of


@pytest.fixture
def log(tmp_path):
    """A log of five cases, whose files lie beside it."""
    for number in range(5):
        mask = tmp_path / f"case{number}.nii.gz"
        mask.write_bytes(b"voxels" * number)
        append_entry(
            tmp_path / "audit.jsonl",
            {"case": f"Ж{number}", "inputs": ["ab" * 32], "outputs": {mask.name: sha256_of(mask)}},
        )
    return tmp_path / "audit.jsonl"


def rules(log, head=None):
    with pytest.raises(IntegrityError) as caught:
        verify(log, head)
    return {fault.rule for fault in caught.value.faults}


def test_a_log_left_alone_is_whole(log):
    audit = verify(log)
    assert (audit.num_entries, audit.num_outputs, audit.missing) == (5, 5, ())
    assert audit.head == read_head(log) == json.loads(log.read_bytes().splitlines()[-1])["hash"]
    assert verify(log, audit.head) == audit


def test_a_file_that_changed_is_named_and_one_that_is_gone_is_told(log):
    (log.parent / "case1.nii.gz").unlink()
    assert verify(log).missing == ("case1.nii.gz",)
    (log.parent / "case2.nii.gz").write_bytes(b"other")
    assert rules(log) == {"output-changed"}


def test_a_case_predicted_again_counts_as_it_is_now(log):
    (log.parent / "case2.nii.gz").write_bytes(b"better")
    append_entry(log, {"case": "Ж2", "outputs": {"case2.nii.gz": sha256_of(log.parent / "case2.nii.gz")}})
    assert verify(log).num_entries == 6


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_found(log, data):
    whole = log.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    log.write_bytes(changed)
    try:
        assert rules(log)
    finally:
        log.write_bytes(whole)


@pytest.mark.parametrize("removed", range(4))
def test_a_removed_line_is_found(log, removed):
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:removed] + lines[removed + 1 :]))
    assert rules(log) == {"chain-broken"}


def test_lines_that_change_places_are_found(log):
    a, b, *rest = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([b, a, *rest]))
    assert rules(log) == {"chain-broken"}


def test_lines_cut_off_at_the_end_are_found_by_the_head(log):
    head = read_head(log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    assert verify(log).num_entries == 4, "the chain alone cannot know"
    assert rules(log, head) == {"other-head"}
    (log.parent / "report.json").write_text(json.dumps({"audit_head": head}))
    assert rules(log) == {"other-head"}
    log.write_bytes(b"".join(lines)[:-5])
    assert "line-cut" in rules(log)


def test_a_chain_made_anew_is_found_by_the_head(log):
    head = read_head(log)
    entries = [json.loads(line) for line in log.read_bytes().splitlines()]
    log.unlink()
    for entry in entries:
        append_entry(log, {name: entry[name] for name in ("inputs", "outputs")} | {"case": "forged"})
    assert verify(log).num_entries == 5
    assert rules(log, head) == {"other-head"}


def test_nothing_is_appended_to_what_is_no_chain(log):
    log.write_bytes(log.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="audit-broken"):
        append_entry(log, {"case": "x"})
    assert read_head(log.with_name("none.jsonl")) == FIRST


def test_without_room_the_log_stays_as_it_was_and_goes_on(log):
    """However much of a line still fits: the file may not grow beyond its size and so many bytes."""
    whole = log.read_bytes()
    code = """
import resource, sys
from pathlib import Path
from pipeline.errors import ResourceError
from pipeline.export.audit import append_entry
log = Path(sys.argv[1])
whole = log.read_bytes()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (0, 1, 20, 150):
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, most))
    try:
        append_entry(log, {"case": "x", "outputs": {}, "note": "more than fits " * 20})
    except ResourceError:
        assert log.read_bytes() == whole, f"{room} bytes of a line may have stayed"
    else:
        raise AssertionError("there was no room")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
append_entry(log, {"case": "x"})
"""
    subprocess.run([sys.executable, "-c", code, log], check=True)
    assert log.read_bytes().startswith(whole) and verify(log).num_entries == 6


def test_two_processes_make_one_chain(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.export.audit import append_entry\n"
        "for n in range(40): append_entry(Path(sys.argv[1]), {'case': n})"
    )
    command = [sys.executable, "-c", code, tmp_path / "audit.jsonl"]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait() == 0
    assert verify(tmp_path / "audit.jsonl").num_entries == 80
