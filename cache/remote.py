"""A cache in object storage: chunks are objects, written by one put each; the small files have copies in a mirror.

The layout is that of a cache in a folder, but for the ledger, since objects cannot grow: each line is an object of its
own, called by its task and a hash of the line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarr.storage import ObjectStore, StorePath

from ..pipeline import files
from ..pipeline.objects import MIRROR_LOCK, Found, Objects, mirror
from .arrays import ArraySpec
from .index import LOCK_FILE, ClipIndex
from .ledger import Entry, Ledger, entry_to_line
from .manifest import LEDGER_FOLDER, MANIFEST, ZARR_FOLDER
from .publish import is_chunk
from .shards import Shards

_FRESH = 2.0  # seconds for which a listing of the ledger counts: lines of others are seen that much later


def open_mirror(url: str, folder: Path) -> Path:
    """A folder that stands for the cache at a URL: open and plan it as any other cache; several processes may.

    Raises as `Objects`.
    """
    return mirror(url, folder, lambda name: not is_chunk(name), LOCK_FILE)


def remove_store(remote: Objects, store: str) -> None:
    """Remove all objects of a store, the manifest last."""
    for name in sorted(remote.list(store), key=lambda name: name == f"{store}/{MANIFEST}"):
        remote.delete(name)


class RemoteLedger(Ledger):
    """Ledger lines as objects; the mirror has copies."""

    def __init__(self, remote: Objects, folder: Path) -> None:
        super().__init__(folder)
        self._remote, self._prefix, self._listed = remote, f"{folder.parent.name}/{folder.name}", -_FRESH
        self._lock = folder.parent.parent / MIRROR_LOCK

    def append(self, task: str, entry: Entry) -> None:
        """Write one line as one object."""
        line = entry_to_line(entry).encode() + b"\n"
        name = f"{task}-{files.hash_bytes(line)}.jsonl"
        with files.locked(self._lock):
            self._remote.put(f"{self._prefix}/{name}", line)
            files.write_bytes(self.folder / name, line)
        self.refresh()

    def refresh(self) -> None:
        """Fetch the lines written since the last call, by anybody."""
        if time.monotonic() - self._listed >= _FRESH:
            with files.locked(self._lock):
                for name in self._remote.list(self._prefix):
                    path = self.folder / name.rsplit("/", 1)[-1]
                    if not path.exists() and (line := self._remote.find(name)) is not None:
                        files.write_bytes(path, line)
            self._listed = time.monotonic()
        super().refresh()


class RemoteShards(Shards):
    """Chunks as objects. Sizes come from one listing; where it disagrees with the ledger, the object is asked."""

    def __init__(self, remote: Objects, store: Path, specs: Mapping[str, ArraySpec], index: ClipIndex) -> None:
        self._remote = remote
        self._prefix = f"{store.name}/{ZARR_FOLDER}"
        self._found: dict[str, Found] = {n: f for n, f in remote.list(self._prefix).items() if is_chunk(n)}
        super().__init__(store / ZARR_FOLDER, RemoteLedger(remote, store / LEDGER_FOLDER), specs, index)

    def location(self, name: str) -> Any:
        return StorePath(ObjectStore(self._remote.store, read_only=True), f"{self._prefix}/{name}")

    def label(self, name: str, shard: int) -> str:
        return f"{self._remote.url}/{self._object(name, shard)}"

    def chunk_size(self, name: str, shard: int, expected: int | None = None) -> int | None:
        key = self._object(name, shard)
        found = self._found.get(key)
        if expected is not None and (found is None or found.size != expected):
            found = self._remote.head(key)
            if found is not None:
                self._found[key] = found
        return found.size if found else None

    def chunk_hash(self, name: str, shard: int) -> str:
        return files.hash_bytes(self._remote.get(self._object(name, shard)))

    def write_chunk(self, name: str, shard: int, data: bytes) -> None:
        self._remote.put(self._object(name, shard), data)
        self._found[self._object(name, shard)] = Found(len(data), "")

    def remove_chunk(self, name: str, shard: int) -> None:
        self._remote.delete(self._object(name, shard))
        self._found.pop(self._object(name, shard), None)

    def _object(self, name: str, shard: int) -> str:
        return f"{self._prefix}/{name}/{self.path(name, shard).name}"
