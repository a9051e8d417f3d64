"""What lies in a cache and serves nobody: left-overs of dead writers, dropped clips' shards, stores no run refers to.

Files of a shard go only when every one of its rows is dropped: a chunk is a whole shard. Lines of the clip index and
of the ledgers stay, so that rows never move; they are small.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..pipeline import files
from ..pipeline.objects import origin
from . import clip_gc
from .clip_gc import ClipGarbage
from .index import LOCK_FILE, ClipIndex
from .manifest import LEDGER_FOLDER, MANIFEST, ZARR_FOLDER
from .store import FeatureStore, remove
from .verify import store_names


class Garbage(NamedTuple):
    """Paths and shards that may go, and what stays although nobody asks for it.

    `stores`: {name: bytes}; `shards`: {store: {shard: bytes}}; `partials`: {path: bytes}; `masked`: rows of dropped
    clips in shards that hold clips still wanted; `clips`: of the clip store in the cache.
    """

    root: Path
    stores: dict[str, int]
    shards: dict[str, dict[int, int]]
    partials: dict[Path, int]
    masked: int
    clips: ClipGarbage | None = None

    @property
    def place(self) -> str:
        """Where the cache is, in words: its folder, or the URL of one in object storage."""
        remote = origin(self.root)
        return str(self.root) if remote is None else remote.url

    @property
    def bytes(self) -> int:
        """What removing all of it frees."""
        shards = sum(sum(sizes.values()) for sizes in self.shards.values())
        clips = self.clips.bytes if self.clips is not None else 0
        return sum(self.stores.values()) + shards + sum(self.partials.values()) + clips


def find(root: Path, rows: npt.NDArray[np.int64], names: Collection[str]) -> Garbage:
    """Garbage of a cache in which only `rows` (-1: none) and stores of these `names` are wanted.

    Nothing is changed. Raises MissingInputError or IntegrityError for an index or a wanted store that is not sound.
    """
    index = ClipIndex.open(root)
    wanted = np.zeros(index.num_shards * index.rows_per_shard, np.bool_)
    wanted[rows[rows >= 0]] = True
    used = wanted.reshape(-1, index.rows_per_shard).any(axis=1)  # [shards]
    shards: dict[str, dict[int, int]] = {}
    present = store_names(root)
    for name in (name for name in present if name in names):
        if not (root / name / MANIFEST).exists():
            continue  # half made: extraction completes it
        store = FeatureStore.open(root / name, index)
        sizes = {shard: store.size(shard) for shard in np.flatnonzero(~used).tolist()}
        shards[name] = {shard: size for shard, size in sizes.items() if size}
    folders = [root, root / "index", *(folder for name in present for folder in _folders(root / name))]
    clips = sum(len(index.shard_rows(shard)) for shard in np.flatnonzero(used).tolist())
    return Garbage(
        root,
        {name: _size(root / name) for name in present if name not in names},
        {name: found for name, found in shards.items() if found},
        {path: path.stat().st_size for folder in folders for path in files.dead_partials(folder)},
        clips - int(wanted.sum()),
    )


def collect(garbage: Garbage) -> None:
    """Remove it, durably; if killed in between, finding and collecting again finishes it."""
    root = garbage.root
    for name in garbage.stores:
        remove(root / name)
    with files.locked(root / LOCK_FILE):
        index = ClipIndex.open(root)
        for name, shards in garbage.shards.items():
            store = FeatureStore.open(root / name, index)
            for shard in shards:
                store.drop(shard)
        for folder in {path.parent for path in garbage.partials}:
            files.remove_partials(folder)
    if garbage.clips is not None:
        clip_gc.collect(garbage.clips)


def _folders(store: Path) -> list[Path]:
    return [store, store / LEDGER_FOLDER, store / ZARR_FOLDER, *sorted((store / ZARR_FOLDER).glob("*/"))]


def _size(store: Path) -> int:
    remote = origin(store.parent)
    if remote is not None:
        return sum(found.size for found in remote.list(store.name).values())
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
