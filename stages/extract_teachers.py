"""Stage 1: the teachers run once over all clips, and their features go into the cache.

A clip's view is decoded once for all teachers that watch it, at the union of the frames they ask for. A shard
of clips is the unit of work: it is written whole or not at all, by whichever process it falls to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch

from ..cache import ClipIndex, FeatureStore
from ..models.teachers import PrecomputedTeacher, Teacher
from ..pipeline.progress import Meter, say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .compute import compare_makers, made_with, prepare, take_threads
from .engines.local import devices, extract_in_processes
from .engines.workplace import Job, Workplace
from .extract_checks import check_files, check_options, check_output, check_shared
from .extract_options import ExtractOptions, Share
from .extract_outlook import foresee
from .extract_plan import Plan
from .extract_report import announce, report
from .extract_stores import build_teachers, existing_store, open_store
from .precision import settle_precision
from .rows import record_rows
from .shard_size import measured_rows, seconds_per_clip
from .targets import row_keys, teacher_path

_WORTH_A_PROBE = 64  # clips: fewer are done before one has measured
_LONG = 5.0  # seconds of waiting before it is told


def extract_teachers(
    run: Run,
    teachers: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    strict: bool = False,
    options: ExtractOptions | None = None,
) -> None:
    """Run the named teachers (None: all) over all clips of the table, or over a share of them.

    Continues where it stopped: finished shards are not computed again, and a finished stage changes no byte.
    A clip that cannot be read is recorded as failed, with the reason, and the work goes on; with `strict`, files
    that do not exist are refused before anything is computed, and so are other libraries, threads or batches than
    those that the first shards were made with. `options` say who computes: the bytes are the same. Any number of
    processes may start at once, on an empty cache too: one plans, the others wait for it.

    Raises `WeightsError` naming every teacher that is not ready, `FingerprintMismatch` for features made under other
    settings, `CoverageError` when fewer clips than `extract.min_coverage` have features at the end, `Stopped` between
    two shards when asked to stop, `UsageError` for options that do not go together.
    """
    options = options or ExtractOptions()
    keys = run.choose(teachers)
    check_options(run, options, overwrite)
    if not options.dry_run:
        check_output(run)
    check_files(run, keys, strict)
    device = prepare(run.config.compute)
    with StopFlag() as flag:
        built = build_teachers(run, keys)
        for teacher in built.values():
            if isinstance(teacher, PrecomputedTeacher):
                check_shared(teacher.find, teacher.view, f"teacher {teacher.key!r}", run.table().clips)
        flag.check()
        probe = _Probe(run, built, device, flag)
        if options.dry_run:
            settle_precision(run, list(built.values()), device, flag, overwrite=overwrite)
            _foretell(run, built, probe, overwrite)
            return
        with run.alone(_Waiting(flag)):
            run.record_sources()
            cosines = settle_precision(run, list(built.values()), device, flag, overwrite=overwrite)
            index = _plan_rows(run, built, probe)
            take_threads(run.config.compute, device, [] if overwrite else [teacher_path(run, key) for key in keys])
            made = made_with(run.config, device)
            task = (options.share or Share()).task
            stores = {
                key: open_store(run, index, teacher, made, cosines.get(key), overwrite, task)
                for key, teacher in built.items()
            }
            for key, store in stores.items():
                run.record_extraction(key, store.fingerprint)
        plan = Plan.of(run, index, stores, options.share or Share(), options.retry_failed)
        if plan.pieces:
            compare_makers([stores[key] for key in plan.keys], made, strict=strict)
            _announce(run, plan, built, probe, options)
            place = Workplace(run, index, plan.clips, built, stores, device)
            with run.extracting(plan.keys):
                _compute(place, plan, options, flag)
        else:
            say(f"extract-teachers: {_all_there(keys, options)}, nothing to do")
        report(run, plan, stores, options.min_coverage, flag.check)


class _Waiting:
    """Called while another process plans: looks at the stop flag, and says once what is waited for."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag, self._since = flag, time.monotonic()

    def __call__(self) -> None:
        self._flag.check()
        if time.monotonic() - self._since > _LONG:
            self._since = math.inf
            say("extract-teachers: another process plans this extraction; waiting for it")


class _Probe:
    """How long a clip takes through all teachers on this machine, seconds; measured once, when it is first asked."""

    def __init__(self, run: Run, teachers: Mapping[str, Teacher], device: torch.device, flag: StopFlag) -> None:
        self._run, self._teachers, self._device, self._flag = run, teachers, device, flag
        self._seconds: float | None = None

    def seconds(self) -> float:
        """Seconds per clip. Raises `Stopped` when asked to stop."""
        if self._seconds is None:
            for teacher in self._teachers.values():
                teacher.to(self._device)
            clips, teachers = self._run.table().clips, list(self._teachers.values())
            self._seconds = seconds_per_clip(self._run.config, teachers, clips, self._flag)
        return self._seconds


def _plan_rows(run: Run, teachers: Mapping[str, Teacher], probe: _Probe) -> ClipIndex:
    clips, rows = run.table().clips, None
    if not ClipIndex.exists(run.cache_root):
        rows = measured_rows(run.config, len(teachers), len(clips), probe.seconds)
    index = ClipIndex.plan(run.cache_root, row_keys(run, clips), rows)
    record_rows(run, index)
    return index


def _announce(run: Run, plan: Plan, built: Mapping[str, Teacher], probe: _Probe, options: ExtractOptions) -> None:
    """Say what this process is about to have done, with the time it takes where the work is done here."""
    outlook = plan.outlook(run, built)
    here = options.engine == "local" and outlook.clips >= _WORTH_A_PROBE
    seconds = probe.seconds() * outlook.clips / (options.workers or 1) if here else None
    announce(run, outlook, plan.keys, plan.index.rows_per_shard, seconds)


def _foretell(run: Run, built: Mapping[str, Teacher], probe: _Probe, overwrite: bool) -> None:
    """`--dry-run`: what would be done, measured and told; nothing is written."""
    run.record_sources(keep=False)
    index = ClipIndex.open(run.cache_root) if ClipIndex.exists(run.cache_root) and not overwrite else None
    clips = len(run.table().clips)
    rows = index.rows_per_shard if index else measured_rows(run.config, len(built), clips, probe.seconds)

    def open_existing(teacher: Teacher) -> FeatureStore | None:
        return existing_store(run, index, teacher) if index is not None else None

    outlook = foresee(run, index, built, open_existing, rows)
    seconds = probe.seconds() * outlook.clips if outlook.clips else 0.0
    announce(run, outlook, list(built), rows, seconds)
    say("dry run: nothing was computed or written")


def _compute(place: Workplace, plan: Plan, options: ExtractOptions, flag: StopFlag) -> None:
    """Have the pieces computed by whom the options name."""
    run, todo = place.run, plan.todo
    resumed = max(0, len(plan.share_rows) - todo)
    where = devices(run.config.compute, place.device, options.workers)
    with Meter("extract-teachers", resumed + todo, resumed=resumed) as meter:
        if options.engine == "local" and len(where) == 1:
            for piece in plan.pieces:
                place.extract(piece, flag, meter)
            return
        job = Job.of(run, place.stores, plan.rows, plan.keys)
        for teacher in place.teachers.values():
            teacher.to("cpu")  # the device is the workers'
        if options.engine == "local":
            extract_in_processes(job, plan.pieces, where, flag, meter)
            return
        from .engines.cluster import extract_on_cluster  # Dask takes seconds to import

        extract_on_cluster(job, plan.pieces, options, flag, meter)


def _all_there(keys: Sequence[str], options: ExtractOptions) -> str:
    share = options.share
    part = f" of share {share.index} of {share.count}" if share is not None and share.count > 1 else ""
    return f"all features of {', '.join(keys)}{part} are there"
