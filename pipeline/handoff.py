"""A bounded queue between two threads that either side can end; errors of one side reach the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK = 0.5  # seconds between looks while nothing comes


class Ended(Exception):
    """The other side has ended and left no error."""


class Handoff(Generic[T]):
    """At most `most` items wait. One thread puts and one gets; either may end it."""

    def __init__(self, most: int) -> None:
        self._most, self._items = most, deque[T]()
        self._changed = threading.Condition()
        self._finished: BaseException | None = None  # by the side that puts
        self._left: BaseException | None = None  # by the side that gets

    def put(self, item: T) -> None:
        """Wait for room and put an item. Raises what the other side left with, if it did."""
        with self._changed:
            while len(self._items) >= self._most and self._left is None:
                self._changed.wait()
            if self._left is not None:
                raise self._left
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T:
        """Wait for an item, at most `timeout` seconds (`TimeoutError`). After the last, raises what `finish` gave."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._finished is not None, timeout):
                raise TimeoutError
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            assert self._finished is not None
            raise self._finished

    def finish(self, error: BaseException | None = None) -> None:
        """No more items come: what is there can still be got, then the error or `Ended`."""
        with self._changed:
            self._finished = self._finished or error or Ended()
            self._changed.notify_all()

    def leave(self, error: BaseException | None = None) -> None:
        """No more items are wanted: `put` raises the error or `Ended`."""
        with self._changed:
            self._left = self._left or error or Ended()
            self._items.clear()
            self._changed.notify_all()


def ahead(
    items: Iterator[T], most: int, check: Callable[[], None], close: Callable[[], None]
) -> Generator[T, None, None]:
    """The items, made by a thread that is at most `most` of them ahead; what making one raises, is raised here.

    `check` is called while nothing comes, and may raise. `close` makes the thread's wait for an item end; it is called
    at the end, whatever that is.
    """
    ready = Handoff[T](most)

    def make() -> None:
        try:
            for item in items:
                ready.put(item)
            ready.finish()
        except Ended:
            pass  # nobody wants more
        except BaseException as error:  # for whoever waits
            ready.finish(error)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                yield ready.get(_LOOK)
            except TimeoutError:
                check()
            except Ended:
                return
    finally:
        ready.leave()
        close()
        thread.join()
