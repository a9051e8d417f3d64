"""What long work says: a live bar on a terminal, one plain line every few seconds elsewhere.

Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL = 10.0  # seconds between plain lines
_RELAYED_INTERVAL = 0.2  # seconds between two standings that are relayed


class _Results(Console):
    def on_broken_pipe(self) -> None:
        """Whoever read the results has seen enough."""
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (open until the end)
        raise SystemExit(0)


def results_console() -> Console:
    """The console for results, on standard output."""
    return _Results(highlight=False)


def count(number: int, noun: str) -> str:
    """ "1 clip", "2 clips"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size_text(size: float) -> str:
    """Bytes as "12 bytes", "3.4 kB", "5.6 MB" or "7.8 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= 0.99995 * factor:  # what would be rounded to 1000.0 of the smaller unit is 1.0 of this one
            return f"{size / factor:.1f} {unit}"
    return count(round(size), "byte")


_hushed = False


def hush(quiet: bool) -> None:
    """Say nothing from now on, or speak again: of processes that train together one speaks for all."""
    global _hushed
    _hushed = quiet


def console() -> Console:
    """The console for messages; plain when standard error is not a terminal or NO_COLOR is set."""
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=_hushed)


class Message(NamedTuple):
    """What `say` or `warn` was given."""

    text: str
    warning: bool = False


class Standing(NamedTuple):
    """How far a `Meter` is; `done` counts what is `resumed` too."""

    title: str
    total: int
    unit: str
    resumed: int
    done: int
    note: str


Listener = Callable[[Message | Standing], None]
_listener: Listener | None = None


def relay(listener: Listener | None) -> None:
    """From now on this process prints nothing: another shows what `listener` hands it. None: as it was."""
    global _listener
    _listener = listener


def say(message: str) -> None:
    """Print one message."""
    if _listener is not None:
        _listener(Message(message))
    else:
        console().print(message, markup=False)


def warn(message: str) -> None:
    """Print one warning; work goes on."""
    if _listener is not None:
        _listener(Message(message, warning=True))
    else:
        console().print(f"warning: {message}", markup=False, style="yellow")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_bar(where: Console) -> Progress:
    """Live bars, a line each; tasks have a field "note"."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=where,
        transient=True,
    )


class Meter:
    """Progress of `total` units. `resumed` of them were done before and do not count for the rate."""

    def __init__(self, title: str, total: int, *, unit: str = "clips", resumed: int = 0) -> None:
        self.title, self.total, self.unit, self.resumed = title, total, unit, resumed
        self.done = resumed
        self._console = console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Meter:
        if _listener is not None:
            _listener(self._standing(""))
        elif self._console.is_terminal:
            self._bar = progress_bar(self._console)
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """New units per second so far."""
        return (self.done - self.resumed) / max(time.monotonic() - self._started, 1e-9)

    def advance(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them."""
        self.done += count
        if _listener is not None:
            if self.done >= self.total or time.monotonic() - self._spoke >= _RELAYED_INTERVAL:
                self._spoke = time.monotonic()
                _listener(self._standing(note))
        elif self._bar is not None:
            text = f"{self.rate:.1f} {self.unit}/s {note}".strip()
            self._bar.update(self._task, completed=self.done, note=text)
        elif time.monotonic() - self._spoke >= PLAIN_INTERVAL:
            self._spoke = time.monotonic()
            self._console.print(self._line(note), markup=False)

    def _standing(self, note: str) -> Standing:
        return Standing(self.title, self.total, self.unit, self.resumed, self.done, note)

    def _line(self, note: str) -> str:
        rate = self.rate
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        resumed = f" ({self.resumed} resumed)" if self.resumed else ""
        line = f"{self.title}: {self.done}/{self.total} {self.unit}{resumed}, {rate:.1f}/s, {left} left"
        return f"{line}, {note}" if note else line
