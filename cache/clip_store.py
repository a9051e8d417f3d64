"""The clip store: ego clips as single images, so that a few frames of any clip are read without decoding a video.

It is laid out like the feature store and keeps its promises: a clip index, a ledger, and shards that are written whole
(see `clip_format`); a shard counts only if its ledger line, its file and its clips agree.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import FingerprintMismatch, IntegrityError, MissingInputError, fingerprint_difference
from ..pipeline import files
from . import clip_format
from .arrays import ArraySpec
from .clip_format import ClipHeader, DamagedError, Place
from .index import LOCK_FILE, ClipIndex, RowKey
from .ledger import Entry, Failure, Ledger, RowStatus, Stored, status_runs
from .manifest import LEDGER_FOLDER, MANIFEST, Manifest
from .shards import Shards

STORE = "frames"
_IMAGES = "images"
_OPEN_FILES = 64


class Record(NamedTuple):
    """One clip as it is written: its record (see `clip_format.pack_clip`), or why there is none."""

    data: bytes = b""
    failure: Failure | None = None


class ClipStore:
    """A folder of stored clips; made by `create` or `open`. Not for several threads at once.

    `fingerprint` is as at creation, `index` says which row belongs to which clip.
    """

    def __init__(self, root: Path, index: ClipIndex) -> None:
        self.root, self.index = root, index
        path, manifest = root / STORE, Manifest.read(root / STORE)
        if manifest.rows_per_shard != index.rows_per_shard:
            raise IntegrityError(
                f"{path} and the index at {root} have other numbers of rows per shard: not of one store"
            )
        self.fingerprint = manifest.fingerprint
        self._shards = Shards(path, Ledger(path / LEDGER_FOLDER), {_IMAGES: ArraySpec(())}, index)
        self._open: OrderedDict[int, tuple[int, list[Place]]] = OrderedDict()

    @classmethod
    def create(
        cls, root: Path, keys: Iterable[RowKey], fingerprint: Mapping[str, Any], rows_per_shard: int | None = None
    ) -> ClipStore:
        """Make a store, or open the existing one, and give every clip a row.

        `rows_per_shard` counts at creation only. Left-overs of killed writers are removed. Raises FingerprintMismatch
        if the store was made under other settings (nothing is touched), IntegrityError if it is damaged.
        """
        path = root / STORE
        if cls.exists(root):
            cls.open(root).refuse_other(fingerprint)
        index = ClipIndex.plan(root, keys, rows_per_shard)
        with files.locked(root / LOCK_FILE):
            for folder in (path, path / LEDGER_FOLDER, path / _IMAGES):
                files.remove_partials(folder)
            files.make_dir(path / LEDGER_FOLDER)
            if not (path / MANIFEST).exists():
                _manifest(index.rows_per_shard, fingerprint).write(path)
            files.sync_dir(path)
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> ClipStore:
        """Open an existing store; nothing is changed. Raises MissingInputError or IntegrityError."""
        if not (root / STORE / MANIFEST).exists():
            raise MissingInputError(f"no clip store at {root}: run `uniego prepare-clips` first")
        return cls(root, ClipIndex.open(root))

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether a store has been made here."""
        return (root / STORE / MANIFEST).exists()

    def refuse_other(self, fingerprint: Mapping[str, Any]) -> None:
        """Raises FingerprintMismatch unless the store was made under these settings, as far as they are named."""
        wanted = _manifest(0, fingerprint).fingerprint
        different = fingerprint_difference({name: self.fingerprint.get(name) for name in wanted}, wanted)
        if different:
            advice = (
                "Restore those settings, set clips.root to another folder, or remove this one; nothing was changed."
            )
            raise FingerprintMismatch(f"the clip store {self.root}", different, advice)

    def pending(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Shards in which any of these rows is still to be written, or whose file is missing or of a wrong size."""
        left = rows[(self.status(rows) == RowStatus.PENDING) & (rows >= 0)]
        return [int(shard) for shard in np.unique(left // self.index.rows_per_shard)]

    def status(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """uint8 [n] of `RowStatus`; PENDING are also unknown rows (-1) and all rows of a damaged shard."""
        self._shards.ledger.refresh()
        return self._shards.statuses(rows)

    def failures(self, rows: npt.NDArray[np.int64]) -> list[Failure]:
        """Why those of the rows that failed did, in row order."""
        failed = np.sort(rows[self.status(rows) == RowStatus.FAILED]).tolist()
        return [failure for failure in map(self.failure, failed) if failure is not None]

    def failure(self, row: int) -> Failure | None:
        """Why a row failed, None if it did not."""
        shard = row // self.index.rows_per_shard
        entry = self._shards.state(shard)[0]
        clip_id = self.index.keys(shard)[row - self.index.shard_rows(shard).start].clip_id
        return next((failure for failure in entry.failures if failure.clip_id == clip_id), None) if entry else None

    def size(self) -> int:
        """Bytes of all shards' files."""
        return sum(map(self.shard_size, range(self.index.num_shards)))

    def shard_size(self, shard: int) -> int:
        """Bytes of a shard's file, written or left over."""
        return self._shards.chunk_size(_IMAGES, shard) or 0

    def problems(self, *, full: bool = False) -> dict[int, str]:
        """{shard: what is wrong}: ledger against files and their sizes; with `full` every byte. Nothing is changed."""
        self._shards.ledger.refresh()
        bad = {}
        for shard in range(self.index.num_shards):
            entry, problem = self._shards.state(shard)
            problem = problem or (self._shards.hash_problem(entry) if entry and full else "")
            if problem:
                bad[shard] = problem
        return bad

    def drop(self, shard: int) -> None:
        """Take a shard back, durably, and remove its file."""
        self._shards.ledger.refresh()
        self._close(shard)
        self._shards.drop("local", shard)

    def write_shard(self, shard: int, records: Mapping[int, Record]) -> int:
        """Write the given rows of a shard durably, its file first and then the ledger line; bytes of the file.

        Rows that are not given keep what an earlier write has for them, and are pending otherwise. After an error or
        a kill the shard is still to be done. Raises OSError, IntegrityError where what is to be kept is damaged.
        """
        self._shards.ledger.refresh()
        rows = self.index.shard_rows(shard)
        everything = {**self._earlier(shard, [row for row in rows if row not in records]), **records}
        found = [everything.get(row) for row in rows]
        codes = np.array([_code(record) for record in found], np.uint8)
        data = clip_format.pack_shard([record.data if record else b"" for record in found])
        entry = Entry(
            shard=shard,
            revision=0,
            keys=self.index.shard_hash(shard),
            arrays=((_IMAGES, Stored(files.hash_bytes(data), len(data))),),
            status=status_runs(codes),
            failures=tuple(record.failure for record in found if record and record.failure),
        )
        self._close(shard)
        self._shards.commit("local", entry, {_IMAGES: data})
        return len(data)

    def is_stored(self, row: int) -> bool:
        """Whether a row has images. Raises IntegrityError if its shard is damaged, or not written."""
        return self._place(row)[1].header > 0

    def header(self, row: int) -> ClipHeader:
        """What is known of a stored clip. Raises IntegrityError naming the file if it is damaged."""
        place = self._place(row)[1]
        with self._blaming(row):
            return clip_format.unpack_header(self._bytes(row, place.start, place.header))

    def images(self, row: int, header: ClipHeader, places: Iterable[int]) -> list[bytes]:
        """The images at these places of the header, as they were written. Raises IntegrityError."""
        record, images = self._place(row)[1], []
        with self._blaming(row):
            for place in places:
                start, end = header.span(place)
                images.append(self._bytes(row, record.start + record.header + start, end - start))
                header.check(place, images[-1])
        return images

    @contextmanager
    def _blaming(self, row: int) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            raise self.damaged(row, error) from error

    def damaged(self, row: int, error: Exception) -> IntegrityError:
        """The refusal of what a row's shard holds."""
        path = self._shards.path(_IMAGES, row // self.index.rows_per_shard)
        return IntegrityError(
            f"{path} is damaged: {error}; `uniego prepare-clips --verify` finds and redoes such shards"
        )

    def redo_damaged(self) -> dict[int, str]:
        """Compare every byte with what was written; {shard: what is wrong} of those taken back, pending from now on."""
        bad = self.problems(full=True)
        for shard in bad:
            self._close(shard)
            self._shards.void("local", shard)
        return bad

    def _place(self, row: int) -> tuple[int, Place]:
        """The open file of a row's shard, and where its record lies."""
        shard = row // self.index.rows_per_shard
        if shard not in self._open:
            self._open[shard] = self._opened(shard, row)
            while len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(shard)
        fd, places = self._open[shard]
        return fd, places[row - self.index.shard_rows(shard).start]

    def _opened(self, shard: int, row: int) -> tuple[int, list[Place]]:
        entry, problem = self._shards.state(shard)
        if entry is None or problem:
            raise self.damaged(row, DamagedError(problem or "nothing of this shard is in the ledger"))
        fd = os.open(self._shards.path(_IMAGES, shard), os.O_RDONLY)
        try:
            with self._blaming(row):
                size = clip_format.directory_size(len(self.index.shard_rows(shard)))
                return fd, clip_format.unpack_directory(os.pread(fd, size, 0))
        except BaseException:
            os.close(fd)
            raise

    def _bytes(self, row: int, start: int, size: int) -> bytes:
        data = os.pread(self._place(row)[0], size, start)
        if len(data) != size:
            raise DamagedError(f"it ends after {len(data)} of {size} bytes from byte {start}")
        return data

    def _earlier(self, shard: int, rows: Sequence[int]) -> dict[int, Record]:
        """Records of rows that an earlier write has: of clips that another run asked for."""
        kept = {}
        for row, status in zip(rows, self._shards.statuses(np.array(rows, np.int64)).tolist(), strict=True):
            if status == RowStatus.FAILED:
                kept[row] = Record(failure=self.failure(row))
            elif status == RowStatus.DONE:
                header = self.header(row)
                images = self.images(row, header, range(len(header.frames)))
                kept[row] = Record(clip_format.repack(header, images))
        return kept

    def close(self) -> None:
        """Close the files; reading opens them again."""
        for shard in list(self._open):
            self._close(shard)

    def _close(self, shard: int) -> None:
        if shard in self._open:
            os.close(self._open.pop(shard)[0])


def _code(record: Record | None) -> RowStatus:
    if record is None:
        return RowStatus.PENDING
    return RowStatus.FAILED if record.failure else RowStatus.DONE


def _manifest(rows_per_shard: int, fingerprint: Mapping[str, Any]) -> Manifest:
    return Manifest.make(
        STORE, rows_per_shard, {_IMAGES: ArraySpec(())}, {"format": clip_format.VERSION, **fingerprint}, {}
    )
