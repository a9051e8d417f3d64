"""Several processes on this machine, each of which trains one proxy at a time and ends with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import EXIT_FAILURE, Stopped, UniegoError
from ...pipeline.board import Board
from ...pipeline.config import RunConfig
from ...pipeline.progress import Message, Standing, relay, say, warn
from ...pipeline.rundir import Run
from ...pipeline.signals import StopFlag, ToldFlag, ignore_in_child
from ..proxy_training import train_one
from ..view import free_memory
from .crew import Crew, Teller
from .places import Places, fitting


@dataclass(frozen=True)
class ProxyJob:
    """What a process is told of its proxy: `config` with its own device, threads and memory in `compute`."""

    root: str
    config: RunConfig
    key: str
    overwrite: bool


class Need(NamedTuple):
    """The most bytes of its GPU that a training's allocator has held, whole steps included."""

    peak: int


class Failed(NamedTuple):
    """Why a proxy could not be trained."""

    exit_code: int
    message: str


def train_in_processes(
    run: Run, keys: Sequence[str], places: Places, flag: StopFlag, overwrite: bool
) -> dict[str, UniegoError | OSError]:
    """Train the proxies, as many at a time as there are places; {key: error} of those that failed.

    One that fails, or whose process is killed, does not stop the others. Raises `Stopped` when asked to stop, after
    all processes have saved.
    """
    with Board() as board:
        return _Proxies(run, keys, places, board, overwrite).carry_out(flag)


class _Proxies:
    """Who is at work where, who waits, and what has become of them."""

    def __init__(self, run: Run, keys: Sequence[str], places: Places, board: Board, overwrite: bool) -> None:
        self._run, self._waiting, self._places, self._board = run, list(keys), places, board
        self._overwrite = overwrite
        self._room = Counter(places.devices)  # processes that a device takes
        self._at: dict[str, str] = {}  # device of each proxy at work
        self._failures: dict[str, UniegoError | OSError] = {}
        self._crew = Crew(self._hear, self._bury)

    def carry_out(self, flag: StopFlag) -> dict[str, UniegoError | OSError]:
        """See `train_in_processes`."""
        stopped: Stopped | None = None
        say(f"train-proxies: {len(self._waiting)} proxies, {self._room.total()} at a time, on {', '.join(self._room)}")
        try:
            while self._at or (self._waiting and stopped is None):
                try:
                    if stopped is None:
                        flag.check()
                        self._start()
                except Stopped as error:
                    stopped = error
                    self._crew.stop()
                self._crew.listen()
        finally:
            self._crew.close()
        if stopped is not None:
            raise stopped
        return self._failures

    def _start(self) -> None:
        """Start those that wait where there is room, the emptiest device first."""
        while self._waiting:
            taken = Counter(self._at.values())
            device = min(self._room, key=lambda name: taken[name] - self._room[name])
            if taken[device] >= self._room[device]:
                return
            key = self._waiting.pop(0)
            self._at[key] = device
            self._crew.start(key, _work, self._job(key, device))

    def _job(self, key: str, device: str) -> ProxyJob:
        compute, at_once = self._run.config.compute, min(self._room.total(), len(self._waiting) + len(self._at))
        memory = compute.memory_gb or free_memory() / 2 / 1e9
        own = {"device": device, "threads": self._places.threads, "memory_gb": memory / max(at_once, 1)}
        config = self._run.config.model_copy(update={"compute": compute.model_copy(update=own)})
        return ProxyJob(str(self._run.root), config, key, self._overwrite)

    def _hear(self, key: str, said: Message | Standing | Failed | Need) -> None:
        if isinstance(said, Failed):
            error = UniegoError(said.message)
            error.exit_code = said.exit_code
            self._fail(key, error)
        elif isinstance(said, Need):
            self._fill(key, said)
        else:
            self._board.show(key, said)

    def _bury(self, key: str, how: str | None) -> None:
        self._board.remove(key)
        del self._at[key]
        if how is not None and key not in self._failures:
            self._fail(
                key,
                UniegoError(
                    f"the process of proxy {key} {how}; its last checkpoint is kept. If it ran out of memory, take "
                    "fewer --jobs or a smaller proxies.train.micro_batch; the same command continues"
                ),
            )

    def _fail(self, key: str, error: UniegoError) -> None:
        self._failures[key] = error
        warn(f"proxy {key} failed: {error}")

    def _fill(self, key: str, need: Need) -> None:
        """Now that one has shown what it needs, see how many its GPU takes; others of its kind are as large."""
        device = self._at[key]
        if not self._places.fill:
            return
        total = torch.cuda.get_device_properties(device).total_memory
        room = fitting(total, need.peak)
        if room != self._room[device]:
            self._room[device] = room
            say(
                f"train-proxies: a proxy takes {need.peak / 1e9:.1f} GB of {device}, which has {total / 1e9:.0f} GB: "
                f"{room} at a time"
            )


def _work(pipe: Connection, job: ProxyJob) -> None:
    """What a process does: one proxy."""
    ignore_in_child()
    teller = Teller(pipe)
    relay(_Watch(teller, job) if job.config.compute.device.startswith("cuda") else teller)
    try:
        run = Run(Path(job.root), job.config)
        torch.set_num_threads(job.config.compute.threads or 1)
        train_one(run, job.key, ToldFlag(pipe.poll), job.overwrite)
    except Stopped:
        pass
    except UniegoError as error:
        teller(Failed(error.exit_code, str(error)))
    except OSError as error:
        teller(Failed(EXIT_FAILURE, str(error)))


class _Watch:
    """Hands on what is relayed, and after the first steps what the training needs of its GPU."""

    def __init__(self, teller: Teller, job: ProxyJob) -> None:
        self._teller, self._device = teller, torch.device(job.config.compute.device)
        self._told = 0
        torch.cuda.set_device(self._device)

    def __call__(self, said: Message | Standing) -> None:
        self._teller(said)
        if isinstance(said, Standing) and said.done > said.resumed:
            peak = torch.cuda.max_memory_reserved(self._device)
            if peak > self._told:
                self._told = peak
                self._teller(Need(peak))
