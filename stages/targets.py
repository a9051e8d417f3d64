"""What proxies and student learn from: cached features and outputs as contiguous tensors.

The durable store is read in whole shards, once; training gathers rows of one resident tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import ClipIndex, FeatureStore, RowKey, RowStatus
from ..errors import ConfigError, FingerprintMismatch, MissingInputError, UniegoError, fingerprint_difference
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from ..pipeline.sources import identity

_BLOCK = 4096  # clips whose features are in memory at once


class Targets(NamedTuple):
    """One teacher's targets: float32 [N, D] and whether the clip has one, bool [N]. Absent rows hold zeros."""

    values: Tensor
    present: Tensor


class Bank(NamedTuple):
    """Outputs of R proxies for N clips: tokens float32 [N, R, D], logits float32 [N, R, C], present bool [N, R]."""

    tokens: Tensor
    logits: Tensor
    present: Tensor


def row_keys(run: Run, clips: Sequence[Clip]) -> list[RowKey]:
    """The clips as rows of the cache."""
    return [RowKey(clip.clip_id, identity(clip, run.sources)) for clip in clips]


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


def pool(run: Run, *, strict: bool, only: Sequence[str] | None = None) -> list[str]:
    """Teachers that can teach: those with a feature for at least one train clip; `only` of the named ones.

    One without any is left out with a warning, or refused when `strict` or named. Raises `MissingInputError` for
    features that are not there or not whole yet, `FingerprintMismatch` for those made under other settings (so for
    random ones that the configuration does not name), `ConfigError` for features of random weights without
    `allow_random`, `UniegoError` for an empty pool.
    """
    index = open_index(run)
    keys: list[str] = []
    empty: list[str] = []
    for key in only or run.config.teachers:
        store = open_teacher(run, index, key)
        _refuse_random(run, key, store)
        states = train_status(run, store)
        left = int((states == RowStatus.PENDING).sum())
        if left:
            raise MissingInputError(
                f"{left} of {len(states)} train clips have not been through {key} yet: run "
                f"`uniego extract-teachers --teacher {key}` first"
            )
        (keys if (states == RowStatus.DONE).any() else empty).append(key)
    if empty:
        message = f"no train clip has a feature of {', '.join(empty)} (see `uniego status`)"
        if strict or only:
            raise UniegoError(f"{message}; extract them, or take them out of `teachers` in run.yaml")
        warn(f"{message}: left out of the pool")
    if not keys:
        raise UniegoError("no teacher has a single feature for the train split; see `uniego status`")
    return keys


def _refuse_random(run: Run, key: str, store: FeatureStore) -> None:
    """The stamp in the cache counts, not what the configuration says about the weights."""
    if store.attributes.get("random") and not run.config.teachers[key].allow_random:
        raise ConfigError(
            f"features of {key} in {store.path} are of random weights and carry no knowledge: extract them with "
            f"trained weights, or set teachers.{key}.allow_random: true if that is what you want (tests, dry runs)"
        )


def train_status(run: Run, store: FeatureStore) -> npt.NDArray[np.uint8]:
    """`RowStatus` of every train clip."""
    return store.status(store.index.rows(row_keys(run, run.table().split("train"))))


def targets_hash(run: Run, store: FeatureStore) -> str:
    """Hash of which train clips have a feature, and of what it was made from."""
    keys = row_keys(run, run.table().split("train"))
    lines = sorted(f"{key.clip_id}\t{key.identity}\t{s}" for key, s in zip(keys, train_status(run, store), strict=True))
    return files.hash_bytes("\n".join(lines).encode())


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
    steps, width = store.arrays["features"].shape
    target = np.zeros((len(rows), width), dtype=np.float32)
    present = np.zeros(len(rows), dtype=np.bool_)
    picks = target_rows(steps, count)
    order = np.argsort(rows, kind="stable")  # block by block in the order of the shards: bounded memory
    for block in np.array_split(order, max(1, len(order) // _BLOCK)):
        values, there = store.load("features", rows[block], np.float32)  # [b,T,D]
        target[block] = np.where(there[:, None], values[:, picks].mean(axis=1), 0.0)
        present[block] = there
    return Targets(torch.from_numpy(target), torch.from_numpy(present))


def load_bank(stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64]) -> Bank:
    """Outputs of several proxies side by side. Absent ones hold zeros and are marked."""
    size = len(rows), len(stores)
    tokens, logits = (torch.zeros(*size, *stores[0].arrays[name].shape) for name in ("tokens", "logits"))
    bank = Bank(tokens, logits, torch.zeros(size, dtype=torch.bool))
    for column, store in enumerate(stores):
        for name, tensor in (("tokens", bank.tokens), ("logits", bank.logits)):
            values, there = store.load(name, rows, np.float32)
            values[~there] = 0.0
            tensor[:, column] = torch.from_numpy(values)
        bank.present[:, column] = torch.from_numpy(there)
    return bank
