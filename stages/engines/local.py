"""Several processes on this machine: each has its share of the shards from the start, and tells what it has done."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.config import ComputeConfig
from ...pipeline.progress import Meter
from ...pipeline.signals import StopFlag, ToldFlag, held_back, ignore_in_child
from ..extract_plan import Piece
from .workplace import Job, Workplace

_LOOK = 0.2  # seconds between two looks at the stop flag


def devices(config: ComputeConfig, here: torch.device, workers: int | None) -> list[str]:
    """The device of each process: one process per GPU when the device is left to us, or `workers` of them."""
    gpus = torch.cuda.device_count() if here.type == "cuda" else 0
    if config.device == "auto" and gpus > 1:
        return [f"cuda:{number % gpus}" for number in range(workers or gpus)]
    return [str(here)] * (workers or 1)


def extract_in_processes(
    job: Job, pieces: Sequence[Piece], places: Sequence[str], flag: StopFlag, meter: Meter
) -> None:
    """One process per entry of `places`, which names its device; `meter` counts the shards of all.

    Raises `Stopped` when asked to stop, after all processes have dropped or finished their shard; `UniegoError` for
    what went wrong in one of them, after the others have stopped.
    """
    dealt = [piece.deal(len(places)) for piece in pieces]
    hands = [[piece[number] for piece in dealt if piece[number].pending] for number in range(len(places))]
    crew = _Crew(meter)
    try:
        for number, (place, hand) in enumerate(zip(places, hands, strict=True)):
            if hand:
                crew.start(f"local-{number}", job, place, hand)
        stopped: Stopped | None = None
        while crew.listen():
            try:
                if stopped is None:
                    flag.check()
            except Stopped as error:
                stopped = error
            if stopped is not None or crew.error is not None:
                crew.stop()
    finally:
        crew.close()
    if crew.error is not None:
        raise crew.error
    if stopped is not None:
        raise stopped


class _Crew:
    """The processes, and the pipe to each. A process whose pipe closes stops, so none outlives this one for long."""

    def __init__(self, meter: Meter) -> None:
        self.error: UniegoError | None = None
        self._meter = meter
        self._at_work: dict[Connection, BaseProcess] = {}
        self._told = False

    def start(self, task: str, job: Job, device: str, pieces: Sequence[Piece]) -> None:
        """Start a process; it ends by itself."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # begun with the first process, it would let signals through again
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, task, job, device, list(pieces)), name=task)
        with held_back():
            process.start()
        theirs.close()
        self._at_work[ours] = process

    def listen(self) -> bool:
        """Take in what the processes say, for a moment; False when all have ended."""
        for ready in wait(list(self._at_work), timeout=_LOOK):
            assert isinstance(ready, Connection)
            try:
                self._take(ready.recv())
            except (EOFError, ConnectionResetError):
                self._bury(ready)
        return bool(self._at_work)

    def stop(self) -> None:
        """Tell all to stop, once."""
        if not self._told:
            self._told = True
            for pipe in self._at_work:
                _tell(pipe, "stop")

    def close(self) -> None:
        """Let go of all that are left, which makes them stop, and wait for them."""
        for pipe, process in self._at_work.items():
            pipe.close()
            process.join()
        self._at_work.clear()

    def _take(self, message: tuple[str, object, object]) -> None:
        kind, first, second = message
        if kind == "advance":
            assert isinstance(first, int)
            self._meter.advance(first, str(second))
        elif self.error is None:
            assert isinstance(first, int)
            self.error = UniegoError(str(second))
            self.error.exit_code = first

    def _bury(self, pipe: Connection) -> None:
        process = self._at_work.pop(pipe)
        pipe.close()
        process.join()
        code = process.exitcode or 0
        if code and self.error is None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self.error = UniegoError(
                f"the extraction process {process.name} {how}; what it had finished is kept. If it ran out of memory, "
                "take fewer --workers or a smaller extract.batch_clips; the same command continues"
            )


class _Told(Meter):
    """The meter of a worker process: what is done is told to the process that shows it."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__("", 0)
        self._pipe, self._lock = pipe, threading.Lock()

    def advance(self, count: int, note: str = "") -> None:
        with self._lock:
            _tell(self._pipe, ("advance", count, note))


def _tell(pipe: Connection, message: object) -> None:
    """Say it, if anybody listens."""
    with suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(message)


def _work(pipe: Connection, task: str, job: Job, device: str, pieces: Sequence[Piece]) -> None:
    """What a process does: anything that comes through its pipe, the pipe's end included, means stop."""
    ignore_in_child()
    flag = ToldFlag(pipe.poll)
    try:
        place = Workplace.open(job, task, device)
        for piece in pieces:
            flag.check()
            place.extract(piece, flag, _Told(pipe))
    except Stopped:
        pass
    except UniegoError as error:
        _tell(pipe, ("error", error.exit_code, f"{task}: {error}"))
    except OSError as error:
        _tell(pipe, ("error", EXIT_FAILURE, f"{task}: {error}"))
