"""A Dask cluster: on this machine, one that runs already, or workers as Slurm jobs.

A task is a few shards. Only receipts travel: workers read videos and write features themselves, so all of them need
the run's folder, the cache and the videos under the same paths.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import torch
from dask.distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

from ...errors import Stopped, UniegoError
from ...pipeline.progress import Meter, count, say, warn
from ...pipeline.signals import StopFlag
from ..extract_options import ExtractOptions
from ..extract_plan import Piece
from .worker import LeaveSignals, Receipt, compute, stop
from .workplace import Job

_PATIENCE = 120.0  # seconds without a scheduler before giving up
_LONELY = 30.0  # seconds without a worker before saying so
_GRACE = 30.0  # seconds that workers have to drop their shard when asked to stop
LOOK = 0.1
"""Seconds between two looks at receipts and the stop flag."""
_TRIES = 3  # of a piece whose worker says that it cannot do it
_MOST = 8  # shards of a task
_OWN_DIRECTIVES = [f"#SBATCH {name}" for name in ("--mem=", "-n 1", "--cpus-per-task=", "-t ")]  # left to --sbatch


def extract_on_cluster(
    job: Job, pieces: Sequence[Piece], options: ExtractOptions, flag: StopFlag, meter: Meter
) -> None:
    """Have the pieces computed by Dask workers.

    Workers may come, go and be killed; a piece that kills its workers again and again is taken apart to find the shard
    that does it. Raises `UniegoError` for such shards after all others are done, for what workers report, and where
    no scheduler answers for two minutes; `Stopped` when asked to stop. What is written stays.
    """
    most = max(1, min(_MOST, sum(len(piece.pending) for piece in pieces) // (8 * (options.workers or 1))))
    left = [part for piece in pieces for part in piece.split(most)]
    poison: list[Piece] = []

    def go(client: Any) -> bool:
        nonlocal left
        left = _Round(client, job, flag, meter, poison).run(left)
        return not left

    keep_connected(options, Path(job.root), flag, go)
    if poison:
        raise UniegoError(_poisoned(job, poison))


def keep_connected(options: ExtractOptions, root: Path, flag: StopFlag, go: Callable[[Any], bool]) -> None:
    """Call `go` with a client of the cluster, and again after its connection broke, until it says that all is done.

    Raises `UniegoError` where no scheduler answers for two minutes, `Stopped` when asked to stop meanwhile.
    """
    with _cluster(options, root) as (target, own):
        seen, done = time.monotonic(), False
        while not done:
            flag.check()
            try:
                with Client(target, timeout=10, set_as_default=False) as client:  # type: ignore[no-untyped-call]
                    _introduce(client, own)
                    done = go(client)
                    seen = time.monotonic()
            except (OSError, TimeoutError) as error:
                if time.monotonic() - seen > _PATIENCE:
                    raise UniegoError(
                        f"no Dask scheduler answers at {target} for {_PATIENCE:.0f} seconds ({error}); what is written "
                        "is kept, the same command continues when it is back"
                    ) from error
            if not done:
                warn("no connection to the Dask scheduler; trying again")
                _pause(flag, 1.0)


class Lonely:
    """Says so when there is no worker for a while."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._since = self._looked = time.monotonic()

    def look(self) -> None:
        """Look at the workers, now and then."""
        now = time.monotonic()
        if now - self._looked < _LONELY / 6:
            return
        self._looked = now
        if self._client.scheduler_info(n_workers=-1)["workers"]:
            self._since = now
        elif now - self._since > _LONELY:
            self._since = now
            warn(f"no Dask worker for {_LONELY:.0f} seconds; waiting (a stop signal ends it)")


def stop_on_workers(client: Any, number: str, waiting: Collection[Any]) -> None:
    """Make the workers drop what they do of a job, and wait until they have, but not for ever."""
    until = time.monotonic() + _GRACE
    with suppress(Exception):  # a scheduler or worker that is gone has nothing to drop
        client.run(stop, number, on_error="ignore")
        while time.monotonic() < until and any(future.status == "pending" for future in waiting):
            if not any(client.processing().values()):
                break
            time.sleep(LOOK)


class _Round:
    """The work as long as one connection to the scheduler lasts."""

    def __init__(self, client: Any, job: Job, flag: StopFlag, meter: Meter, poison: list[Piece]) -> None:
        self._client, self._job, self._flag, self._meter, self._poison = client, job, flag, meter, poison
        self._waiting: dict[Any, Piece] = {}
        self._tries: dict[tuple[int, ...], int] = {}
        self._lost: list[Piece] = []
        self._failed = 0
        self._lonely = Lonely(client)

    def run(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Have them computed; returned are those of which nothing is known, since the connection broke."""
        for piece in pieces:
            self._submit(piece)
        try:
            while self._waiting and self._client.status == "running":
                for future in [future for future in self._waiting if future.status != "pending"]:
                    self._take(future, self._waiting.pop(future))
                self._flag.check()
                self._lonely.look()
                time.sleep(LOOK)
        except (Stopped, UniegoError, KeyboardInterrupt):
            stop_on_workers(self._client, self._job.number, self._waiting)
            raise
        return [*self._lost, *self._waiting.values()]

    def _submit(self, piece: Piece) -> None:
        shards = list(piece.pending)
        key = f"extract-{shards[0]}-{shards[-1]}-{len(self._waiting)}-{time.monotonic_ns():x}"
        self._waiting[self._client.submit(compute, self._job, piece, key=key, pure=False)] = piece

    def _take(self, future: Any, piece: Piece) -> None:
        if future.status == "finished":
            with suppress(OSError, TimeoutError):
                self._enter(future.result(timeout=30), piece)
                return
        elif future.status == "error":
            error = future.exception()
            if not isinstance(error, KilledWorker):
                raise UniegoError(f"shards {_list(piece)}: {type(error).__name__}: {error}") from error
            if len(piece.pending) > 1:
                warn(f"shards {_list(piece)} killed their workers: trying them one by one")
                for part in piece.split(1):
                    self._submit(part)
            else:
                warn(f"shard {_list(piece)} killed its workers again and again: left out")
                self._poison.append(piece)
            return
        self._lost.append(piece)

    def _enter(self, receipt: Receipt, piece: Piece) -> None:
        if receipt.error is None:
            self._failed += receipt.failed
            self._meter.advance(receipt.clips, f"{self._failed} features failed" if self._failed else "")
            return
        tries = self._tries[receipt.shards] = self._tries.get(receipt.shards, 0) + 1
        code, message = receipt.error
        if tries >= _TRIES:
            error = UniegoError(message)
            error.exit_code = code
            raise error
        warn(f"{message}; trying again")
        self._submit(piece)


@contextmanager
def _cluster(options: ExtractOptions, root: Path) -> Iterator[tuple[Any, bool]]:
    """(what a client connects to, whether its workers are ours)."""
    if options.scheduler is not None:
        yield options.scheduler, False
    elif options.slurm_workers is not None:
        with _slurm_cluster(options, root) as cluster:
            cluster.adapt(minimum_jobs=options.slurm_workers, maximum_jobs=options.slurm_workers)
            yield cluster, True
    else:
        workers = options.workers or max(1, torch.cuda.device_count())
        if workers * torch.get_num_threads() > (os.cpu_count() or 1):
            warn(
                f"{count(workers, 'worker')} with {count(torch.get_num_threads(), 'thread')} each on "
                f"{os.cpu_count()} cores: set compute.threads to share them"
            )
        settings = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
        with LocalCluster(**settings) as cluster:  # type: ignore[no-untyped-call]
            yield cluster, True


def _slurm_cluster(options: ExtractOptions, root: Path) -> Any:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise UniegoError("--slurm-workers needs dask-jobqueue: pip install 'uniego[slurm]'")
    from dask_jobqueue.slurm import SLURMCluster

    logs = root / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    return SLURMCluster(
        cores=1,
        processes=1,
        memory=dask.config.get("jobqueue.slurm.memory", None) or "8 GB",
        job_directives_skip=_OWN_DIRECTIVES,
        job_extra_directives=list(options.sbatch),
        worker_extra_args=["--memory-limit", "0"],
        log_directory=str(logs),
    )


def _introduce(client: Any, own: bool) -> None:
    """Say who works and where to watch; workers of ours leave stop signals to this process."""
    if own:
        client.register_plugin(LeaveSignals())
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    bokeh = importlib.util.find_spec("bokeh") is not None
    hint = "" if bokeh else " (its pages need: pip install 'uniego[dashboard]')"
    say(f"dask: {count(len(workers), 'worker')} so far, dashboard at {client.dashboard_link}{hint}")
    wide = [str(worker["name"]) for worker in workers if worker["nthreads"] > 1]
    if wide:
        warn(
            f"{count(len(wide), 'worker')} with several threads ({wide[0]}): one would do, start them with --nthreads 1"
        )


def _poisoned(job: Job, pieces: Sequence[Piece]) -> str:
    """Which shards kill their workers, and which clips are in them."""
    from ...cache import ClipIndex
    from ...pipeline.rundir import Run

    index = ClipIndex.open(Run(Path(job.root), job.config).cache_root)
    lines = []
    for piece in pieces:
        for shard, keys in piece.pending.items():
            ids = [key.clip_id for key in index.keys(shard)]
            named = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
            lines.append(f"  shard {shard} ({', '.join(keys)}): clips {named}")
    return "\n".join(
        [
            f"{count(len(lines), 'shard')} killed every worker that tried, all others are done:",
            *lines,
            "give the workers more memory, or run these teachers with `uniego extract-teachers --engine local` to see "
            "what happens; the same command tries them again",
        ]
    )


def _list(piece: Piece) -> str:
    return ", ".join(map(str, piece.pending))


def _pause(flag: StopFlag, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        flag.check()
        time.sleep(LOOK)
