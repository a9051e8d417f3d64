"""What was written: one line per finished shard, in one file per task, so that no two writers share a file.

A line is trusted only together with the files it describes. Each line carries a checksum of itself; torn or
damaged lines are ignored with a warning. A shard is written again under a higher revision, after a line that
voids the older one: at no moment does a line describe files that are being replaced. Where the older one has rows
that the new one keeps, the voiding line says which, and what the files are before and after: a writer that is killed
in between loses none of them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..pipeline import files

_log = logging.getLogger(__name__)


class RowStatus(IntEnum):
    """State of one row. Only DONE rows hold numbers; all others hold NaN."""

    PENDING = 0
    DONE = 1
    FAILED = 2
    ABSENT = 3


STATUS_MEANING = {
    RowStatus.PENDING: "not computed yet, or a row that belongs to no clip",
    RowStatus.DONE: "computed: all values are finite",
    RowStatus.FAILED: "tried and failed; the ledger holds the reason",
    RowStatus.ABSENT: "the clip has no such input",
}


class Failure(NamedTuple):
    """Why a clip has no features: a reason class ("truncated", "non_finite", …) and a message."""

    clip_id: str
    reason: str
    message: str


class Stored(NamedTuple):
    """A chunk file as it was written: content hash, size in bytes."""

    hash: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One shard as written. `keys`: hash of its clips; `status`: (code, length) runs over its rows.

    `maker`: short name of the device and software it was made with, "" where nobody said. `void`: the shard is taken
    back. A void entry with `arrays` is of a shard that is being replaced by these files; `instead`: the files before,
    `status` and `failures`: of the rows that are the same in both, all others being pending.
    """

    shard: int
    revision: int
    keys: str = ""
    arrays: tuple[tuple[str, Stored], ...] = ()
    status: tuple[tuple[int, int], ...] = ()
    failures: tuple[Failure, ...] = ()
    void: bool = False
    maker: str = ""
    instead: tuple[tuple[str, Stored], ...] = ()

    @property
    def is_replacing(self) -> bool:
        """Whether rows are kept while the files are being replaced."""
        return self.void and bool(self.arrays)

    def statuses(self) -> npt.NDArray[np.uint8]:
        """uint8 [rows] of `RowStatus`."""
        codes = [code for code, _ in self.status]
        return np.repeat(np.array(codes, np.uint8), [length for _, length in self.status])

    def same_content(self, other: Entry) -> bool:
        """Whether the same bytes were written, by whomever."""
        return replace(self, revision=0, maker="") == replace(other, revision=0, maker="")


class Ledger:
    """All ledger files of one store, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[int, int]] = {}  # file name: (inode, bytes read)
        self._last: dict[int, dict[tuple[str, str], Entry]] = {}  # shard: {(file name, maker): its last entry}
        self._warned: set[tuple[str, int]] = set()

    def candidates(self, shard: int) -> list[Entry]:
        """Entries of the highest revision of a shard, one per distinct content: normally one, or none."""
        entries = list(self._last.get(shard, {}).values())
        top = max((entry.revision for entry in entries), default=0)
        return list(dict.fromkeys(entry for entry in entries if entry.revision == top))

    def shards(self) -> list[int]:
        """Shards with any line, in order."""
        return sorted(self._last)

    def append(self, task: str, entry: Entry) -> None:
        """Write one line durably to the task's file."""
        files.append_line(self.folder / f"{task}.jsonl", entry_to_line(entry))
        self.refresh()

    def refresh(self) -> None:
        """Take in the lines written since the last call, by anybody."""
        stats = _stats(self.folder)
        for name, (inode, read) in self._read.items():
            if name not in stats or stats[name].st_ino != inode or stats[name].st_size < read:
                self._read, self._last = {}, {}
                break
        for name, stat in stats.items():
            _, read = self._read.get(name, (stat.st_ino, 0))
            if stat.st_size > read:
                self._read[name] = (stat.st_ino, read + self._take_in(name, read))

    def _take_in(self, name: str, start: int) -> int:
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:  # its store was removed just now
            return 0
        whole = data.rfind(b"\n") + 1
        at = start
        for line in data[:whole].split(b"\n")[:-1]:
            entry = entry_from_line(line)
            if entry is not None:
                self._last.setdefault(entry.shard, {})[name, entry.maker] = entry
            elif line:
                self._warn(name, at, "damaged")
            at += len(line) + 1
        if whole < len(data):
            self._warn(name, at, "torn")
        return whole

    def _warn(self, name: str, at: int, what: str) -> None:
        if (name, at) not in self._warned:
            self._warned.add((name, at))
            _log.warning("%s: ignoring a %s line at byte %d; its shard will be redone", name, what, at)


def status_runs(status: npt.NDArray[np.uint8]) -> tuple[tuple[int, int], ...]:
    """(code, length) runs of a status array."""
    edges = np.flatnonzero(np.diff(status)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(status)]
    return tuple((int(status[a]), b - a) for a, b in zip(starts, ends, strict=True))


def entry_to_line(entry: Entry) -> str:
    """The entry as one line of JSON that ends with a checksum of itself."""
    record: dict[str, Any] = {"shard": entry.shard, "revision": entry.revision}
    if entry.void:
        record["void"] = True
    if entry.instead:
        record["instead"] = _arrays_to_json(entry.instead)
    if not entry.void or entry.is_replacing:
        statuses = entry.statuses()
        counts = {code.name.lower(): int(np.sum(statuses == code)) for code in RowStatus}
        record |= {
            "rows": len(statuses),
            "keys": entry.keys,
            "arrays": _arrays_to_json(entry.arrays),
            "counts": counts,
            "status": entry.status,
            "failures": entry.failures,
        }
        if entry.maker:
            record["maker"] = entry.maker
    return _dump({**record, "check": files.hash_bytes(_dump(record).encode())})


def entry_from_line(line: bytes) -> Entry | None:
    """The entry of a line, or None if the line is not one that `entry_to_line` wrote."""
    try:
        body, _, check = line.rpartition(b',"check":"')
        if check != files.hash_bytes(body + b"}").encode() + b'"}':
            return None
        record = json.loads(body + b"}")
        return Entry(
            shard=record["shard"],
            revision=record["revision"],
            keys=record.get("keys", ""),
            arrays=_arrays_from_json(record.get("arrays", {})),
            status=tuple((code, length) for code, length in record.get("status", [])),
            failures=tuple(Failure(*failure) for failure in record.get("failures", [])),
            void=record.get("void", False),
            maker=record.get("maker", ""),
            instead=_arrays_from_json(record.get("instead", {})),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _arrays_to_json(arrays: tuple[tuple[str, Stored], ...]) -> dict[str, dict[str, Any]]:
    return {name: stored._asdict() for name, stored in arrays}


def _arrays_from_json(record: Mapping[str, Any]) -> tuple[tuple[str, Stored], ...]:
    return tuple((name, Stored(**stored)) for name, stored in record.items())


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=True)


def _stats(folder: Path) -> dict[str, os.stat_result]:
    """{name: its state} of the ledger files in a folder, sorted; those that vanish meanwhile are left out."""
    stats: dict[str, os.stat_result] = {}
    with suppress(FileNotFoundError):
        for name in sorted(name for name in os.listdir(folder) if name.endswith(".jsonl")):  # noqa: PTH208
            with suppress(FileNotFoundError):
                stats[name] = (folder / name).stat()
    return stats
