"""Tasks of Dask workers for as long as one connection to the scheduler lasts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from distributed.scheduler import KilledWorker

from ...errors import Stopped, UniegoError
from ...pipeline.progress import warn
from ...pipeline.signals import StopFlag
from .worker import stop

LOOK = 0.1
"""Seconds between two looks at results and the stop flag."""
_LONELY = 30.0  # seconds without a worker before saying so
_GRACE = 30.0  # seconds that workers have to drop their task when asked to stop

Item = TypeVar("Item")
Result = TypeVar("Result")


class Round(ABC, Generic[Item, Result]):
    """Has items computed by workers and takes in what comes back. `number` names the job when it is stopped."""

    def __init__(self, client: Any, number: str, flag: StopFlag) -> None:
        self._client, self._number, self._flag = client, number, flag
        self._waiting: dict[Any, Item] = {}
        self._lost: list[Item] = []
        self._since = self._looked = time.monotonic()

    def run(self, items: Sequence[Item]) -> list[Item]:
        """Have them computed; returned are those of which nothing is known, since the connection broke."""
        for item in items:
            self.hand_out(item)
        try:
            while self._waiting and self._client.status == "running":
                for future in [future for future in self._waiting if future.status != "pending"]:
                    self._take(future, self._waiting.pop(future))
                self._flag.check()
                self._look_for_workers()
                time.sleep(LOOK)
        except (Stopped, UniegoError, KeyboardInterrupt):
            _stop_on_workers(self._client, self._number, self._waiting)
            raise
        return [*self._lost, *self._waiting.values()]

    def hand_out(self, item: Item) -> None:
        """Give an item to the workers, for the first time or again."""
        self._waiting[self.submit(item)] = item

    @abstractmethod
    def submit(self, item: Item) -> Any:
        """The future of an item's task."""

    @abstractmethod
    def enter(self, item: Item, result: Result) -> None:
        """Take in what a worker returned."""

    @abstractmethod
    def raised(self, item: Item, error: Exception) -> None:
        """Take in what a task raised."""

    @abstractmethod
    def killed(self, item: Item) -> None:
        """Take in that workers died of an item, as often as the scheduler allows."""

    def _take(self, future: Any, item: Item) -> None:
        if future.status == "finished":
            with suppress(OSError, TimeoutError):
                self.enter(item, future.result(timeout=30))
                return
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                self.killed(item)
            else:
                self.raised(item, error)
            return
        self._lost.append(item)

    def _look_for_workers(self) -> None:
        """Say so when there is no worker for a while."""
        now = time.monotonic()
        if now - self._looked < _LONELY / 6:
            return
        self._looked = now
        if self._client.scheduler_info(n_workers=-1)["workers"]:
            self._since = now
        elif now - self._since > _LONELY:
            self._since = now
            warn(f"no Dask worker for {_LONELY:.0f} seconds; waiting (a stop signal ends it)")


def _stop_on_workers(client: Any, number: str, waiting: Collection[Any]) -> None:
    """Make the workers drop what they do of a job, and wait until they have, but not for ever."""
    until = time.monotonic() + _GRACE
    with suppress(Exception):  # a scheduler or worker that is gone has nothing to drop
        client.run(stop, number, on_error="ignore")
        while time.monotonic() < until and any(future.status == "pending" for future in waiting):
            if not any(client.processing().values()):
                break
            time.sleep(LOOK)
