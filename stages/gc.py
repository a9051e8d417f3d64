"""Which rows and stores of a cache the given runs need; all the rest may be collected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..cache import ClipStore, clip_gc, gc
from ..cache.clip_gc import ClipGarbage
from ..cache.verify import store_names
from ..errors import FingerprintMismatch, UniegoError, UsageError
from ..pipeline.rundir import Run, TaskFolder
from .clip_source import CLIP_STORE, clip_keys, look_at_videos, store_root, store_settings, stored_clips
from .prepare_clips import alone
from .targets import open_index, row_keys


def find_garbage(runs: Sequence[Run]) -> gc.Garbage:
    """What none of these runs needs in the cache that they share; nothing is changed.

    Name every run that uses the cache: what only others need is taken for garbage. Raises `UsageError` without runs,
    or for runs of several caches; `MissingInputError` for a run that has extracted nothing yet; `UniegoError` while
    one of them is at work.
    """
    root = _common_root(runs)
    for run in runs:
        _refuse_at_work(run)
    index = open_index(runs[0])
    rows = np.concatenate([index.rows(row_keys(run, run.table().clips)) for run in runs])
    present = store_names(root)
    found = gc.find(root, rows, {name for run in runs for name in _needed(run, present)})
    return found._replace(clips=_clip_garbage(root, runs))


def _clip_garbage(root: Path, runs: Sequence[Run]) -> ClipGarbage | None:
    """What none of the runs can use in the clip store that lies in their cache; one that lies elsewhere is left alone.

    A run whose present settings the store was not made under cannot read it.
    """
    place = root / CLIP_STORE
    if not ClipStore.exists(place):
        return None
    store, rows = ClipStore.open(place), []
    with alone(place):  # raises while it is being made
        for run in runs:
            if store_root(run).resolve() != place.resolve():
                continue
            with suppress(FingerprintMismatch):
                store.refuse_other({"settings": store_settings(run.config)})
                clips = stored_clips(run)
                rows.append(store.index.rows(clip_keys(clips, look_at_videos(run, clips))))
        return clip_gc.find(place, np.concatenate(rows) if rows else None)


def _common_root(runs: Sequence[Run]) -> Path:
    if not runs:
        raise UsageError("name every run that uses the cache with -r DIR: what none of them needs is garbage")
    places = sorted({run.cache_place for run in runs})
    if len(places) > 1:
        raise UsageError(f"these runs use different caches: {', '.join(places)}; collect one at a time")
    return runs[0].cache_root


def _refuse_at_work(run: Run) -> None:
    busy = [f"extraction of {key}" for key in run.config.teachers if run.is_extracting(key)]
    tasks = [folder for key in run.config.teachers for folder in _proxies(run, key)]
    tasks += [run.merge_folder, *(run.variant_folder(name) for name in ("student", *run.variants()))]
    busy += [task.title for task in tasks if task.running()]
    if busy:
        raise UniegoError(f"{run.root} is at work ({', '.join(busy)}); wait for it or stop it")


def _needed(run: Run, present: Sequence[str]) -> set[str]:
    """Stores of the run's teachers and proxies; of a proxy that is begun and not done, all that may be its own."""
    names = set(run.config.teachers)
    for key in run.config.teachers:
        for folder in _proxies(run, key):
            if folder.done:
                names.add(str(folder.results["outputs"]))
            elif folder.record is not None:
                names |= {name for name in present if name.startswith(f"proxy-{key}-")}
    return names


def _proxies(run: Run, teacher: str) -> list[TaskFolder]:
    """The run's proxy of a teacher, and those of its ablations."""
    return [run.proxy_folder(teacher), *run.shared_proxies(teacher)]
