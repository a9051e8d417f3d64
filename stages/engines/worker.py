"""What runs inside a Dask worker: networks and stores are set up once per process, each task writes whole shards.

A task may run twice, or again after its worker was killed: what is written already is left as it is.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any, NamedTuple

import torch
from dask.distributed import Worker, WorkerPlugin, get_worker

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.config import RunConfig
from ...pipeline.progress import Meter
from ...pipeline.signals import ToldFlag, ignore_in_child
from ..extract_plan import Piece
from .workplace import Job, Workplace

one_at_a_time = threading.Lock()
_open: dict[str, Workplace] = {}  # the latest job's
_stopped: set[str] = set()


class Receipt(NamedTuple):
    """What goes through the scheduler: which shards are written, clips in them, failed features, seconds, by whom.

    `error`: exit code and message where the work could not be done.
    """

    shards: tuple[int, ...]
    clips: int
    failed: int
    seconds: float
    worker: str
    error: tuple[int, str] | None = None


class _Silent(Meter):
    """The client counts receipts."""

    def advance(self, count: int, note: str = "") -> None:
        pass


class LeaveSignals(WorkerPlugin):
    """Workers that a client started leave stop signals to it: a scheduler signals the whole process group."""

    name = "uniego-leave-signals"

    def setup(self, worker: Worker) -> None:
        ignore_in_child()


def compute(job: Job, piece: Piece) -> Receipt:
    """Compute and write what of a piece is not written yet. Raises `Stopped` after `stop`."""
    started, worker = time.monotonic(), get_worker()
    where = f"{worker.name} ({worker.address})"
    flag = ToldFlag(lambda: told(job.number))
    clips = failed = 0
    error: tuple[int, str] | None = None
    with one_at_a_time:
        flag.check()
        try:
            place = _workplace(job, worker)
            place.extract(place.unwritten(piece), flag, _Silent("", 0))
            clips, failed = place.count(piece)
        except Stopped:
            raise
        except UniegoError as problem:
            error = problem.exit_code, f"worker {where}: {problem}"
        except OSError as problem:
            error = EXIT_FAILURE, f"worker {where}: {problem}"
    return Receipt(tuple(piece.pending), clips, failed, time.monotonic() - started, where, error)


def told(number: str) -> bool:
    """Whether this worker was told to stop a job."""
    return number in _stopped


def stop(number: str) -> None:
    """Make this worker's tasks of a job stop; run on every worker by the client."""
    _stopped.add(number)


def _workplace(job: Job, worker: Any) -> Workplace:
    if job.number not in _open:
        _open.clear()
        task = "dask-" + re.sub(r"[^A-Za-z0-9_-]+", "-", str(worker.name)).strip("-")
        _open[job.number] = Workplace.open(job, task, device_of(job.config, worker))
    return _open[job.number]


def device_of(config: RunConfig, worker: Any) -> str | None:
    """A GPU of its own for each worker of a cluster on one machine, whose names are numbers."""
    gpus = torch.cuda.device_count()
    if config.compute.device == "auto" and gpus > 1 and isinstance(worker.name, int):
        return f"cuda:{worker.name % gpus}"
    return None
