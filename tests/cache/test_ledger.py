"""Ledger lines: nothing but what was written whole is believed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.cache.ledger import Entry, Failure, Ledger, Stored, entry_from_line, entry_to_line, status_runs

ENTRY = Entry(
    shard=3,
    revision=1,
    keys="abc",
    arrays=(("features", Stored("0123", 52)), ("status", Stored("4567", 12))),
    status=((1, 2), (2, 1)),
    failures=(Failure("ä\u2028", "truncated", 'a "quoted"\nmessage'),),
)


def test_lines_come_back() -> None:
    assert entry_from_line(entry_to_line(ENTRY).encode()) == ENTRY
    void = Entry(3, 2, void=True)
    assert entry_from_line(entry_to_line(void).encode()) == void
    assert '"counts":{"pending":0,"done":2,"failed":1,"absent":0}' in entry_to_line(ENTRY)


def test_every_flipped_byte_of_a_line_is_noticed() -> None:
    line = entry_to_line(ENTRY).encode()
    for at in range(len(line)):
        for bit in (1, 0x20, 0x80):
            damaged = line[:at] + bytes([line[at] ^ bit]) + line[at + 1 :]
            assert entry_from_line(damaged) in (None, ENTRY)  # a hash in capitals would be no damage
            assert entry_from_line(line[:at]) is None


@given(st.lists(st.integers(0, 3), min_size=1))
def test_status_runs(codes: list[int]) -> None:
    status = np.array(codes, np.uint8)
    runs = status_runs(status)
    np.testing.assert_array_equal(Entry(0, 0, status=runs).statuses(), status)
    assert all(a[0] != b[0] for a, b in itertools.pairwise(runs))


def test_lines_are_taken_in_as_they_come_and_the_last_wins(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    ledger.refresh()
    assert ledger.candidates(0) == []
    first, second = Entry(0, 0, "a"), Entry(0, 0, "b")
    other.append("x", first)
    ledger.refresh()
    assert ledger.candidates(0) == [first]
    other.append("x", second)
    ledger.refresh()
    assert ledger.candidates(0) == [second]
    other.append("y", first)
    ledger.refresh()
    assert ledger.candidates(0) == [second, first]
    other.append("y", Entry(0, 1, void=True))
    ledger.refresh()
    assert ledger.candidates(0) == [Entry(0, 1, void=True)]
    assert ledger.shards() == [0]


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("x", Entry(0, 0, "a"))
    ledger.append("y", Entry(1, 0, "a"))
    (tmp_path / "x.jsonl").unlink()
    ledger.refresh()
    assert ledger.shards() == [1]


def test_fault_04_torn_and_damaged_lines_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [entry_to_line(Entry(shard, 0, "a")) for shard in range(3)]
    (tmp_path / "x.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}\n{lines[2]}\n{lines[1][:30]}")
    ledger = Ledger(tmp_path)
    ledger.refresh()
    ledger.refresh()
    assert ledger.shards() == [0, 2]
    assert [record.message.split(";")[0] for record in caplog.records] == [
        f"x.jsonl: ignoring a damaged line at byte {len(lines[0]) + 1}",
        f"x.jsonl: ignoring a torn line at byte {len(lines[0]) + 1 + 21 + len(lines[2]) + 1}",
    ]
