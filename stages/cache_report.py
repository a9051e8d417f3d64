"""What is in a run's cache: how much of the run's clips it covers, and the statistics of their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ..cache import ClipStore, RowStatus
from ..cache.coverage import Coverage, count_rows, failed_rows
from ..cache.info import describe
from ..cache.stats import statistics
from ..errors import IntegrityError, MissingInputError
from ..pipeline.clips import SPLITS, Split
from ..pipeline.rundir import Run
from .clip_source import store_root
from .rows import RunRows, run_rows
from .targets import find_index, find_store, open_index


class Cell(NamedTuple):
    """One split through one teacher."""

    split: Split
    teacher: str
    coverage: Coverage


class FailedClip(NamedTuple):
    """A clip of which a teacher has no feature, and why: a reason class and a message."""

    split: Split
    clip_id: str
    teacher: str
    reason: str
    message: str


def coverage(run: Run, teachers: Sequence[str] | None = None, splits: Sequence[Split] | None = None) -> list[Cell]:
    """What the cache has of the run's clips, split by split and teacher by teacher; splits without clips are left out.

    Reads ledgers only. Before extraction has begun all clips are pending. Raises `IntegrityError` for a damaged cache.
    """
    index = find_index(run)
    found = run_rows(run, index)
    stores = {key: find_store(run, index, key) for key in run.choose(teachers)}
    return [
        Cell(split, key, count_rows(store, found.split(split)))
        for split in _named(found, splits)
        for key, store in stores.items()
    ]


def failed_clips(
    run: Run, teachers: Sequence[str] | None = None, splits: Sequence[Split] | None = None
) -> Iterator[FailedClip]:
    """Every failed clip, in the order of splits, teachers and rows; one shard in memory at a time."""
    index = find_index(run)
    found = run_rows(run, index)
    for split in _named(found, splits):
        for key in run.choose(teachers):
            store = find_store(run, index, key)
            if store is not None:
                for _, failure in failed_rows(store, found.split(split)):
                    yield FailedClip(split, failure.clip_id, key, failure.reason, failure.message)


def cache_info(run: Run) -> dict[str, Any]:
    """`cache.info.describe` of the run's cache, and "clip_store": what the run's holds, None where there is none.

    Raises `MissingInputError` naming the command that makes a cache.
    """
    open_index(run)
    return {**describe(run.cache_root), "clip_store": clip_store_info(run)}


def clip_store_info(run: Run) -> dict[str, Any] | None:
    """JSON-able: {"path", "clips", "stored", "failed", "bytes", "settings"}; `clips` counts dropped ones too."""
    root = store_root(run)
    if not ClipStore.exists(root):
        return None
    store = ClipStore.open(root)
    rows = np.arange(store.index.num_shards * store.index.rows_per_shard, dtype=np.int64)
    status = store.status(rows)
    return {
        "path": str(root),
        "clips": sum(generation.rows for generation in store.index.generations),
        "stored": int((status == RowStatus.DONE).sum()),
        "failed": int((status == RowStatus.FAILED).sum()),
        "bytes": store.size(),
        "settings": store.fingerprint["settings"],
    }


def shards_to_do(run: Run) -> dict[str, int]:
    """{store: shards} of the run's teachers and proxies in which clips of the run are pending, marked ones included.

    Stores that are not there, or cannot be opened, are left out.
    """
    index = find_index(run)
    if index is None:
        return {}
    found, wanted = run_rows(run, index), {}
    for key in run.config.teachers:
        wanted[key] = found.rows
        proxy = run.proxy_folder(key)
        if proxy.done:
            wanted[str(proxy.results["outputs"])] = found.train
    left: dict[str, int] = {}
    for name, rows in wanted.items():
        with suppress(IntegrityError):
            store = find_store(run, index, name)
            pending = store.pending(rows) if store is not None else []
            left |= {name: len(pending)} if pending else {}
    return left


def cache_statistics(run: Run, teachers: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """{store: {array: `statistics`}} over the run's clips, of teachers and of their proxies' outputs.

    Stores that are not there are left out. Raises `MissingInputError` where there is none at all.
    """
    index = open_index(run)
    rows = np.unique(run_rows(run, index).rows)
    names = []
    for key in run.choose(teachers):
        proxy = run.proxy_folder(key)
        names += [key, *([str(proxy.results["outputs"])] if proxy.done else [])]
    stores = {name: store for name in names if (store := find_store(run, index, name)) is not None}
    if not stores:
        raise MissingInputError(f"no features in {run.cache_root}: run `{run.command('extract-teachers')}` first")
    return {name: {array: statistics(store, array, rows) for array in store.arrays} for name, store in stores.items()}


def _named(found: RunRows, splits: Sequence[Split] | None) -> list[Split]:
    counts = found.counts
    return [split for split in SPLITS if counts[split] and (not splits or split in splits)]
