"""Which shards of a store are written: ledger, chunk files and clip index must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

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

    def __init__(self, zarr: Path, ledger: Path, specs: Mapping[str, ArraySpec], index: ClipIndex) -> None:
        self.zarr, self.specs, self.index = zarr, specs, index
        self.ledger = Ledger(ledger)
        self.ledger.refresh()

    def state(self, shard: int) -> tuple[Entry | None, str]:
        """(ledger entry or None, what is wrong with it or ""). (None, "") is a shard still to be written."""
        found = self.ledger.candidates(shard)
        entries = [entry for entry in found if not entry.void]
        if len(found) > 1 and entries:  # two writers: believe the one whose files are there
            entries = [entry for entry in entries if not self._size_problem(entry)]
            entries = [entry for entry in entries if not self.hash_problem(entry)]
            if not entries:
                return None, "has ledger lines of two writers, and neither matches the files"
        if not entries:
            return None, ""
        if entries[0].keys != self.index.shard_hash(shard):
            return entries[0], OTHER_CLIPS
        return entries[0], self._size_problem(entries[0])

    def written(self) -> dict[int, Entry]:
        """Entries of all shards that can be trusted."""
        states = ((shard, *self.state(shard)) for shard in range(self.index.num_shards))
        return {shard: entry for shard, entry, problem in states if entry and not problem}

    def statuses(self, rows: npt.NDArray[np.int64], store: str = "") -> npt.NDArray[np.uint8]:
        """`RowStatus` [n] of rows, -1 for none; a damaged shard is pending, or with `store` refused."""
        shards, inverse = np.unique(rows // self.index.rows_per_shard, return_inverse=True)
        table = np.zeros((len(shards), self.index.rows_per_shard), np.uint8)
        for number, shard in enumerate(shards.tolist()):
            entry, problem = self.state(shard) if shard >= 0 else (None, "")
            if problem and store:
                raise IntegrityError(f"{store}: shard {shard} {problem}; run its extraction again to redo it")
            if entry and not problem:
                codes = entry.statuses()
                table[number, : len(codes)] = codes
        result: npt.NDArray[np.uint8] = table[inverse, rows % self.index.rows_per_shard]
        return result

    def commit(self, task: str, entry: Entry, chunks: Mapping[str, bytes]) -> None:
        """Void a line of other content, write the files, write the line: each durable before the next."""
        older = self.ledger.candidates(entry.shard)
        known = len(older) == 1 and older[0].same_content(entry)
        if older and not known:
            revision = older[0].revision
            if not all(other.void for other in older):
                revision += 1
                self.ledger.append(task, Entry(entry.shard, revision, void=True))
            entry = replace(entry, revision=revision)
        for name, data in chunks.items():
            files.write_bytes(self.path(name, entry.shard), data)
        if not known:
            self.ledger.append(task, entry)

    def path(self, name: str, shard: int) -> Path:
        """Chunk file of a shard."""
        return self.zarr / name / chunk_name(self.specs[name], shard)

    def hash_problem(self, entry: Entry) -> str:
        for name, stored in entry.arrays:
            path = self.path(name, entry.shard)
            if files.hash_file(path) != stored.hash:
                return f"differs from what was written: {path}"
        return ""

    def _size_problem(self, entry: Entry) -> str:
        for name, stored in entry.arrays:
            path = self.path(name, entry.shard)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                return f"lacks its file {path}"
            if size != stored.size:
                return f"has {size} bytes where {stored.size} were written: {path}"
        return ""
