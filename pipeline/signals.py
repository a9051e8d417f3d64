"""The stop flag: SIGTERM, SIGUSR1 and SIGUSR2 ask a stage to save and end with exit code 75.

The main process only sets a flag, which every loop polls between two units of work; child processes ignore
the signals (a scheduler signals the whole process group) and end when the main process tells them to.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType, TracebackType
from typing import Any

from ..errors import EXIT_STOPPED, Stopped
from .launch import place

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


_patience = False


def patient() -> None:
    """From now on a second stop signal changes nothing in this process: its parent, which sent one, may send more."""
    global _patience
    _patience = True


class StopFlag:
    """Context manager that turns stop signals into a flag. A second signal ends the process at once.

    Inside another one, what was asked of the inner is asked of the outer, too. Under torchrun a second signal is
    ignored: it sends on what the scheduler has sent to every process already, and kills by itself what does not end in
    time.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopFlag:
        for number in STOP_SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: whoever owns it decides about signals
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ending = self.requested is not None and place().world > 1  # torchrun signals once more when a process ends
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ending else handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopFlag) and self.requested is not None:
                outer.requested = self.requested
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and not _patience:
            if place().world > 1:
                return
            os._exit(EXIT_STOPPED)
        self.requested = signal.Signals(number).name

    def asked(self) -> bool:
        """Whether a stop was asked for: what `check` will raise for."""
        return self.requested is not None

    def check(self) -> None:
        """Raise `Stopped` if a stop was asked for. Call it where everything finished so far is saved."""
        if self.requested is not None:
            raise Stopped(f"stopped on {self.requested}; run the same command again to continue")


class ToldFlag(StopFlag):
    """The flag of a worker process, which leaves signals to the process that started it and is told by it."""

    def __init__(self, told: Callable[[], bool]) -> None:
        super().__init__()
        self._told = told

    def __enter__(self) -> ToldFlag:
        return self

    def asked(self) -> bool:
        """Whether the worker was told to stop."""
        return self._told()

    def check(self) -> None:
        """Raise `Stopped` if the worker was told to stop."""
        if self._told():
            raise Stopped("told to stop")


@contextmanager
def held_back() -> Iterator[None]:
    """Stop signals wait while the block starts children: these begin with them blocked, until `ignore_in_child`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_in_child() -> None:
    """Make this child process leave stop signals and Ctrl-C to its parent."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent() -> None:
    """End this child process when its parent is gone, however that died: nobody would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), name="end-with-parent", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(EXIT_STOPPED)
