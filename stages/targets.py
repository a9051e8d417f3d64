"""What proxies and student learn from: cached features and outputs as contiguous tensors.

The durable store is read in whole shards, once; training gathers rows of one tensor, in memory or mapped (see `view`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import ClipIndex, FeatureStore, RowKey, RowStatus
from ..cache.view import Arrays, Part, content_key, resident
from ..errors import ConfigError, FingerprintMismatch, MissingInputError, UniegoError, fingerprint_difference
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from .view import open_view

if TYPE_CHECKING:
    from .rows import RunRows

_BLOCK_BYTES = 8 << 20  # of features that are in memory at once, or a whole shard: what a processor's cache may hold


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
    return [RowKey(clip.clip_id, run.identity(clip)) for clip in clips]


def by_id(clips: Sequence[Clip]) -> list[int]:
    """Positions of the clips in the order of their ids, whatever order the table has them in."""
    return sorted(range(len(clips)), key=lambda place: clips[place].clip_id)


def open_index(run: Run) -> ClipIndex:
    """The cache's rows. Raises `MissingInputError` naming the command that makes them."""
    try:
        return ClipIndex.open(run.cache_root)
    except FileNotFoundError as error:
        command = run.command("extract-teachers")
        raise MissingInputError(f"no feature cache in {run.cache_root}: run `{command}` first") from error


def find_index(run: Run) -> ClipIndex | None:
    """The cache's rows, None before anything was extracted. Raises `IntegrityError`."""
    return ClipIndex.open(run.cache_root) if ClipIndex.exists(run.cache_root) else None


def find_store(run: Run, index: ClipIndex | None, name: str) -> FeatureStore | None:
    """A store of the cache, of a teacher or of a proxy; None where there is none, or its making was cut short."""
    if index is None:
        return None
    try:
        return FeatureStore.open(run.cache_root / name, index)
    except MissingInputError:
        return None


def teacher_path(run: Run, teacher: str) -> Path:
    """Where a teacher's features lie."""
    return run.cache_root / teacher


def open_teacher(run: Run, index: ClipIndex, teacher: str) -> FeatureStore:
    """A teacher's features. Raises `MissingInputError` naming the command that makes them."""
    path = teacher_path(run, teacher)
    if not path.exists():
        raise MissingInputError(
            f"no features of {teacher} in {run.cache_root}: run "
            f"`{run.command(f'extract-teachers --teacher {teacher}')}` first"
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


def pool(
    run: Run, *, strict: bool, only: Sequence[str] | None = None, without_features: Sequence[str] = ()
) -> list[str]:
    """Teachers that can teach: those with a feature for at least one train clip; `only` of the named ones.

    `without_features`: teachers that can teach without any, their proxies being imported.
    One without any is left out with a warning, or refused when `strict` or named. Raises `MissingInputError` for
    features that are not there or not whole yet, `FingerprintMismatch` for those made under other settings (so for
    random ones that the configuration does not name), `ConfigError` for features of random weights without
    `allow_random`, `UniegoError` for an empty pool.
    """
    index = open_index(run)
    keys: list[str] = []
    empty: list[str] = []
    for key in only or run.config.teachers:
        if key in without_features:
            keys.append(key)
            continue
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


def targets_hash(rows: RunRows, store: FeatureStore) -> str:
    """Hash of which train clips have a feature, and of what it was made from. `rows`: the run's."""
    return files.hash_bytes(rows.train_identities.encode() + store.status(rows.train).tobytes())


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
    """Features of the given rows averaged over `count` evenly picked time steps, in memory; [T, D] becomes [D]."""
    arrays = resident(_target_parts(store, rows), lambda out: _fill_targets(out, store, rows, count))
    return Targets(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def training_targets(run: Run, folder: Path, store: FeatureStore, rows: npt.NDArray[np.int64], count: int) -> Targets:
    """`load_targets`, bit for bit, wherever there is room for them: device, memory, or a file in `folder`."""
    key = content_key([store], rows, ["targets", count])
    parts = _target_parts(store, rows)
    title = f"targets of {store.path.name}"
    fill = partial(_fill_targets, store=store, rows=rows, count=count)
    return Targets(**open_view(title, folder, key, parts, fill, run.config.compute))


def training_targets_of(
    run: Run, folder: Path, stores: Mapping[str, FeatureStore], rows: npt.NDArray[np.int64], count: int
) -> dict[str, Targets]:
    """`training_targets` of several teachers, by key, which live in one place together."""
    parts = {
        f"{key}.{name}": part for key, store in stores.items() for name, part in _target_parts(store, rows).items()
    }

    def fill(out: Arrays) -> None:
        for key, store in stores.items():
            _fill_targets({name: out[f"{key}.{name}"] for name in Targets._fields}, store, rows, count)

    key = content_key(list(stores.values()), rows, ["targets", count, list(stores)])
    view = open_view(f"targets of {len(stores)} teachers", folder, key, parts, fill, run.config.compute)
    return {key: Targets(*(view[f"{key}.{name}"] for name in Targets._fields)) for key in stores}


def _target_parts(store: FeatureStore, rows: npt.NDArray[np.int64]) -> dict[str, Part]:
    width = store.arrays["features"].shape[1]
    return {"values": Part((len(rows), width), "float32"), "present": Part((len(rows),), "bool")}


def _fill_targets(out: Arrays, store: FeatureStore, rows: npt.NDArray[np.int64], count: int) -> None:
    picks = target_rows(store.arrays["features"].shape[0], count)
    for block in _blocks(rows, store):
        values, there = store.read(rows[block], "features")  # [b,T,D]
        means = _mean(values, picks)
        means[~there] = 0.0
        out["values"][block], out["present"][block] = means, there


def _mean(values: npt.NDArray[Any], picks: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32 [b, D], the mean of picked steps of [b, T, D]; added one by one, so that no cast copies all of them."""
    steps = torch.from_numpy(values)
    first, *others = picks.tolist()
    total = steps[:, first].to(torch.float32, copy=True)
    for pick in others:
        total += steps[:, pick]
    result: npt.NDArray[np.float32] = total.div_(len(picks)).numpy()
    return result


def load_bank(stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64]) -> Bank:
    """Outputs of several proxies side by side, in memory. Absent ones hold zeros and are marked."""
    size = len(rows), len(stores)
    tokens, logits = (torch.zeros(*size, *stores[0].arrays[name].shape) for name in ("tokens", "logits"))
    bank = Bank(tokens, logits, torch.zeros(size, dtype=torch.bool))
    for block, outputs in output_blocks(stores, rows):
        for whole, part in zip(bank, outputs, strict=True):
            whole[torch.from_numpy(block)] = part
    return bank


def output_blocks(
    stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Bank]]:
    """`load_bank` in blocks of some whole shards: positions in `rows`, int64 [b], and the outputs of these clips."""
    for block in _blocks(rows, stores[0]):
        found = [
            (store.load("tokens", rows[block], np.float32), store.load("logits", rows[block], np.float32)[0])
            for store in stores
        ]
        present = np.stack([there for (_, there), _ in found], axis=1)  # [b,R]
        tokens = np.stack([values for (values, _), _ in found], axis=1)  # [b,R,D]
        logits = np.stack([values for _, values in found], axis=1)  # [b,R,C]
        tokens[~present] = logits[~present] = 0.0
        yield block, Bank(torch.from_numpy(tokens), torch.from_numpy(logits), torch.from_numpy(present))


def _blocks(rows: npt.NDArray[np.int64], store: FeatureStore) -> list[npt.NDArray[np.int64]]:
    """Positions of the rows, some whole shards after the other: bounded memory, and every shard is read once."""
    per_row = sum(Part(spec.shape, spec.dtype).bytes for spec in store.arrays.values())
    shards = max(1, _BLOCK_BYTES // (per_row * store.index.rows_per_shard))
    order = np.argsort(rows, kind="stable")
    blocks = rows[order] // (shards * store.index.rows_per_shard)
    return np.split(order, np.flatnonzero(np.diff(blocks)) + 1)
