"""Whether stored features are still what was computed: ledgers, files, every byte, or the computation itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache import ClipStore, Failure, FeatureStore, RowStatus
from ..cache.verify import Problem, store_names, verify_cache
from ..errors import FingerprintMismatch, IntegrityError, MissingInputError, fingerprint_difference
from ..models.teachers import Teacher, build_teacher
from ..pipeline.clips import Clip
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .clip_source import store_root
from .compute import least_cosine, made_with, maker, prepare, take_threads
from .extract_stores import fingerprint
from .precision import precision_of
from .shard_work import ShardWork
from .targets import open_index, open_teacher, row_keys
from .train_teacher import in_force

LEAST_COSINE = 0.9999
"""Between a stored feature and one computed on another device or with other libraries."""


@dataclass
class Report:
    """What was checked. `recomputed` counts clips per teacher, `equal` those of them with the same bytes.

    `unread`: per teacher, why drawn clips could not be compared, for example since their videos are not here.
    """

    cache: str
    stores: dict[str, int] = field(default_factory=dict)  # written shards
    bytes_read: int = 0
    recomputed: dict[str, int] = field(default_factory=dict)
    equal: dict[str, int] = field(default_factory=dict)
    unread: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    clip_store: dict[int, str] | None = None  # {shard: what is wrong}; None: there is none

    def as_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "problems": [problem._asdict() for problem in self.problems]}


def verify(
    run: Run, teachers: Sequence[str] | None = None, *, full: bool = False, recompute: int = 0, mark: bool = True
) -> Report:
    """Check all stores of the run's cache, of teachers and of proxies; or the named teachers' alone.

    Ledgers and sizes always; with `full` every byte; with `recompute` so many clips of each teacher go through its
    network again: on the same device with the same libraries, threads and batches they must give the same bytes,
    elsewhere a cosine of at least `LEAST_COSINE`. With `mark`, bad shards are taken back: the next extraction redoes
    exactly them, and until then training takes their clips for not done. A clip whose input cannot be read now is no
    bad one. Raises `MissingInputError` where there is no
    cache, `IntegrityError` for its index, and what building a teacher raises.
    """
    index = open_index(run)
    report = Report(run.cache_place)
    names = _stores(run, teachers)
    for checked in verify_cache(run.cache_root, names, full=full, mark=mark):
        report.stores[checked.store] = checked.shards
        report.bytes_read += checked.read
        report.problems += checked.problems
        if full:
            say(f"verify: {checked.store}: {checked.shards} shards, {checked.read / 1e6:.1f} MB read")
    if not teachers:
        report.clip_store = _clip_problems(run, full)
    if recompute:
        device = prepare(run.config.compute)
        take_threads(run.config.compute, device, [run.cache_root / key for key in run.choose(teachers)])
        made_here = maker(made_with(run.config, device))
        sound = {name for name in report.stores if not any(p[:2] == (name, None) for p in report.problems)}
        for key in run.choose(teachers):
            if key in sound:
                store = open_teacher(run, index, key)
                teacher = build_teacher(key, in_force(run, key)).to(device)
                teacher.precision = precision_of(store.fingerprint)
                _refuse_other(run, store, teacher)
                _Recomputation(run, store, teacher, made_here, mark).check(recompute, report)
    return report


def _clip_problems(run: Run, full: bool) -> dict[int, str] | None:
    """What is wrong in the run's clip store; `prepare-clips` mends it, nothing is marked."""
    root = store_root(run)
    return ClipStore.open(root).problems(full=full) if ClipStore.exists(root) else None


def _stores(run: Run, teachers: Sequence[str] | None) -> list[str]:
    present = store_names(run.cache_root)
    if not teachers:
        return present
    missing = [key for key in run.choose(teachers) if key not in present]
    if missing:
        raise MissingInputError(
            f"no features of {', '.join(missing)} in {run.cache_root}: run `uniego extract-teachers` first"
        )
    return run.choose(teachers)


def _refuse_other(run: Run, store: FeatureStore, teacher: Teacher) -> None:
    different = fingerprint_difference(store.fingerprint, fingerprint(run, teacher))
    if different:
        advice = "Only the same teacher can be compared; restore those settings."
        raise FingerprintMismatch(f"features of {teacher.key} in {store.path}", different, advice)


class _Recomputation:
    """Some clips through one teacher again, in the batches that they were in."""

    def __init__(self, run: Run, store: FeatureStore, teacher: Teacher, made_here: str, mark: bool) -> None:
        self._run, self._store, self._teacher, self._made_here, self._mark = run, store, teacher, made_here, mark
        clips = run.table().clips
        rows = store.index.rows(row_keys(run, clips))
        self._clips = dict(zip(rows.tolist(), clips, strict=True))

    def check(self, count: int, report: Report) -> None:
        """Compare `count` clips that have features, drawn by the seed and their ids; bad shards are marked."""
        key, store = self._teacher.key, self._store
        chosen = self._draw(count)
        report.recomputed[key], report.equal[key] = 0, 0
        say(f"verify: {key}: computing {len(chosen)} clips again")
        for row in chosen:
            shard = row // store.index.rows_per_shard
            if any(p[:2] == (key, shard) for p in report.problems):
                continue
            clip_id, revision = self._clips[row].clip_id, store.revision(shard)
            try:
                stored = store.read([row], "features")[0][0]
                computed, alike = self._compute(row, shard)
                if isinstance(computed, Failure) and computed.reason != "non_finite":
                    report.unread.setdefault(key, []).append(f"clip {clip_id!r}: {computed.message}")
                    continue
                report.recomputed[key] += 1
                report.equal[key] += np.array_equal(stored, computed)
                what = self._difference(shard, stored, computed, alike)
            except IntegrityError as error:
                what = f"cannot be read: {error}"
            if what:
                what = f"clip {clip_id!r}: {what}"
                report.problems.append(Problem(key, shard, what, self._mark and store.redo(shard, revision)))

    def _draw(self, count: int) -> list[int]:
        rows = np.array(sorted(self._clips), np.int64)
        done = rows[self._store.status(rows) == RowStatus.DONE].tolist()
        return sorted(sorted(done, key=lambda row: _draw(self._run.config.seed, self._clips[row]))[:count])

    def _compute(self, row: int, shard: int) -> tuple[npt.NDArray[Any] | Failure, bool]:
        """The feature [T, D] computed again, in the stored dtype, or why there is none; whether its batch was whole."""
        rows = self._store.index.shard_rows(shard)
        batch = self._batch(row, rows)
        with StopFlag() as flag, ShardWork(self._run.config, {r: self._clips[r] for r in batch}) as work:
            values, status, failures = work.run(rows, [self._teacher], flag)[self._teacher.key]
        by_clip = {failure.clip_id: failure for failure in failures}
        clip_id, place = self._clips[row].clip_id, row - rows.start
        if status[place] == RowStatus.ABSENT:
            return Failure(clip_id, "missing", "its input is not there any more"), False
        whole = all(failure.reason == "non_finite" for failure in failures) and RowStatus.ABSENT not in status
        return by_clip.get(clip_id, values["features"][place]), whole

    def _batch(self, row: int, rows: range) -> list[int]:
        """The rows that went through the network together with this one: those whose input could be prepared."""
        entry = self._store.entry(rows.start // self._store.index.rows_per_shard)
        assert entry is not None
        computed = {failure.clip_id for failure in entry.failures if failure.reason == "non_finite"}
        keys = self._store.index.keys(entry.shard)
        codes = entry.statuses()
        done = [r for r, k, c in zip(rows, keys, codes, strict=True) if c == RowStatus.DONE or k.clip_id in computed]
        mine = [r for r in done if r in self._clips]
        size = self._run.config.extract.batch_clips
        start = mine.index(row) // size * size
        return mine[start : start + size]

    def _difference(
        self, shard: int, stored: npt.NDArray[Any], computed: npt.NDArray[Any] | Failure, alike: bool
    ) -> str:
        if isinstance(computed, Failure):
            return "there is a feature in the cache, but computed again it is not finite"
        if np.array_equal(stored, computed):
            return ""
        cosine = least_cosine(stored, computed)
        entry = self._store.entry(shard)
        if alike and entry is not None and entry.maker == self._made_here and entry.revision == 0:
            return f"other bytes on the same device and software (cosine {cosine:.6f})"
        return f"cosine {cosine:.6f}, below {LEAST_COSINE}" if cosine < LEAST_COSINE else ""


def _draw(seed: int, clip: Clip) -> bytes:
    return hashlib.blake2b(f"verify\0{seed}\0{clip.clip_id}".encode(), digest_size=8).digest()
