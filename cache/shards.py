"""Which shards of a store are written: ledger, chunk files and clip index must agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError
from ..pipeline import files
from .arrays import ArraySpec, chunk_name
from .index import ClipIndex
from .ledger import Entry, Ledger

OTHER_CLIPS = "was written for other clips than the index has"


class Shards:
    """The shards of one store. `specs`: its arrays, the status included; `zarr`: their folder."""

    def __init__(self, zarr: Path, ledger: Ledger, specs: Mapping[str, ArraySpec], index: ClipIndex) -> None:
        self.zarr, self.specs, self.index = zarr, specs, index
        self._folders = {name: str(zarr / name) for name in specs}
        self.ledger = ledger
        self.ledger.refresh()

    def state(self, shard: int) -> tuple[Entry | None, str]:
        """(ledger entry or None, what is wrong with it or ""). (None, "") is a shard still to be written.

        A void entry is of a shard whose replacing was cut short: it has the rows that are kept, and is to be written.
        """
        found = self.ledger.candidates(shard)
        entries = [entry for entry in found if not entry.void]
        if len(found) > 1 and entries:  # two writers: believe the one whose files are there
            entries = [entry for entry in entries if not self._size_problem(entry)]
            entries = [entry for entry in entries if not self.hash_problem(entry)]
            if not entries:
                return None, "has ledger lines of two writers, and neither matches the files"
        if not entries:
            return self._kept(shard, found), ""
        if entries[0].keys != self.index.shard_hash(shard):
            return entries[0], OTHER_CLIPS
        return entries[0], self._size_problem(entries[0])

    def written(self) -> dict[int, Entry]:
        """Entries of all shards that can be trusted, with those that are being replaced."""
        states = ((shard, *self.state(shard)) for shard in range(self.index.num_shards))
        return {shard: entry for shard, entry, problem in states if entry and not problem}

    def statuses(self, rows: npt.NDArray[np.int64], store: str = "") -> npt.NDArray[np.uint8]:
        """`RowStatus` [n] of rows, -1 for none; a damaged shard is pending, or with `store` refused."""
        size = self.index.rows_per_shard
        shards = rows // size  # -1 for none, which the last line of the table stands for
        table = np.zeros((self.index.num_shards + 1, size), np.uint8)
        for shard in np.flatnonzero(np.bincount(shards + 1)) - 1:
            entry, problem = self.state(int(shard)) if shard >= 0 else (None, "")
            if problem and store:
                raise IntegrityError(f"{store}: shard {shard} {problem}; run its extraction again to redo it")
            if entry and not problem:
                codes = entry.statuses()
                table[shard, : len(codes)] = codes
        result: npt.NDArray[np.uint8] = table[shards, rows % size]
        return result

    def commit(self, task: str, entry: Entry, chunks: Mapping[str, bytes], kept: Entry | None = None) -> None:
        """Void a line of other content, write the files, write the line: each durable before the next.

        `kept`: an entry of the present files with the status of those rows that the new files have too.
        """
        older = self.ledger.candidates(entry.shard)
        known = len(older) == 1 and not older[0].void and older[0].same_content(entry)
        if older and not known:
            kept = kept and replace(kept, void=True, arrays=entry.arrays, instead=kept.arrays, maker=entry.maker)
            entry = replace(entry, revision=self.void(task, entry.shard, kept) + 1)
        for name, data in chunks.items():
            self.write_chunk(name, entry.shard, data)
        if not known:
            self.ledger.append(task, entry)

    def void(self, task: str, shard: int, kept: Entry | None = None, revision: int | None = None) -> int:
        """Take back the lines of a shard, durably, and return the revision of the line that does it.

        `kept`: a void entry with the rows that stay meanwhile. `revision`: take back lines up to this one only.
        """
        older = self.ledger.candidates(shard)
        if not older:
            return -1
        if kept is None and all(entry.void and not entry.is_replacing for entry in older):
            return older[0].revision
        following = (older[0].revision if revision is None else revision) + 1
        self.ledger.append(task, replace(kept or Entry(shard, 0, void=True), revision=following))
        return following

    def drop(self, task: str, shard: int) -> None:
        """Void a shard and remove its files."""
        self.void(task, shard)
        for name in self.specs:
            self.remove_chunk(name, shard)

    def location(self, name: str) -> Any:
        """Where zarr opens an array."""
        return self._folders[name]

    def label(self, name: str, shard: int) -> str:
        """A chunk's place in words."""
        return f"{self._folders[name]}/{chunk_name(self.specs[name], shard)}"

    def chunk_size(self, name: str, shard: int, expected: int | None = None) -> int | None:
        """Bytes of a chunk, None if it is not there; `expected` are those that it should have."""
        try:
            return os.stat(self.label(name, shard)).st_size  # noqa: PTH116  (plain text: there are thousands of them)
        except FileNotFoundError:
            return None

    def chunk_hash(self, name: str, shard: int) -> str:
        """Hash of a chunk's bytes."""
        return files.hash_file(self.path(name, shard))

    def write_chunk(self, name: str, shard: int, data: bytes) -> None:
        """Write a chunk whole and durably."""
        files.write_bytes(self.path(name, shard), data)

    def remove_chunk(self, name: str, shard: int) -> None:
        """Remove a chunk durably; a missing one is fine."""
        path = self.path(name, shard)
        if path.exists():
            files.operations.unlink(path)
            files.sync_dir(path.parent)

    def path(self, name: str, shard: int) -> Path:
        """Chunk file of a shard."""
        return self.zarr / name / chunk_name(self.specs[name], shard)

    def hash_problem(self, entry: Entry) -> str:
        """What is wrong with the content of a shard's files, which are there; "" if nothing."""
        for name, stored in entry.arrays:
            if self.chunk_hash(name, entry.shard) != stored.hash:
                return f"differs from what was written: {self.label(name, entry.shard)}"
        return ""

    def _kept(self, shard: int, found: list[Entry]) -> Entry | None:
        """The entry of a shard whose replacing was cut short, if each file is still that before or already that after.

        The kept rows are the same in both.
        """
        for entry in found:
            if entry.is_replacing and entry.keys == self.index.shard_hash(shard):
                before, actual = dict(entry.instead), []
                for name, after in entry.arrays:
                    there = self.chunk_size(name, shard) is not None
                    content = self.chunk_hash(name, shard) if there else ""
                    actual += [(name, stored) for stored in (before[name], after) if stored.hash == content][:1]
                if len(actual) == len(entry.arrays):
                    return replace(entry, arrays=tuple(actual))
        return None

    def _size_problem(self, entry: Entry) -> str:
        for name, stored in entry.arrays:
            size = self.chunk_size(name, entry.shard, stored.size)
            if size is None:
                return f"lacks its file {self.label(name, entry.shard)}"
            if size != stored.size:
                return f"has {size} bytes where {stored.size} were written: {self.label(name, entry.shard)}"
        return ""
