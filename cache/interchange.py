"""A store's rows as they travel between caches: values, statuses, reasons of failures, fingerprint; nothing is lost.

`interchange_hdf5` and `interchange_safetensors` say how that is laid out in files.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError
from ..pipeline import files
from .arrays import ArraySpec
from .index import RowKey
from .ledger import Failure, RowStatus
from .store import FeatureStore
from .writing import Values

FORMAT_VERSION = 1


class Header(NamedTuple):
    """What a store is. A block is `rows_per_block` rows, the last one fewer."""

    name: str
    rows: int
    rows_per_block: int
    fingerprint: dict[str, Any]
    attributes: dict[str, Any]
    arrays: dict[str, ArraySpec]

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.rows_per_block)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with the version of the format."""
        arrays = {name: spec._asdict() for name, spec in self.arrays.items()}
        return {**self._asdict(), "arrays": arrays, "format_version": FORMAT_VERSION}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str) -> Header:
        """Raises IntegrityError naming `where`."""
        try:
            fields = dict(stored)
            version = fields.pop("format_version")
            arrays = {name: ArraySpec(**spec) for name, spec in fields.pop("arrays").items()}
            plain = {n: s._replace(shape=tuple(s.shape), dims=tuple(s.dims)) for n, s in arrays.items()}
            header = cls(**fields, arrays=plain)
        except (KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{where}: no export of uniego can be read: {error}") from error
        if version != FORMAT_VERSION:
            raise IntegrityError(f"{where} has format version {version}, this program reads {FORMAT_VERSION}")
        return header


class Block(NamedTuple):
    """Some rows: their keys, values {name: [n, *shape] in the stored dtype}, `RowStatus` uint8 [n], and failures."""

    keys: list[RowKey]
    values: Values
    status: npt.NDArray[np.uint8]
    failures: list[Failure]

    def hash(self) -> str:
        """Hash of all but the values."""
        text = json.dumps([self.keys, self.status.tolist(), self.failures], separators=(",", ":"))
        return files.hash_bytes(text.encode())


class Package(ABC):
    """One exported store, for reading.

    `source` names where it lies, without folders; `content` is a hash of all that is in it.
    """

    header: Header
    source: str
    content: str

    @abstractmethod
    def clips(self) -> Iterator[tuple[RowKey, RowStatus, Failure | None]]:
        """Every row in order. Raises IntegrityError."""

    @abstractmethod
    def read_values(self, block: int) -> dict[str, npt.NDArray[Any]]:
        """{array: [n, *shape]} of one block. Raises IntegrityError for damaged bytes."""

    def gather(self, positions: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """{array: [n, *shape]} of rows in any order; neighbours cost one read of their block."""
        size = self.header.rows_per_block
        out = {name: np.empty((len(positions), *s.shape), s.dtype) for name, s in self.header.arrays.items()}
        for block in np.unique(positions // size).tolist():
            mine = positions // size == block
            for name, values in self._cached(block).items():
                out[name][mine] = values[positions[mine] - block * size]
        return out

    @cached_property
    def _cached(self) -> Callable[[int], dict[str, npt.NDArray[Any]]]:
        return lru_cache(maxsize=4)(self.read_values)


class Destination:
    """A file or folder in the making: a with block that ends well gives it its name, any other leaves nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files.make_dir(path.parent)
        self._partial = path.with_name(f".{path.name}{files.PARTIAL}")
        self.discard()  # of one that was killed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def close(self) -> None:
        """Make it durable and give it its name."""
        sync_tree(self._partial)
        files.operations.rename(self._partial, self.path)
        files.sync_dir(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._partial.is_dir():
            files.remove_tree(self._partial)
        else:
            self._partial.unlink(missing_ok=True)


class Writer(Destination, ABC):
    """A file or folder that stores are written into, one after the other."""

    @abstractmethod
    def write(self, header: Header, blocks: Iterable[Block]) -> None:
        """Write one store."""


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder and all in it, to the disk."""
    for entry in [*sorted(path.rglob("*")), path] if path.is_dir() else [path]:
        if entry.is_dir():
            files.sync_dir(entry)
        else:
            with entry.open("rb") as file:
                files.operations.fsync(file.fileno())


def export_store(writer: Writer, store: FeatureStore, rows: npt.NDArray[np.int64]) -> None:
    """Write rows of a store (of clips, each once), a shard's worth in memory at a time. Raises IntegrityError.

    Others may write to the store meanwhile: what is exported of a shard is what was written there at one moment.
    """
    rows = np.sort(rows)
    size = store.index.rows_per_shard
    header = Header(store.path.name, len(rows), size, store.fingerprint, store.attributes, store.arrays)
    writer.write(header, (_block(store, rows[start : start + size]) for start in range(0, len(rows), size)))


def _block(store: FeatureStore, rows: npt.NDArray[np.int64]) -> Block:
    size = store.index.rows_per_shard
    parts = [_shard_block(store, shard, rows[rows // size == shard]) for shard in np.unique(rows // size).tolist()]
    return Block(
        [key for part in parts for key in part.keys],
        {name: np.concatenate([part.values[name] for part in parts]) for name in store.arrays},
        np.concatenate([part.status for part in parts]),
        [failure for part in parts for failure in part.failures],
    )


def _shard_block(store: FeatureStore, shard: int, rows: npt.NDArray[np.int64]) -> Block:
    """Rows of one shard as they were written together; read again if it was written meanwhile."""
    start, names = shard * store.index.rows_per_shard, store.index.keys(shard)
    keys = [names[row - start] for row in rows.tolist()]
    while True:
        entry = store.entry(shard)
        values = {name: store.read(rows, name)[0] for name in store.arrays}
        if store.entry(shard) == entry:
            break
    if entry is None:
        return Block(keys, values, np.full(len(rows), RowStatus.PENDING, np.uint8), [])
    ids = {key.clip_id for key in keys}
    failures = [failure for failure in entry.failures if failure.clip_id in ids]
    return Block(keys, values, entry.statuses()[rows - start], failures)


class Contents(NamedTuple):
    """The rows of a package: {clip id: its place}, and by place identities, `RowStatus` uint8 [N], {place: failure}."""

    places: dict[str, int]
    identities: list[str]
    status: npt.NDArray[np.uint8]
    failures: dict[int, Failure]

    @classmethod
    def of(cls, package: Package) -> Contents:
        """Raises IntegrityError for damaged packages, also for one that names a clip twice."""
        contents = cls({}, [], np.zeros(package.header.rows, np.uint8), {})
        for place, (key, code, failure) in enumerate(package.clips()):
            if contents.places.setdefault(key.clip_id, place) != place:
                raise IntegrityError(f"{package.source}: clip {key.clip_id!r} is there twice")
            contents.identities.append(key.identity)
            contents.status[place] = code
            if failure is not None:
                contents.failures[place] = failure
        return contents


def import_store(package: Package, contents: Contents, store: FeatureStore, places: npt.NDArray[np.int64]) -> None:
    """Fill what is pending in `store` from the package; `places` int64 [rows of the index]: each row's place there or
    -1.

    A shard is written whole, as extraction does it; after a kill the same call goes on. Rows that the package does
    not have, or has as pending, stay pending.
    """
    for shard in store.pending(np.flatnonzero(places >= 0)):
        rows = store.index.shard_rows(shard)
        mine = places[rows.start : rows.stop]
        known = mine >= 0
        status = np.full(len(mine), RowStatus.PENDING, np.uint8)
        status[known] = contents.status[mine[known]]
        if not status.any():
            continue
        values = {name: np.full((len(mine), *s.shape), np.nan, s.dtype) for name, s in store.arrays.items()}
        for name, block in package.gather(mine[known]).items():
            values[name][known] = block
        failures = [contents.failures[place] for place in mine.tolist() if place in contents.failures]
        store.write_shard(shard, values, status, failures)


def rows_of_block(block: Block) -> Iterator[tuple[RowKey, RowStatus, Failure | None]]:
    """The rows of a block one by one."""
    reasons = {failure.clip_id: failure for failure in block.failures}
    for key, code in zip(block.keys, block.status.tolist(), strict=True):
        yield key, RowStatus(code), reasons.get(key.clip_id) if code == RowStatus.FAILED else None
