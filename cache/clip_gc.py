"""What lies in a clip store and serves nobody: shards of dropped clips, left-overs of dead writers, or all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..pipeline import files
from .clip_store import STORE, ClipStore
from .manifest import MANIFEST


class ClipGarbage(NamedTuple):
    """What may go: `whole`: the store; else `shards` {shard: bytes} and `partials` {path: bytes}; `bytes` in all."""

    root: Path
    whole: bool
    shards: dict[int, int]
    partials: dict[Path, int]
    bytes: int


def find(root: Path, rows: npt.NDArray[np.int64] | None) -> ClipGarbage:
    """Garbage of a clip store of which only these `rows` (-1: none) are wanted; None: no run's settings are its own.

    A shard goes when every one of its clips is dropped. Nothing is changed. Raises IntegrityError for a damaged store.
    """
    if rows is None:
        return ClipGarbage(root, True, {}, {}, sum(path.stat().st_size for path in root.rglob("*") if path.is_file()))
    store = ClipStore.open(root)
    used = {row // store.index.rows_per_shard for row in rows[rows >= 0].tolist()}
    sizes = {shard: store.shard_size(shard) for shard in range(store.index.num_shards) if shard not in used}
    shards = {shard: size for shard, size in sizes.items() if size}
    folders = [root, root / "index", root / STORE, *sorted((root / STORE).glob("*/"))]
    partials = {path: path.stat().st_size for folder in folders for path in files.dead_partials(folder)}
    return ClipGarbage(root, False, shards, partials, sum(shards.values()) + sum(partials.values()))


def collect(garbage: ClipGarbage) -> None:
    """Remove it, durably; if killed in between, finding and collecting again finishes it."""
    if garbage.whole:
        (garbage.root / STORE / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(garbage.root)
        files.sync_dir(garbage.root.parent)
        return
    store = ClipStore.open(garbage.root)
    for shard in garbage.shards:
        store.drop(shard)
    for folder in {path.parent for path in garbage.partials}:
        files.remove_partials(folder)
