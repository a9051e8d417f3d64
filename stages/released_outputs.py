"""A proxy's tokens and scores over the train split in the released layout: read into the cache, written from it.

FOLDER/tokens_training/tokens/<name>.npy, float32 [D], and FOLDER/tokens_training/scores_pred/<name>.npy, float32 [C],
named after the ego clip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowStatus
from ..cache.coverage import Coverage, count_rows, failed_rows
from ..errors import UsageError
from ..models.teachers.stored import Entries, FeatureFileError, NpyFolder
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .extract_checks import check_shared
from .targets import row_keys

TOKENS, SCORES = Path("tokens_training", "tokens"), Path("tokens_training", "scores_pred")
SHOWN = 5


class ReleasedOutputs(NamedTuple):
    """The two folders of one proxy."""

    tokens: NpyFolder
    scores: NpyFolder

    @classmethod
    def find(cls, folder: Path) -> ReleasedOutputs | None:
        """Those of a proxy's folder, None where it has neither. Raises `UsageError` where it has but one."""
        there = [part for part in (TOKENS, SCORES) if any((folder / part).glob("**/*.npy"))]
        if len(there) == 1:
            lacking = SCORES if there == [TOKENS] else TOKENS
            raise UsageError(f"{folder} has {there[0]} and no {lacking}: both are needed")
        return cls(NpyFolder(folder / TOKENS), NpyFolder(folder / SCORES)) if there else None

    def content(self) -> dict[str, Any]:
        """Names, sizes and up to 256 files of each, hashed (see `StoredFeatures.identity`), and how many."""
        return {
            name: {"content": folder.identity(), "entries": len(folder.names)}
            for name, folder in zip(("tokens", "scores"), self, strict=True)
        }


class Imported(NamedTuple):
    """What became of the train clips; `failed`: the first that have no outputs, and why; `unused`: files that are no
    train clip's; `zeros`: tokens of zeros alone; `agreement`: share of the clips with outputs whose highest score is
    their label (0 where there are none)."""

    store: FeatureStore
    coverage: Coverage
    failed: list[Failure]
    unused: int
    zeros: int
    agreement: float


def imported_name(teacher: str, fingerprint: Mapping[str, Any]) -> str:
    """Name of the store in the cache: by content, as that of outputs computed here."""
    return f"proxy-{teacher}-{files.hash_bytes(json.dumps(fingerprint, sort_keys=True).encode())[:16]}"


def outputs_imported(content: Mapping[str, Any], width: int, classes: int) -> dict[str, Any]:
    """The fingerprint of imported outputs."""
    return {"imported": dict(content), "width": width, "classes": classes}


def import_outputs(
    run: Run, teacher: str, index: ClipIndex, found: ReleasedOutputs, content: Mapping[str, Any], flag: StopFlag
) -> Imported:
    """Take the files of the train clips into the cache, a shard at a time; continues after a kill.

    A clip without a file, or with one alone, fails as missing; one that is no array of the student's width or the
    table's classes, or not finite, as unreadable. Tokens [T, D] are averaged, as the released loader does. Raises
    `UsageError` where a file would stand for two clips, or no train clip has one; `Stopped` when asked to stop.
    """
    clips, width, classes = run.table().split("train"), run.config.student.width, run.table().num_classes
    entries = [Entries(folder, f"proxy {teacher}") for folder in found]
    unused = 0
    for part, folder in zip(entries, found, strict=True):
        taken = check_shared(part.find, "ego", f"{folder.path}", clips)
        if not taken:
            raise UsageError(
                f"{folder.path}: none of {len(folder.names)} files is called like a train clip, by its id or its ego "
                f"video: {folder.names[0]}.npy there, {clips[0].clip_id} or {clips[0].ego_path.stem} here"
            )
        unused += len(folder.names) - len(taken)
    arrays = {
        "tokens": ArraySpec((width,), "float32", ("width",), "CLS token after the final norm"),
        "logits": ArraySpec((classes,), "float32", ("class",), "raw class scores"),
    }
    fingerprint = outputs_imported(content, width, classes)
    attributes = {"teacher": teacher, "made_by": "elsewhere", "view": "ego", "imported": {"source": "released layout"}}
    path = run.cache_root / imported_name(teacher, fingerprint)
    store = FeatureStore.create(path, index, arrays, fingerprint, attributes)
    rows = index.rows(row_keys(run, clips))
    by_row = dict(zip(rows.tolist(), clips, strict=True))
    reader = _Reader(found, entries, width, classes)
    work = {shard: [row for row in index.shard_rows(shard) if row in by_row] for shard in store.pending(rows)}
    left = sum(map(len, work.values()))
    with Meter(f"proxy {teacher}: outputs", len(clips), resumed=len(clips) - left) as meter:
        for shard, mine in work.items():
            _write_shard(store, shard, {row: by_row[row] for row in mine}, reader)
            meter.advance(len(mine))
            flag.check()
    zeros, right, there = _look(store, rows, clips)
    failed = [failure for _, failure in islice(failed_rows(store, rows), SHOWN)]
    return Imported(store, count_rows(store, rows), failed, unused, zeros, right / max(there, 1))


class _Reader:
    """Tokens and scores of a clip."""

    def __init__(self, found: ReleasedOutputs, entries: list[Entries], width: int, classes: int) -> None:
        self._tokens, self._scores = zip(found, entries, strict=True)
        self._width, self._classes = width, classes

    def read(self, clip: Clip) -> list[npt.NDArray[np.float32]]:
        """[width] and [classes]. Raises `FeatureFileError`."""
        tokens = _array(clip, *self._tokens, self._width)
        scores = _array(clip, *self._scores, self._classes)
        if len(scores) > 1:
            raise FeatureFileError("unreadable", f"{self._scores[0].path}: {len(scores)} rows of scores for one clip")
        return [tokens[0] if len(tokens) == 1 else tokens.mean(0), scores[0]]


def _array(clip: Clip, folder: NpyFolder, entries: Entries, size: int) -> npt.NDArray[np.float32]:
    """A clip's file, float32 [T, size]; [size, T] is transposed, as the released loader does."""
    name = entries.find(clip.clip_id, clip.ego_path.stem)
    if name is None:
        raise FeatureFileError("missing", f"{folder.path}: nothing called {clip.clip_id!r} or like its ego video")
    values = folder.read(name)
    if values.ndim == 2 and values.shape[0] == size != values.shape[1]:
        values = values.T
    if values.dtype.kind != "f" or values.ndim not in (1, 2) or values.shape[-1] != size or values.size == 0:
        got = f"{values.dtype} {list(values.shape)}"
        raise FeatureFileError("unreadable", f"{folder.path}: {name}: {got}; expected floating numbers [{size}]")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
        found = np.atleast_2d(values.astype(np.float32))
    if not np.isfinite(found).all():
        raise FeatureFileError("unreadable", f"{folder.path}: {name}: holds numbers that are not finite")
    return found


def _write_shard(store: FeatureStore, shard: int, clips: Mapping[int, Clip], reader: _Reader) -> None:
    rows = store.index.shard_rows(shard)
    status = np.full(len(rows), RowStatus.PENDING, np.uint8)
    values = {name: np.full((len(rows), *spec.shape), np.nan, spec.dtype) for name, spec in store.arrays.items()}
    failures = []
    for row, clip in clips.items():
        place = row - rows.start
        try:
            found = reader.read(clip)
        except FeatureFileError as error:
            status[place] = RowStatus.FAILED
            failures.append(Failure(clip.clip_id, error.reason, str(error)))
            continue
        status[place] = RowStatus.DONE
        for name, one in zip(("tokens", "logits"), found, strict=True):
            values[name][place] = one
    store.write_shard(shard, values, status, failures)


def _look(store: FeatureStore, rows: npt.NDArray[np.int64], clips: list[Clip]) -> tuple[int, int, int]:
    """How many clips have tokens of zeros alone, are called by their label, and have outputs."""
    zeros = right = there = 0
    for start in range(0, len(rows), store.index.rows_per_shard):
        some = slice(start, start + store.index.rows_per_shard)
        tokens, present = store.load("tokens", rows[some], np.float32)
        logits, _ = store.load("logits", rows[some], np.float32)
        labels = np.array([clip.label for clip in clips[some]])
        zeros += int((present & ~tokens.any(1)).sum())
        right += int((present & (np.where(present[:, None], logits, 0.0).argmax(1) == labels)).sum())
        there += int(present.sum())
    return zeros, right, there


def write_outputs(store: FeatureStore, rows: npt.NDArray[np.int64], names: Mapping[int, str], folder: Path) -> int:
    """Write the outputs of {row: name} as files; how many clips. Those without outputs have no file."""
    there = rows[(store.status(rows) == RowStatus.DONE)]
    for part, array in ((TOKENS, "tokens"), (SCORES, "logits")):
        (folder / part).mkdir(parents=True)
        for start in range(0, len(there), store.index.rows_per_shard):
            some = there[start : start + store.index.rows_per_shard]
            values, _ = store.load(array, some, np.float32)
            for row, one in zip(some.tolist(), values, strict=True):
                path = folder / part / f"{names[row]}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, one)
    return len(there)
