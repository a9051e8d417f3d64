"""The pieces of work of an ablation (a proxy, or a cell), carried out here or in processes beside each other."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal, Protocol

import torch

from ..errors import EXIT_FAILURE, BusyError, Stopped, UniegoError
from ..pipeline import files
from ..pipeline.rundir import Run
from ..pipeline.signals import end_with_parent, held_back, ignore_in_child, patient
from .compute import resolve_device
from .distill import distill
from .ego_only import train_ego_only
from .evaluate import evaluate
from .train_proxies import train_proxies

SECONDS = "seconds.json"
_LOOK = 0.5  # seconds between two looks at what the processes do


@dataclass(frozen=True)
class Piece:
    """A proxy of a teacher, or what a cell trains and evaluates: `model`. `run`: a folder of a derived run."""

    title: str
    run: Path
    teacher: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a piece ended; busy: another process is at it. `message` and `code` (for exit) are a failure's."""

    piece: Piece
    state: Literal["done", "failed", "busy", "stopped"]
    seconds: float = 0.0
    message: str = ""
    code: int = EXIT_FAILURE


def carry_out(piece: Piece) -> Outcome:
    """Do a piece of work in this process. The time of a cell, that of a stopped attempt too, is kept in its folder."""
    started = time.monotonic()
    state: Literal["done", "failed", "busy", "stopped"] = "done"
    message, code = "", EXIT_FAILURE
    try:
        _do(piece)
    except Stopped:
        state = "stopped"
    except BusyError:
        state = "busy"
    except (UniegoError, OSError) as error:
        state, message, code = "failed", str(error), getattr(error, "exit_code", EXIT_FAILURE)
    except Exception as error:  # a mistake of ours in one cell keeps the others from nothing
        traceback.print_exception(error)
        state, message = "failed", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if piece.teacher is None and state != "busy":
        path = piece.run / SECONDS
        files.write_json(path, {"seconds": round(seconds + read_seconds(piece.run), 3)})
    return Outcome(piece, state, seconds, message, code)


def read_seconds(folder: Path) -> float:
    """Seconds that a cell's own training and evaluation took, of attempts that were not killed."""
    path = folder / SECONDS
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else 0.0


def _do(piece: Piece) -> None:
    run = Run.open(piece.run)
    with redirect_stdout(sys.stderr):  # standard output is for the table of all
        if piece.teacher is not None:
            if run.proxy_folder(piece.teacher).running():
                raise BusyError(f"another process is working on {piece.title}")
            train_proxies(run, [piece.teacher])
            return
        if piece.model == "ego-only":
            train_ego_only(run, run.config.distill.train)
        elif not piece.model.startswith("proxy:"):
            distill(run)
        evaluate(run, model=piece.model, tasks=("recognition",), quiet=True)


class Workers(Protocol):
    """Who carries pieces out."""

    @property
    def free(self) -> int:
        """How many pieces may be started now."""

    def start(self, piece: Piece) -> None:
        """Begin a piece."""

    def outcomes(self) -> list[Outcome]:
        """What ended within a moment."""

    def stop(self) -> None:
        """Ask all to save and stop; may be said again and again."""

    def close(self) -> None:
        """Let go of everything."""


class Here:
    """One piece after the other, in this process."""

    def __init__(self) -> None:
        self._piece: Piece | None = None

    @property
    def free(self) -> int:
        return 1 if self._piece is None else 0

    def start(self, piece: Piece) -> None:
        self._piece = piece

    def outcomes(self) -> list[Outcome]:
        piece, self._piece = self._piece, None
        if piece is None:
            time.sleep(_LOOK)
            return []
        return [carry_out(piece)]

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Crew:
    """Processes that take one piece after the other; one that dies is replaced, and its piece has failed.

    What they say goes to `logs`/worker-<i>.log. On a machine with several GPUs each has one of them.
    """

    def __init__(self, count: int, run: Run, logs: Path) -> None:
        self._logs, self.count = logs, count
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._at_work: dict[Connection, tuple[BaseProcess, Piece]] = {}
        self._numbers = list(range(count))
        device = resolve_device(run.config.compute)
        self._gpus: list[str] = _gpus() if device.type == "cuda" and device.index is None else []
        cores = len(os.sched_getaffinity(0))
        self.threads = max(1, cores // count) if device.type == "cpu" and run.config.compute.threads is None else None

    @property
    def free(self) -> int:
        return self.count - len(self._at_work)

    def start(self, piece: Piece) -> None:
        pipe, process = self._idle.pop() if self._idle else self._hire()
        pipe.send(piece)
        self._at_work[pipe] = process, piece

    def outcomes(self) -> list[Outcome]:
        if not self._at_work:
            time.sleep(_LOOK)
        return [self._take(pipe) for pipe in wait(list(self._at_work), timeout=_LOOK) if isinstance(pipe, Connection)]

    def stop(self) -> None:
        for process, _ in self._at_work.values():
            process.terminate()

    def close(self) -> None:
        for pipe, process in [*self._idle, *((pipe, process) for pipe, (process, _) in self._at_work.items())]:
            pipe.close()
            while process.is_alive():  # one that is only about to begin a piece hears nothing yet
                process.terminate()
                process.join(_LOOK)

    def _hire(self) -> tuple[Connection, BaseProcess]:
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # begun with the first process, it would let signals through again
        ours, theirs = context.Pipe()
        number = self._numbers.pop(0)
        self._numbers.append(number)
        gpu = self._gpus[number % len(self._gpus)] if self._gpus else None
        log = self._logs / f"worker-{number}.log"
        process = context.Process(target=_work, args=(theirs, log, gpu, self.threads), name=f"worker-{number}")
        with held_back():
            process.start()
        theirs.close()
        return ours, process

    def _take(self, pipe: Connection) -> Outcome:
        process, piece = self._at_work.pop(pipe)
        try:
            outcome: Outcome = pipe.recv()
        except (EOFError, ConnectionResetError):
            pipe.close()
            process.join()
            code = process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log = self._logs / f"{process.name}.log"
            message = f"its process {how}, see {log}; if memory ran out, take fewer --jobs. The same command continues"
            return Outcome(piece, "failed", message=message)
        self._idle.append((pipe, process))
        return outcome


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _work(pipe: Connection, log: Path, gpu: str | None, threads: int | None) -> None:
    """What a process does until its pipe closes. A stop signal ends a piece; between two, the parent decides."""
    end_with_parent()
    patient()
    ignore_in_child()
    with log.open("ab") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while True:
            pipe.send(carry_out(pipe.recv()))


def workers(count: int, run: Run, logs: Path) -> Workers:
    """This process for one piece at a time, a crew for several."""
    if count == 1:
        return Here()
    logs.mkdir(parents=True, exist_ok=True)
    return Crew(count, run, logs)
