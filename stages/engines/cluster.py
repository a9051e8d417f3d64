"""A Dask cluster: on this machine, one that runs already, or workers as Slurm jobs.

A task is a few shards. Only receipts travel: workers read videos and write features themselves, so all of them need
the run's folder, the cache and the videos under the same paths.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import torch
from dask.distributed import Client, LocalCluster

from ...errors import UniegoError
from ...pipeline.progress import Meter, count, say, warn
from ...pipeline.signals import StopFlag
from ..extract_options import ExtractOptions
from ..extract_plan import Piece
from .round import LOOK, Round
from .worker import LeaveSignals, Receipt, compute
from .workplace import Job

_PATIENCE = 120.0  # seconds without a scheduler before giving up
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


class _Round(Round[Piece, Receipt]):
    """Pieces of an extraction."""

    def __init__(self, client: Any, job: Job, flag: StopFlag, meter: Meter, poison: list[Piece]) -> None:
        super().__init__(client, job.number, flag)
        self._job, self._meter, self._poison = job, meter, poison
        self._tries: dict[tuple[int, ...], int] = {}
        self._failed = 0

    def submit(self, piece: Piece) -> Any:
        shards = list(piece.pending)
        key = f"extract-{shards[0]}-{shards[-1]}-{len(self._waiting)}-{time.monotonic_ns():x}"
        return self._client.submit(compute, self._job, piece, key=key, pure=False)

    def enter(self, piece: Piece, receipt: Receipt) -> None:
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
        self.hand_out(piece)

    def raised(self, piece: Piece, error: Exception) -> None:
        raise UniegoError(f"shards {_list(piece)}: {type(error).__name__}: {error}") from error

    def killed(self, piece: Piece) -> None:
        if len(piece.pending) > 1:
            warn(f"shards {_list(piece)} killed their workers: trying them one by one")
            for part in piece.split(1):
                self.hand_out(part)
        else:
            warn(f"shard {_list(piece)} killed its workers again and again: left out")
            self._poison.append(piece)


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
