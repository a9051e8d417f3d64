"""In which order the pieces of an ablation are done: a proxy once, a merge once, a cell when its proxies are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EXIT_FAILURE, Stopped, UniegoError
from ..pipeline.progress import count, duration, say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .ablate_cells import Cell, adopt
from .ablate_work import Outcome, Piece, Workers

_PATIENCE = 2.0  # seconds before a piece that another process is at is tried again


@dataclass
class _Task:
    """A piece that is to be done. `proxy`: the shared folder that it makes, None of a cell's own work."""

    piece: Piece
    cell: Cell
    proxy: Path | None = None
    not_before: float = 0.0


class Schedule:
    """The pieces of the cells that are not done, seed by seed; `tell` is called whenever a cell is done."""

    def __init__(self, run: Run, cells: Sequence[Cell], crew: Workers, tell: Callable[[], object]) -> None:
        self.problems: dict[str, str] = {}
        self._codes: set[int] = set()
        self._crew, self._tell = crew, tell
        self._todo: list[_Task] = []
        self._at_work: dict[Piece, _Task] = {}
        self._open: set[Path] = set()  # proxies that are still to be made
        self._lost: set[Path] = set()  # proxies that cannot be made
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of proxies, and of cells
        self._waited_for: set[str] = set()
        for cell in cells:
            self._add(run, cell)
        self._total = len(self._todo)

    def _add(self, run: Run, cell: Cell) -> None:
        if cell.refused is not None:
            self._fail(cell.title, str(cell.refused), cell.refused.exit_code)
        if cell.refused is not None or cell.results() is not None:
            return
        cell.write()
        cell.failed(None)
        if taken := adopt(run, cell):
            say(f"{cell.title}: takes over what {run.root} has: {', '.join(taken)}")
        for key, folder in cell.proxies.items():
            if key not in cell.finished and folder.path not in self._open:
                self._open.add(folder.path)
                piece = Piece(f"proxy {key}, seed {cell.seed}", cell.run.root, teacher=key)
                self._todo.append(_Task(piece, cell, folder.path))
        self._todo.append(_Task(Piece(cell.title, cell.run.root, model=cell.model), cell))

    def work(self, flag: StopFlag) -> None:
        """Do all of it. Raises `Stopped` when asked to stop, after all that is at work has saved."""
        stopped: Stopped | None = None
        try:
            while self._at_work or (self._todo and stopped is None):
                if stopped is None:
                    stopped = self._asked(flag)
                if stopped is None:
                    self._start()
                else:
                    self._crew.stop()
                for outcome in self._crew.outcomes():
                    stopped = self._take(outcome) or stopped
        finally:
            self._crew.close()
        if stopped is not None:
            raise stopped

    def error(self) -> UniegoError | None:
        """All that went wrong, with the exit code that it has in common."""
        if not self.problems:
            return None
        lines = [f"  {title}: {message}" for title, message in self.problems.items()]
        error = UniegoError("\n".join([f"{count(len(lines), 'piece')} of the ablation failed:", *lines]))
        error.exit_code = self._codes.pop() if len(self._codes) == 1 else EXIT_FAILURE
        return error

    def _asked(self, flag: StopFlag) -> Stopped | None:
        try:
            flag.check()
        except Stopped as error:
            return error
        return None

    def _start(self) -> None:
        """Begin what can begin now."""
        now = time.monotonic()
        for task in list(self._todo):
            if self._lost & {folder.path for folder in task.cell.proxies.values()} and task.proxy is None:
                self._todo.remove(task)
                message = "a proxy that it needs could not be trained"
                self._fail(task.piece.title, message, EXIT_FAILURE, told=True)
                task.cell.failed(message)
                self._tell()
            elif self._crew.free and now >= task.not_before and self._ready(task):
                self._todo.remove(task)
                self._at_work[task.piece] = task
                self._crew.start(task.piece)

    def _ready(self, task: _Task) -> bool:
        """Whether its proxies are there, and nobody of us is at the merge that it would begin with."""
        if task.proxy is not None:
            return True
        if any(folder.path in self._open for folder in task.cell.proxies.values()):
            return False
        merge = task.cell.merge
        others = (other.cell.merge for other in self._at_work.values() if other.proxy is None)
        return merge is None or merge.done or all(other is None or other.path != merge.path for other in others)

    def _take(self, outcome: Outcome) -> Stopped | None:
        """What follows from how a piece ended."""
        task = self._at_work.pop(outcome.piece)
        title = task.piece.title
        if outcome.state == "stopped":
            return Stopped(f"stopped at {title}; run the same command again to continue")
        if outcome.state == "busy":
            task.not_before = time.monotonic() + _PATIENCE
            self._todo.append(task)
            if title not in self._waited_for:
                say(f"{title}: another process is at it, or at its merge; waiting")
                self._waited_for.add(title)
            return None
        if task.proxy is not None:
            self._open.discard(task.proxy)
            if outcome.state == "failed":
                self._lost.add(task.proxy)
        if outcome.state == "failed":
            self._fail(title, outcome.message, outcome.code)
        else:
            self._seconds[task.proxy is not None].append(outcome.seconds)
            self._say_done(title, outcome.seconds)
        if task.proxy is None:
            task.cell.failed(outcome.message if outcome.state == "failed" else None)
            self._tell()
        return None

    def _say_done(self, title: str, seconds: float) -> None:
        left = len(self._todo) + len(self._at_work)
        say(f"[{self._total - left}/{self._total}] {title}: done in {duration(seconds)}{self._outlook()}")

    def _outlook(self) -> str:
        """How long the rest takes, by what was measured; nothing while that is unknown."""
        rest = [task.proxy is not None for task in (*self._todo, *self._at_work.values())]
        if not rest or any(not self._seconds[kind] for kind in rest):
            return ""
        work = sum(sum(self._seconds[kind]) / len(self._seconds[kind]) for kind in rest)
        return f", about {duration(work / (self._crew.free + len(self._at_work)))} left"

    def _fail(self, title: str, message: str, code: int, *, told: bool = False) -> None:
        """`told`: it follows from another failure, whose code counts."""
        self.problems[title] = message
        if not told:
            self._codes.add(code)
        warn(f"{title} failed: {message}")
