"""What proxies and student learn from: cached features and outputs as contiguous tensors.

The durable store is read in whole shards, once; training gathers rows of one resident tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import ClipIndex, FeatureStore, RowKey, RowStatus
from ..errors import FingerprintMismatch, MissingInputError, UniegoError, fingerprint_difference
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.progress import warn
from ..pipeline.rundir import Run


class Targets(NamedTuple):
    """One teacher's targets: float32 [N, D] and whether the clip has one, bool [N]. Absent rows hold zeros."""

    values: Tensor
    present: Tensor


class Bank(NamedTuple):
    """Outputs of R proxies for N clips: tokens float32 [N, R, D], logits float32 [N, R, C], present bool [N, R]."""

    tokens: Tensor
    logits: Tensor
    present: Tensor


def row_keys(clips: Sequence[Clip]) -> list[RowKey]:
    """The clips as rows of the cache."""
    return [RowKey(clip.clip_id, _identity(clip)) for clip in clips]


def _identity(clip: Clip) -> str:
    """What a row is made from: the paths as the table writes them (so that data may move) and the segment."""
    source = json.dumps([clip.sources, clip.start_s, clip.end_s], sort_keys=True)
    return files.hash_bytes(source.encode())


def open_index(run: Run) -> ClipIndex:
    """The cache's rows. Raises `MissingInputError` naming the command that makes them."""
    try:
        return ClipIndex.open(run.cache_root)
    except FileNotFoundError as error:
        raise MissingInputError(f"no feature cache in {run.cache_root}: run `uniego extract-teachers` first") from error


def teacher_path(run: Run, teacher: str) -> Path:
    """Where a teacher's features lie."""
    return run.cache_root / teacher


def open_teacher(run: Run, index: ClipIndex, teacher: str) -> FeatureStore:
    """A teacher's features. Raises `MissingInputError` naming the command that makes them."""
    path = teacher_path(run, teacher)
    if not path.exists():
        raise MissingInputError(
            f"no features of {teacher} in {run.cache_root}: run `uniego extract-teachers --teacher {teacher}` first"
        )
    store = FeatureStore.open(path, index)
    different = stale_settings(run, store, teacher)
    if different:
        raise FingerprintMismatch(
            f"features of {teacher} in {path}",
            different,
            f"Run `uniego extract-teachers --teacher {teacher}` to check or make them for the present settings.",
        )
    return store


def stale_settings(run: Run, store: FeatureStore, teacher: str) -> dict[str, tuple[Any, Any]]:
    """In what the settings that features were extracted (or last checked) under differ from the run's present ones."""
    record = run.extraction_record(teacher)
    if record is None:
        return {"extracted by this run": (False, True)}
    stored = {"settings": record["settings"], "fingerprint": record["fingerprint"]}
    return fingerprint_difference(
        stored, {"settings": run.extraction_settings(teacher), "fingerprint": store.fingerprint}
    )


def pool(run: Run, *, strict: bool) -> list[str]:
    """Teachers that can teach: those with a feature for at least one train clip.

    One without any is left out with a warning, or refused when `strict`. Refuses an empty pool, and features
    that were made under other settings (so random ones that the configuration does not name).
    """
    index = open_index(run)
    rows = index.rows(row_keys(run.table().split("train")))
    keys: list[str] = []
    empty: list[str] = []
    for key in run.config.teachers:
        store = open_teacher(run, index, key)
        (keys if (store.status(rows) == RowStatus.DONE).any() else empty).append(key)
    if empty:
        message = f"no train clip has a feature of {', '.join(empty)} (see `uniego status`)"
        if strict:
            raise UniegoError(f"{message}; extract them, or take them out of `teachers` in run.yaml")
        warn(f"{message}: left out of the pool")
    if not keys:
        raise UniegoError("no teacher has a single feature for the train split; see `uniego status`")
    return keys


def warn_of_random(run: Run, teachers: Sequence[str]) -> None:
    """Say loudly which teachers are random networks."""
    index = open_index(run)
    random = [key for key in teachers if open_teacher(run, index, key).attributes.get("random")]
    if random:
        warn(f"RANDOM teachers, for trying things out only, they know nothing: {', '.join(random)}")


def target_rows(rows: int, count: int) -> npt.NDArray[np.int64]:
    """Which of a feature's rows make the target: floor(linspace(0, rows - 1, count)), int64 [count]."""
    return np.linspace(0, rows - 1, count).astype(np.int64)


def load_targets(store: FeatureStore, rows: npt.NDArray[np.int64], count: int) -> Targets:
    """Features of the given rows averaged over `count` evenly picked time steps; [T, D] becomes [D]."""
    values, present = store.load("features", rows, np.float32)  # [N,T,D]
    picks = target_rows(values.shape[1], count)
    target = values[:, picks].mean(axis=1)
    target[~present] = 0.0
    return Targets(torch.from_numpy(target), torch.from_numpy(present))


def load_bank(stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64]) -> Bank:
    """Outputs of several proxies side by side. Absent ones hold zeros and are marked."""
    columns: dict[str, list[npt.NDArray[Any]]] = {"tokens": [], "logits": []}
    present = []
    for store in stores:
        for name, column in columns.items():
            values, there = store.load(name, rows, np.float32)
            column.append(np.where(there[:, None], values, np.float32(0)))
        present.append(there)
    tokens, logits = (torch.from_numpy(np.stack(columns[name], axis=1)) for name in ("tokens", "logits"))
    return Bank(tokens, logits, torch.from_numpy(np.stack(present, axis=1)))
