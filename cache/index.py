"""Which row belongs to which clip, and which rows make a shard; the same for all teachers of a cache.

Clips come in generations: each plan that brings new clips appends one, from the next shard boundary on. Rows
never move. A generation is an immutable text file, one `clip_id<TAB>identity` a line, sorted; `index.json`
names them.
"""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError, MissingInputError, UsageError
from ..pipeline import files
from ..pipeline.objects import Found, Objects, origin
from .publish import bring, put, put_generation

SCHEMA_VERSION = 1
LOCK_FILE = ".lock"
_INDEX_FILE = "index.json"
_FEWEST, _MOST = 8, 1024  # rows of a shard
_LONGEST_SHARD = 600.0  # seconds of work
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RowKey(NamedTuple):
    """What a row is made from: the clip, and a hash of its source (another video, another row)."""

    clip_id: str
    identity: str


class Generation(NamedTuple):
    """Rows `start` .. `start + rows - 1`, listed in `file` (relative to the cache) of that hash."""

    file: str
    start: int
    rows: int
    hash: str


class ClipIndex:
    """Rows and shards of one cache folder.

    `rows_per_shard` rows make a shard; the last shard of a generation may be shorter, the rows up to the next
    boundary then belong to no clip.
    """

    def __init__(self, root: Path, rows_per_shard: int, generations: Sequence[Generation]) -> None:
        self.root = root
        self.rows_per_shard = rows_per_shard
        self.generations = tuple(generations)
        self._starts = [generation.start for generation in generations]
        self._data: dict[int, bytes] = {}
        self._ends: dict[int, npt.NDArray[np.int64]] = {}  # of the lines, newline excluded
        self._lines: dict[int, list[bytes]] = {}
        self._shard_hashes: dict[int, str] = {}

    @classmethod
    def plan(cls, root: files.StrPath, keys: Iterable[RowKey], rows_per_shard: int | None = None) -> ClipIndex:
        """Give every key a row and return the index; known keys keep theirs, and so do clips no longer named.

        `rows_per_shard` counts at creation only (default: `suggested_rows`) and is kept by all later plans. One
        planner works at a time, others wait. Raises UsageError for a clip named twice or an id with control
        characters, IntegrityError for a damaged index, UniegoError if another machine plans in object storage at
        the same moment.
        """
        root = Path(root)
        lines = _sorted_lines(keys)
        with files.locked(root / LOCK_FILE):
            remote = origin(root)
            seen = bring(remote, root, _INDEX_FILE, "index") if remote else {}
            files.remove_partials(root)
            files.remove_partials(root / "index")
            if (root / _INDEX_FILE).exists():
                index = cls.open(root)
            else:
                _refuse_orphans(root)
                index = cls(root, rows_per_shard or suggested_rows(len(lines)), [])
            new = [line for line in lines if index._row(line) < 0]
            if new or not (root / _INDEX_FILE).exists():
                index = index._append(new, remote, seen.get(_INDEX_FILE))
            files.sync_dir(root)  # a killed planner may have renamed without it
        return index

    @staticmethod
    def exists(root: files.StrPath) -> bool:
        """Whether a cache has been planned here."""
        return (Path(root) / _INDEX_FILE).exists()

    @classmethod
    def open(cls, root: files.StrPath) -> ClipIndex:
        """The index of an existing cache. Raises MissingInputError or IntegrityError."""
        path = Path(root) / _INDEX_FILE
        try:
            stored = json.loads(path.read_bytes())
            version = stored["schema_version"]
            generations = [Generation(**generation) for generation in stored["generations"]]
            index = cls(Path(root), int(stored["rows_per_shard"]), generations)
        except FileNotFoundError:
            raise MissingInputError(f"no clip index at {path}: extraction makes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from error
        if version != SCHEMA_VERSION:
            raise IntegrityError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
        if any(generation.start % index.rows_per_shard for generation in generations):
            raise IntegrityError(f"{path} has generations that do not start at a shard")
        return index

    @property
    def num_rows(self) -> int:
        """Rows up to the last clip, those between generations included: the first length of all arrays."""
        return self.generations[-1].start + self.generations[-1].rows if self.generations else 0

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def shard_rows(self, shard: int) -> range:
        """Rows of a shard that belong to clips. Raises IndexError for a shard that does not exist."""
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"shard {shard} of {self.num_shards} in {self.root}")
        start = shard * self.rows_per_shard
        generation = self.generations[bisect_right(self._starts, start) - 1]
        return range(start, min(start + self.rows_per_shard, generation.start + generation.rows))

    def keys(self, shard: int) -> list[RowKey]:
        """Keys of `shard_rows(shard)`, in order."""
        return [RowKey(*line.decode().split("\t")) for line in self._shard_text(shard).split(b"\n")]

    def rows(self, keys: Iterable[RowKey]) -> npt.NDArray[np.int64]:
        """int64 [n]: the row of each key, -1 for an unknown one (also for another identity)."""
        return np.fromiter((self._row(_line(key)) for key in keys), dtype=np.int64)

    def shard_hash(self, shard: int) -> str:
        """Hash of a shard's keys: features written for other clips do not count as this shard's."""
        if shard not in self._shard_hashes:
            self._shard_hashes[shard] = files.hash_bytes(self._shard_text(shard))
        return self._shard_hashes[shard]

    def _append(self, lines: list[bytes], remote: Objects | None, seen: Found | None) -> ClipIndex:
        """With a generation of these lines; in object storage first, if its index.json is still what was seen."""
        start = self.num_shards * self.rows_per_shard
        generations = list(self.generations)
        if lines:
            data = b"\n".join(lines) + b"\n"
            name = f"index/rows-{len(generations):06d}.tsv"
            if remote:
                name = put_generation(remote, name, data)
            files.write_bytes(self.root / name, data)
            generations.append(Generation(name, start, len(lines), files.hash_bytes(data)))
        stored: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "rows_per_shard": self.rows_per_shard,
            "generations": [generation._asdict() for generation in generations],
        }
        if remote:
            put(remote, self.root, _INDEX_FILE, files.to_json(stored), seen)
        files.write_json(self.root / _INDEX_FILE, stored)
        return ClipIndex(self.root, self.rows_per_shard, generations)

    def _row(self, line: bytes) -> int:
        for number, generation in enumerate(self.generations):
            lines = self._generation(number)
            at = bisect_left(lines, line)
            if at < len(lines) and lines[at] == line:
                return generation.start + at
        return -1

    def _shard_text(self, shard: int) -> bytes:
        """Lines of a shard, joined by newlines; its file is not split for this."""
        rows = self.shard_rows(shard)
        number = bisect_right(self._starts, rows.start) - 1
        data, start = self._content(number), self.generations[number].start
        if number not in self._ends:
            self._ends[number] = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        ends = self._ends[number]
        first = int(ends[rows.start - start - 1]) + 1 if rows.start > start else 0
        return data[first : int(ends[rows.stop - start - 1])]

    def _generation(self, number: int) -> list[bytes]:
        """Lines of a generation, split once."""
        if number not in self._lines:
            self._lines[number] = self._content(number).split(b"\n")[:-1]
        return self._lines[number]

    def _content(self, number: int) -> bytes:
        """A generation's file, read and checked once."""
        if number not in self._data:
            generation = self.generations[number]
            path = self.root / generation.file
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise IntegrityError(f"{path} is missing: it says which row belongs to which clip") from None
            if files.hash_bytes(data) != generation.hash or data.count(b"\n") != generation.rows:
                raise IntegrityError(f"{path} differs from what {_INDEX_FILE} says was written")
            self._data[number] = data
        return self._data[number]


def suggested_rows(clips: int, seconds: float = 0.0) -> int:
    """Clips per shard: a power of two, so that a repeated measurement rarely chooses another number.

    A sixteenth of the clips, from 8 up to 1024 (a million clips then make under a thousand files an array), but not
    more than ten minutes of work where a clip takes `seconds`.
    """
    wanted = max(_FEWEST, min(clips // 16, _MOST))
    if seconds * wanted > _LONGEST_SHARD:
        wanted = max(1, int(_LONGEST_SHARD / seconds))
    return 1 << (wanted.bit_length() - 1)


def _line(key: RowKey) -> bytes:
    """`clip_id<TAB>identity`: sorts like the pair, since neither part has a character below the tab."""
    text = f"{key[0]}\t{key[1]}"
    if not key[0] or _CONTROL.search(key[0]) or _CONTROL.search(key[1]):
        raise UsageError(f"clip id {key[0]!r} (identity {key[1]!r}) is empty or has control characters")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"clip id {key[0]!r} is no valid text: {error}") from error


def _sorted_lines(keys: Iterable[RowKey]) -> list[bytes]:
    lines = sorted(_line(key) for key in keys)
    ids = [line.split(b"\t")[0] for line in lines]
    twice = sorted({a.decode() for a, b in itertools.pairwise(ids) if a == b})
    if twice:
        names = ", ".join(repr(name) for name in twice[:5])
        raise UsageError(f"{len(twice)} clip ids are named more than once: {names}{' …' * (len(twice) > 5)}")
    return lines


def _refuse_orphans(root: Path) -> None:
    """Features without an index: a new plan could give their rows to other clips."""
    stores = sorted(path.parent.name for path in root.glob("*/manifest.json"))
    if stores:
        raise IntegrityError(
            f"{root / _INDEX_FILE} is missing, but there are features ({', '.join(stores)}): "
            "restore it from a backup, or use another cache.root"
        )
