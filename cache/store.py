"""The features of one teacher or proxy: Zarr arrays over the rows of the clip index, and a ledger of shards.

A shard is written whole: its chunk files first, each durable, then one ledger line. A shard counts as written
only if its line, its files and its clips agree; everything else is pending or an error, never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ..errors import IntegrityError, UsageError
from ..pipeline import files
from ..pipeline.objects import origin
from .arrays import STATUS, STATUS_SPEC, ArraySpec, ChunkEncoder, fits
from .index import LOCK_FILE, ClipIndex
from .ledger import Entry, Failure, Ledger, RowStatus, Stored, status_runs
from .manifest import LEDGER_FOLDER, MANIFEST, ZARR_FOLDER, Manifest
from .publish import bring, publish_store
from .reading import gather, open_arrays
from .remote import RemoteShards, remove_store
from .shards import OTHER_CLIPS, Shards
from .writing import (
    NonFiniteError,
    ShardError,
    Statuses,
    Values,
    checked_failures,
    checked_status,
    checked_values,
)

__all__ = [
    "ArraySpec",
    "Failure",
    "FeatureStore",
    "NonFiniteError",
    "RowStatus",
    "ShardError",
    "fits",
    "remove",
]


class FeatureStore:
    """One store folder; made by `create` or `open`. Not for several threads at once.

    `arrays`, `fingerprint` and `attributes` are as at creation; `index` is the clip index it was opened with.
    """

    def __init__(self, path: Path, index: ClipIndex, task: str = "local", maker: str = "") -> None:
        if not task.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"task name {task!r}: letters, digits, - and _ only")
        manifest = Manifest.read(path)
        if manifest.rows_per_shard != index.rows_per_shard:
            raise IntegrityError(
                f"{path} has {manifest.rows_per_shard} rows per shard, the index at {index.root} "
                f"{index.rows_per_shard}: they do not belong together"
            )
        self.path, self.index, self.task, self.maker = path, index, task, maker
        self.fingerprint, self.attributes = manifest.fingerprint, manifest.attributes
        self.arrays = manifest.arrays
        specs = {**manifest.arrays, STATUS: STATUS_SPEC}
        remote = origin(index.root)
        if remote is None:
            self._shards = Shards(path / ZARR_FOLDER, Ledger(path / LEDGER_FOLDER), specs, index)
        else:
            self._shards = RemoteShards(remote, path, specs, index)
        self._zarr = open_arrays(self._shards.location, specs, index.rows_per_shard)
        self._encoders: dict[str, ChunkEncoder] = {}

    @classmethod
    def create(
        cls,
        path: files.StrPath,
        index: ClipIndex,
        arrays: Mapping[str, ArraySpec],
        fingerprint: Mapping[str, Any],
        attributes: Mapping[str, Any],
        task: str = "local",
        maker: str = "",
    ) -> FeatureStore:
        """Make a store, or open the existing one and let it grow with the index.

        `fingerprint` and `attributes`: mappings that JSON can hold; attributes are for readers and are kept
        from the first creation. `task` names the ledger file of this writer, `maker` the device and software it
        computes with; the ledger keeps it. Left-overs of killed writers are removed. Raises FingerprintMismatch
        if the store was made with another fingerprint or other arrays (nothing is touched), IntegrityError if it
        is damaged or was written for another clip index.
        """
        path = Path(path)
        manifest = Manifest.make(path.name, index.rows_per_shard, arrays, fingerprint, attributes)
        with files.locked(path.parent / LOCK_FILE):
            remote = origin(index.root)
            seen = bring(remote, index.root, path.name) if remote else {}
            made = (path / MANIFEST).exists()
            if made:
                manifest = Manifest.read(path).check_same(manifest, path)
            else:
                _remove_half_made(path)
            for folder in (path, path / LEDGER_FOLDER, path / ZARR_FOLDER, *path.glob(f"{ZARR_FOLDER}/*/")):
                files.remove_partials(folder)
            manifest.write_metadata(path, index)
            files.make_dir(path / LEDGER_FOLDER)
            if not made:
                manifest.write(path)
            files.sync_dir(path)  # a killed creator may have renamed without it
            if remote:
                publish_store(remote, index.root, path.name, seen)
        store = cls(path, index, task, maker)
        store._refuse_other_clips()
        return store

    @classmethod
    def open(cls, path: files.StrPath, index: ClipIndex, task: str = "local", maker: str = "") -> FeatureStore:
        """Open an existing store; nothing is changed. Raises MissingInputError or IntegrityError."""
        return cls(Path(path), index, task, maker)

    def pending(self, rows: npt.ArrayLike | None = None) -> list[int]:
        """Shards that are not written, or whose files are missing or of a wrong size.

        With `rows`: only shards that hold any of them, and also written shards in which some of these rows
        are still pending (written by a run that did not have these clips).
        """
        if rows is None:
            self._shards.ledger.refresh()
            written = self._shards.written()
            return [s for s in range(self.index.num_shards) if s not in written or written[s].void]
        asked = self._checked_rows(rows)
        left = asked[(self.status(asked) == RowStatus.PENDING) & (asked >= 0)]
        return [int(shard) for shard in np.unique(left // self.index.rows_per_shard)]

    def write_shard(self, shard: int, values: Values, status: npt.ArrayLike, failures: Sequence[Failure] = ()) -> None:
        """Write all rows of `index.shard_rows(shard)` durably: chunk files first, then the ledger line.

        `values[name]`: floating [rows, *shape], cast to the stored dtype; rows that are not DONE are stored
        as NaN, whatever they hold. `status`: `RowStatus` [rows]. `failures`: one for each FAILED row. Rows
        given as PENDING keep what an earlier write of the shard has for them. Raises ShardError,
        NonFiniteError (mark such clips FAILED; see `fits`), or OSError; after an error or a kill the shard
        is still to be done.
        """
        self._shards.ledger.refresh()
        keys, rows, where = (
            self.index.keys(shard),
            self.index.shard_rows(shard),
            f"{self.path}: shard {shard}",
        )
        if rows.stop > self._zarr[STATUS].shape[0]:
            raise ShardError(f"{where} is beyond the store's end: `create` lets it grow with the index")
        codes = checked_status(where, status, len(rows))
        blocks = checked_values(where, self.arrays, values, codes)
        reasons = checked_failures(where, keys, codes, failures)
        kept = self._keep_earlier(shard, blocks, codes, reasons)
        chunks = {name: self._encode(name, block) for name, block in (*blocks.items(), (STATUS, codes))}
        entry = Entry(
            shard=shard,
            revision=0,
            keys=self.index.shard_hash(shard),
            arrays=tuple((name, Stored(files.hash_bytes(data), len(data))) for name, data in chunks.items()),
            status=status_runs(codes),
            failures=tuple(reasons[key.clip_id] for key in keys if key.clip_id in reasons),
            maker=self.maker,
        )
        self._shards.commit(self.task, entry, chunks, kept)

    def status(self, rows: npt.ArrayLike | None = None) -> Statuses:
        """uint8 [n] of `RowStatus`, of all rows by default, read from the ledger.

        PENDING are also unknown rows (-1), and all rows of a shard whose files are missing or cut.
        """
        self._shards.ledger.refresh()
        return self._shards.statuses(self._checked_rows(np.arange(self.index.num_rows) if rows is None else rows))

    def coverage(self, rows: npt.ArrayLike | None = None) -> dict[str, int]:
        """How many of the rows are done, failed, absent and pending, and their number ("clips").

        By default of all rows that belong to a clip.
        """
        status = self.status(self._clip_rows() if rows is None else rows)
        counts = {code.name.lower(): int(np.count_nonzero(status == code)) for code in RowStatus}
        return {"clips": len(status), **counts}

    def failures(self) -> list[Failure]:
        """Failures of all written shards, in row order."""
        self._shards.ledger.refresh()
        return [failure for entry in self._shards.written().values() for failure in entry.failures]

    def read(self, rows: npt.ArrayLike, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """(values [n, *shape] in the stored dtype, present bool [n]); see `load`."""
        return self.load(name, rows, self._spec(name).dtype)

    def load(
        self, name: str, rows: npt.ArrayLike, dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """(contiguous values [n, *shape], present bool [n]) of rows in any order, -1 for none.

        Rows that are not DONE are NaN and not present. Checksums are verified. Raises IntegrityError, naming
        the file, if a shard that was written is missing, cut, damaged or of other clips.
        """
        spec = self._spec(name)
        self._shards.ledger.refresh()
        asked = self._checked_rows(rows)
        present = self._shards.statuses(asked, self.path.name) == RowStatus.DONE
        out = np.empty((len(asked), *spec.shape), dtype)
        out[~present] = np.nan
        gather(self._zarr[name], spec, asked[present], out, np.flatnonzero(present))
        return out, present

    def entry(self, shard: int) -> Entry | None:
        """What the ledger says about a shard, None if it is still to be written or cannot be trusted."""
        self._shards.ledger.refresh()
        entry, problem = self._shards.state(shard)
        return None if problem else entry

    def verify(self, full: bool = False) -> dict[int, str]:
        """{shard: why it cannot be trusted} of all written shards; `full` also compares every file's hash."""
        problems = {shard: self.problem(shard, full) for shard in self.written()}
        return {shard: problem for shard, problem in problems.items() if problem}

    def written(self) -> list[int]:
        """Shards that were written and not taken back, whether their files are still good or not."""
        self._shards.ledger.refresh()
        ledger = self._shards.ledger
        return [shard for shard in ledger.shards() if not all(entry.void for entry in ledger.candidates(shard))]

    def problem(self, shard: int, full: bool = False) -> str:
        """Why a shard cannot be trusted, "" if it can or is still to be written; `full` as for `verify`."""
        self._shards.ledger.refresh()
        if shard >= self.index.num_shards:
            return "is not in the clip index"
        entry, problem = self._shards.state(shard)
        return self._shards.hash_problem(entry) if full and entry and not problem else problem

    def revision(self, shard: int) -> int:
        """How often a shard was written anew, as far as was last seen; -1 for one that was never written."""
        found = self._shards.ledger.candidates(shard)
        return found[0].revision if found else -1

    def redo(self, shard: int, revision: int | None = None) -> bool:
        """Take a shard back, durably: it is pending from now on. False for one of other clips: that stays.

        `revision`: that which was judged; what somebody wrote after it is not taken back.
        """
        if self.problem(shard) == OTHER_CLIPS or shard >= self.index.num_shards:
            return False
        self._shards.void(self.task, shard, revision=revision)
        return True

    def drop(self, shard: int) -> None:
        """Take a shard back, durably, and remove its files."""
        self._shards.ledger.refresh()
        self._shards.drop(self.task, shard)

    def size(self, shard: int) -> int:
        """Bytes of a shard's files, written or left over."""
        return sum(self._shards.chunk_size(name, shard) or 0 for name in self._shards.specs)

    def zarr_array(self, name: str) -> zarr.Array[Any]:
        """The Zarr array [N, *shape] itself, for reading; rows that are not done are NaN. Raises UsageError."""
        self._spec(name)
        return self._zarr[name]

    def _refuse_other_clips(self) -> None:
        for shard in self._shards.ledger.shards():
            if shard < self.index.num_shards and self._shards.state(shard)[1] == OTHER_CLIPS:
                raise IntegrityError(f"{self.path}: shard {shard} {OTHER_CLIPS}: restore the index it was made with")

    def _keep_earlier(
        self, shard: int, blocks: dict[str, npt.NDArray[Any]], codes: Statuses, reasons: dict[str, Failure]
    ) -> Entry | None:
        """Fill rows given as PENDING from what is written, in place; the entry of the files as they are, of these."""
        entry, problem = self._shards.state(shard)
        if entry is None or problem:
            return None
        kept = (codes == RowStatus.PENDING) & (entry.statuses() != RowStatus.PENDING)
        if not kept.any():
            return None
        rows = np.array(self.index.shard_rows(shard), np.int64)[kept]
        for name, block in blocks.items():
            block[kept] = self.read(rows, name)[0]
        codes[kept] = entry.statuses()[kept]
        ids = {key.clip_id for key, keep in zip(self.index.keys(shard), kept, strict=True) if keep}
        failures = tuple(failure for failure in entry.failures if failure.clip_id in ids)
        reasons.update({failure.clip_id: failure for failure in failures})
        return replace(entry, status=status_runs(np.where(kept, codes, RowStatus.PENDING)), failures=failures)

    def _encode(self, name: str, block: npt.NDArray[Any]) -> bytes:
        if name not in self._encoders:
            self._encoders[name] = ChunkEncoder(self._shards.specs[name], self.index.rows_per_shard)
        return self._encoders[name].encode(block)

    def _spec(self, name: str) -> ArraySpec:
        if name not in self.arrays:
            raise UsageError(f"{self.path} has no array {name!r}; it has {', '.join(self.arrays)}")
        return self.arrays[name]

    def _clip_rows(self) -> npt.NDArray[np.int64]:
        ranges = [np.arange(g.start, g.start + g.rows) for g in self.index.generations]
        return np.concatenate([np.empty(0, np.int64), *ranges])

    def _checked_rows(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        asked = np.asarray(rows, np.int64)
        if asked.ndim != 1 or (asked.size and not -1 <= asked.min() <= asked.max() < self.index.num_rows):
            raise IndexError(f"rows of the clip index wanted (-1 .. {self.index.num_rows - 1}), got {rows!r}")
        return asked


def remove(path: files.StrPath) -> None:
    """Remove a whole store, for --overwrite; if killed in between, `remove` again finishes it.

    Raises UsageError for a folder that holds anything else.
    """
    path = Path(path)
    with files.locked(path.parent / LOCK_FILE):
        _remove_store(path)


def _remove_store(path: Path) -> None:
    ours = {LEDGER_FOLDER, ZARR_FOLDER, MANIFEST}
    if remote := origin(path.parent):
        remove_store(remote, path.name)
    others = [entry.name for entry in path.glob("*") if entry.name not in ours and not _is_partial(entry)]
    if others:
        raise UsageError(f"{path} is no feature store, it holds {', '.join(sorted(others)[:5])}: not removed")
    for part in (LEDGER_FOLDER, ZARR_FOLDER):  # the manifest last: what is left is still this store
        files.remove_tree(path / part)
    files.remove_tree(path)


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(files.PARTIAL)


def _remove_half_made(path: Path) -> None:
    """Clear what a killed `create` left; refuse anything that may hold features."""
    if any(path.glob(f"{ZARR_FOLDER}/*/c.*")) or any((path / LEDGER_FOLDER).glob("*.jsonl")):
        raise IntegrityError(f"{path} holds features but no {MANIFEST}: restore it, or remove the folder")
    _remove_store(path)
