"""How long parts of a training take, without making the device wait for the host."""

from __future__ import annotations

import time
from types import TracebackType

import torch


class Stopwatch:
    """Times what is done inside `with`, on a GPU by events in its own queue; `close` reads and begins anew."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._device = device
        self._begin()

    def _begin(self) -> None:
        self._started, self._seconds = time.monotonic(), 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self._at = time.monotonic()
        if self._gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events.append((first, last))
            self._events[-1][0].record()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.monotonic() - self._at

    def close(self) -> tuple[float, float]:
        """Seconds inside, and seconds since the watch began; it waits for the device."""
        if self._gpu:
            torch.cuda.synchronize(self._device)
            self._seconds = sum(first.elapsed_time(last) for first, last in self._events) / 1e3
        result = self._seconds, max(time.monotonic() - self._started, 1e-9)
        self._begin()
        return result
