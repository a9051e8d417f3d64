"""Processes on this machine, and the pipe to each: they leave stop signals to this process, which tells them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from ...pipeline.signals import held_back

_LOOK = 0.2  # seconds between two looks at those that say nothing

Hear = Callable[[str, Any], None]  # (name of a process, what it says)
Bury = Callable[[str, str | None], None]  # (name of a process, how it died; None: it ended in order)


class Crew:
    """A process whose pipe closes stops, so none outlives this one for long.

    `hear` gets what they say, `bury` is called once for each that has ended, after all it said.
    """

    def __init__(self, hear: Hear, bury: Bury) -> None:
        self._hear, self._bury = hear, bury
        self._at_work: dict[Connection, BaseProcess] = {}
        self._told = False

    def start(self, name: str, work: Callable[..., None], *given: Any) -> None:
        """Start `work(pipe, *given)` in a process; it ends by itself. Anything that comes through its end of the pipe,
        the pipe's end included, means stop; it must call `signals.ignore_in_child` first."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # begun with the first process, it would let signals through again
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, *given), name=name)
        with held_back():
            process.start()
        theirs.close()
        self._at_work[ours] = process

    def listen(self) -> bool:
        """Take in what the processes say, for a moment; False when all have ended."""
        ready = wait(list(self._at_work), timeout=_LOOK)
        for pipe, process in list(self._at_work.items()):
            if pipe in ready:
                self._take(pipe)
            elif not process.is_alive() and not pipe.poll():  # a child of its own may still hold its pipe
                self._end(pipe)
        return bool(self._at_work)

    def stop(self) -> None:
        """Tell all to stop, once."""
        if not self._told:
            self._told = True
            for pipe in self._at_work:
                tell(pipe, "stop")

    def close(self) -> None:
        """Let go of all that are left, which makes them stop, and wait for them."""
        for pipe, process in self._at_work.items():
            pipe.close()
            process.join()
        self._at_work.clear()

    def _take(self, pipe: Connection) -> None:
        try:
            said = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._end(pipe)
        else:
            self._hear(self._at_work[pipe].name, said)

    def _end(self, pipe: Connection) -> None:
        process = self._at_work.pop(pipe)
        pipe.close()
        process.join()
        self._bury(process.name, death(process.exitcode or 0))


def death(code: int) -> str | None:
    """How a process ended, in words, by its exit code; None for 0."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else None


class Teller:
    """The end of the pipe in the process; for several threads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def __call__(self, message: object) -> None:
        with self._lock:
            tell(self._pipe, message)


def tell(pipe: Connection, message: object) -> None:
    """Say it, if anybody listens."""
    with suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(message)
