"""What the ablated run has already and its cells need not train again: finished proxies, its merge, its students."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..pipeline import files
from ..pipeline.rundir import Run, TaskFolder
from .distill import merge_fingerprint, student_fingerprint
from .ego_only import ego_only_fingerprint
from .rows import RunRows

Takeover = tuple[TaskFolder, TaskFolder]
"""Finished work of the run itself, and the place of a cell where nothing was begun that it can take."""


def own_work(
    run: Run, cell: Run, model: str, proxies: Sequence[str] | None, able: Sequence[str], rows: RunRows
) -> Iterator[Takeover]:
    """Merge and network of `run` that are what a cell (a run made from it) would make, by their fingerprints.

    `proxies`: those whose merge the cell needs, None for no merge; all its proxies must be those of `run`. `able`:
    teachers of the pool; `rows`: those of the cell's seed.
    """
    own = Run(run.root, cell.config)
    if proxies is not None:
        yield from _alike(own.merge_folder, cell.merge_folder, lambda: merge_fingerprint(own, list(proxies), rows))
    if model == "ego-only":
        train = cell.config.distill.train
        yield from _alike(own.ego_only_folder, cell.ego_only_folder, lambda: ego_only_fingerprint(own, train))
    elif model == "student":
        variant = cell.config.distill.variant
        places = own.variant_folder(variant), cell.variant_folder(variant)
        yield from _alike(*places, lambda: student_fingerprint(own, list(able), rows))


def _alike(source: TaskFolder, target: TaskFolder, wanted: Callable[[], Mapping[str, Any]]) -> Iterator[Takeover]:
    if source.done and target.record is None and not source.differences(wanted()):
        yield source, target


def take_over(source: TaskFolder, target: TaskFolder) -> bool:
    """Give finished work to another place, as hard links where that is possible; False: there is something already."""
    parent, name = target.path.parent, target.path.name
    parent.mkdir(parents=True, exist_ok=True)
    with files.locked(parent / "adopt.lock"):
        partial = target.path.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        if target.path.exists():
            return False
        shutil.copytree(source.path, partial, copy_function=_link, ignore=shutil.ignore_patterns("lock"))
        partial.rename(target.path)
        files.sync_dir(parent)
    return True


def same(folder: TaskFolder, name: str) -> bool:
    """Whether finished work has the fingerprint that the name of a shared folder ends with."""
    record = folder.record
    return record is not None and record["state"] == "done" and name.endswith(short_hash(record["fingerprint"]))


def short_hash(fingerprint: Mapping[str, Any]) -> str:
    """What the name of a shared folder ends with."""
    return files.hash_bytes(json.dumps(fingerprint, sort_keys=True).encode())[:16]


def _link(source: str, target: str) -> str:
    """Files of finished work are never changed in place, only replaced."""
    try:
        os.link(source, target)
        return target
    except OSError:
        return str(shutil.copy2(source, target))
