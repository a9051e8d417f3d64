"""Stage 1: the teachers run once over all clips, and their features go into the cache.

A clip's view is decoded once for all teachers that watch it, at the union of the frames they ask for. A shard
of clips is the unit of work: it is written whole or not at all.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowStatus
from ..cache import remove as remove_store
from ..cache.index import LOCK_FILE
from ..errors import CoverageError, UniegoError, UsageError, WeightsError
from ..models.teachers import PrecomputedTeacher, Teacher, TeacherConfig, build_teacher, teacher_view
from ..models.teachers.config import PRECOMPUTED
from ..pipeline import files
from ..pipeline.clips import Clip, missing_files
from ..pipeline.progress import Meter, count, say, size_text, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from ..pipeline.video import backend_identity
from .compute import compare_makers, made_with, maker, prepare, take_threads
from .extraction import extract_shards
from .precision import settle_precision
from .rows import record_rows
from .shard_size import measured_rows
from .targets import row_keys, teacher_path
from .train_teacher import in_force


def extract_teachers(
    run: Run, teachers: Sequence[str] | None = None, *, overwrite: bool = False, strict: bool = False
) -> None:
    """Run the named teachers (None: all) over all clips of the table.

    Continues where it stopped: finished shards are not computed again, and a finished stage changes no byte.
    A clip that cannot be read is recorded as failed, with the reason, and the work goes on; with `strict`, files
    that do not exist are refused before anything is computed, and so are other libraries, threads or batches than
    those that the first shards were made with. Raises `WeightsError` naming every teacher that is not ready,
    `FingerprintMismatch` for features made under other settings, `CoverageError` when fewer clips than
    `extract.min_coverage` have features at the end, `Stopped` between two shards when asked to stop.
    """
    keys = run.choose(teachers)
    table = run.table()
    _check_output(run)
    _check_files(run, keys, strict)
    device = prepare(run.config.compute)
    with StopFlag() as flag:
        built = _build(run, keys)
        for teacher in built.values():
            if isinstance(teacher, PrecomputedTeacher):
                _check_shared(teacher, table.clips)
        flag.check()
        run.record_sources()
        cosines = settle_precision(run, list(built.values()), device, flag, overwrite=overwrite)
        index = _plan_rows(run, list(built.values()), device, flag)
        record_rows(run, index)
        take_threads(run.config.compute, device, [] if overwrite else [teacher_path(run, key) for key in keys])
        made = made_with(run.config, device)
        stores = {
            key: _open_store(run, index, teacher, made, cosines.get(key), overwrite) for key, teacher in built.items()
        }
        for key, store in stores.items():
            run.record_extraction(key, store.fingerprint)
        plan = _Plan.of(run, index, stores)
        if plan.pending:
            unfinished = {key for keys in plan.pending.values() for key in keys}
            compare_makers([stores[key] for key in stores if key in unfinished], made, strict=strict)
            plan.announce(run, stores)
            with run.extracting(list(built)):
                _work(run, plan, built, stores, device, flag)
        else:
            say(f"extract-teachers: all features of {', '.join(keys)} are there, nothing to do")
    _report(run, stores, plan.rows)


_OTHERS = ("the other teachers can be extracted by naming them with --teacher",)
_SHOWN = 5  # failures of a teacher that are printed


@dataclass(frozen=True)
class _Plan:
    """Which shards each teacher still needs, and which clip stands in which row."""

    index: ClipIndex
    rows: npt.NDArray[np.int64]
    clips: dict[int, Clip]
    pending: dict[int, list[str]]  # shard -> teachers

    @classmethod
    def of(cls, run: Run, index: ClipIndex, stores: dict[str, FeatureStore]) -> _Plan:
        clips = run.table().clips
        rows = index.rows(row_keys(run, clips))
        pending: dict[int, list[str]] = {}
        for key, store in stores.items():
            for shard in store.pending(rows):
                pending.setdefault(shard, []).append(key)
        return cls(index, rows, dict(zip(rows.tolist(), clips, strict=True)), dict(sorted(pending.items())))

    def count(self, shard: int) -> int:
        """Clips of this run in a shard."""
        return sum(row in self.clips for row in self.index.shard_rows(shard))

    def announce(self, run: Run, stores: dict[str, FeatureStore]) -> None:
        """Say what is about to be done."""
        teachers = list(dict.fromkeys(key for keys in self.pending.values() for key in keys))
        clips = sum(self.count(shard) for shard in self.pending)
        free = shutil.disk_usage(run.cache_root).free
        say(
            f"extract-teachers: {clips} of {len(self.clips)} clips in {count(len(self.pending), 'shard')} of at most "
            f"{self.index.rows_per_shard}, {count(len(teachers), 'teacher')} ({', '.join(teachers)}); "
            f"{size_text(self.bytes(stores))} into {run.cache_root} ({free / 1e9:.0f} GB free)"
        )

    def bytes(self, stores: dict[str, FeatureStore]) -> int:
        """Bytes of features that the pending shards will hold."""
        per_row = {
            key: sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in store.arrays.values())
            for key, store in stores.items()
        }
        return sum(per_row[key] * len(self.index.shard_rows(s)) for s, keys in self.pending.items() for key in keys)


def _plan_rows(run: Run, teachers: Sequence[Teacher], device: torch.device, flag: StopFlag) -> ClipIndex:
    clips, rows = run.table().clips, run.config.cache.rows_per_shard
    if not ClipIndex.exists(run.cache_root):
        for teacher in teachers:
            teacher.to(device)
        rows = measured_rows(run.config, teachers, clips, flag)
    return ClipIndex.plan(run.cache_root, row_keys(run, clips), rows)


def _columns(key: str, config: TeacherConfig) -> set[str]:
    """Columns of the table whose files a teacher may read."""
    return set() if config.network == PRECOMPUTED else {f"{teacher_view(key, config)}_path", "pose_path"}


def _check_output(run: Run) -> None:
    try:
        with files.locked(run.cache_root / LOCK_FILE):
            pass
    except OSError as error:
        raise UniegoError(
            f"features cannot be written to {run.cache_root}: {error.strerror}; make the folder writable, or set "
            "cache.root to another one"
        ) from error


def _check_files(run: Run, keys: Sequence[str], strict: bool) -> None:
    read = set().union(*(_columns(key, run.config.teachers[key]) for key in keys))
    missing = [entry for entry in missing_files(run.table()) if entry[1] in read]
    if not missing:
        return
    shown = "\n".join(f"  {clip.clip_id}: {column} {path}" for clip, column, path in missing[:10])
    more = f"\n  and {len(missing) - 10} more" if len(missing) > 10 else ""
    message = f"{len(missing)} files that the table names do not exist:\n{shown}{more}"
    if strict:
        raise UniegoError(f"{message}\nmend the table, or leave --strict away to go on without these clips")
    warn(f"{message}\nthese clips will be recorded as failed (missing)")


def _build(run: Run, keys: Sequence[str]) -> dict[str, Teacher]:
    """Load all networks; say at once which of them are not ready."""
    built, problems = {}, []
    for key in keys:
        try:
            built[key] = build_teacher(key, in_force(run, key))
        except WeightsError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise WeightsError("\n".join(["not ready:", *problems, *(_OTHERS if len(problems) < len(keys) else ())]))
    random = [key for key, teacher in built.items() if teacher.is_random]
    if random:
        warn(f"RANDOM teachers, for trying things out only, they know nothing: {', '.join(random)}")
    return built


def _check_shared(teacher: PrecomputedTeacher, clips: Sequence[Clip]) -> None:
    """Refuse stored features that would stand for two different pieces of video, naming both clips."""
    taken: dict[str, tuple[Clip, tuple[object, ...]]] = {}
    for clip in clips:
        path = clip.video(teacher.view)
        entry = teacher.find(clip.clip_id, None if path is None else path.stem)
        if entry is None:
            continue
        piece = (path, clip.start_s, clip.end_s)
        other, others_piece = taken.setdefault(entry, (clip, piece))
        if others_piece != piece:
            raise UsageError(
                f"teacher {teacher.key!r}: the stored feature {entry!r} would stand for clip {other.clip_id!r} "
                f"({_piece(others_piece)}) and for clip {clip.clip_id!r} ({_piece(piece)}); store one feature per "
                "clip, called by the clip's id"
            )


def _piece(piece: tuple[object, ...]) -> str:
    path, start, end = piece
    return f"{path}" + (f", {start or 0} to {end or 'its end'} s" if start is not None or end is not None else "")


def _open_store(
    run: Run, index: ClipIndex, teacher: Teacher, made: Mapping[str, Any], cosine: float | None, overwrite: bool
) -> FeatureStore:
    path = teacher_path(run, teacher.key)
    if overwrite and path.exists():
        remove_store(path)
    shape = (teacher.rows, teacher.dim)
    description = "one feature per picked frame" if teacher.rows > 1 else "one feature per clip"
    arrays = {"features": ArraySpec(shape, run.config.cache.dtype, ("time", "feature"), description)}
    reduced = {} if cosine is None else {"precision": {"dtype": teacher.precision, "cosine_to_fp32": cosine}}
    attributes = {**_attributes(teacher), "made_with": {**made, **reduced}}
    return FeatureStore.create(path, index, arrays, fingerprint(run, teacher), attributes, maker=maker(made))


def fingerprint(run: Run, teacher: Teacher) -> dict[str, Any]:
    """What decides about a teacher's stored features: weights, preparation, picks, decoder, arithmetic, dtype.

    fp32 goes without saying, as in caches that are older than the choice.
    """
    decoder = backend_identity(run.config.video.backend) if teacher.reads in {"frames", "clip"} else {}
    return {
        "teacher": teacher.fingerprint(),
        "picks": "as stored" if teacher.reads == "stored" else "centres of equal parts of the clip",
        "decoder": decoder,
        "dtype": run.config.cache.dtype,
        **({} if teacher.precision == "fp32" else {"precision": teacher.precision}),
    }


def _attributes(teacher: Teacher) -> dict[str, Any]:
    return {
        "teacher": teacher.key,
        "view": teacher.view,
        "random": teacher.is_random,
        **teacher.describe(),
    }


def _work(
    run: Run,
    plan: _Plan,
    teachers: dict[str, Teacher],
    stores: dict[str, FeatureStore],
    device: torch.device,
    flag: StopFlag,
) -> None:
    done = len(plan.clips) - sum(plan.count(shard) for shard in plan.pending)
    with Meter("extract-teachers", len(plan.clips), resumed=done) as meter:
        extract_shards(run, plan.pending, plan.index, plan.clips, teachers, stores, device, flag, meter)


def _write_failures(run: Run, failures: dict[str, list[Failure]]) -> None:
    """RUN/extract/failures.csv: teacher, clip_id, reason, message; teachers that were not looked at keep their rows."""
    path = run.root / "extract" / "failures.csv"
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in list(csv.reader(handle))[1:] if row[0] not in failures]
    rows += [[key, *failure] for key, found in failures.items() for failure in found]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([["teacher", "clip_id", "reason", "message"], *sorted(rows)])
    data = out.getvalue().encode()
    if not path.exists() or path.read_bytes() != data:
        files.write_bytes(path, data)


def _report(run: Run, stores: dict[str, FeatureStore], rows: npt.NDArray[np.int64]) -> None:
    """One line per teacher; raises `CoverageError` below the minimum."""
    short = []
    failures: dict[str, list[Failure]] = {}
    for key, store in stores.items():
        status = store.status(rows)
        done, failed, absent = (int((status == s).sum()) for s in (RowStatus.DONE, RowStatus.FAILED, RowStatus.ABSENT))
        named = done + failed
        share = done / named if named else None
        text = f"{100 * share:.1f} %" if share is not None else "no clip names its input"
        say(f"  {key}: {done} done, {failed} failed, {absent} without its input ({text})")
        now = {clip.clip_id for clip, s in zip(run.table().clips, status, strict=True) if s == RowStatus.FAILED}
        mine = list({failure.clip_id: failure for failure in store.failures() if failure.clip_id in now}.values())
        for failure in mine[:_SHOWN]:
            say(f"    {failure.clip_id}: {failure.message}")
        if len(mine) > _SHOWN:
            say(f"    and {len(mine) - _SHOWN} more, all in {run.root / 'extract' / 'failures.csv'}")
        failures[key] = mine
        if share is not None and share < run.config.extract.min_coverage:
            short.append(f"{key} {100 * share:.1f} %")
    _write_failures(run, failures)
    if short:
        raise CoverageError(
            f"coverage below extract.min_coverage ({100 * run.config.extract.min_coverage:.1f} %): {', '.join(short)}; "
            "mend the files named above and run the same command again (clips whose files changed are tried again), or "
            "lower the minimum"
        )
    say(f"next: {run.command('train-proxies')}")
