"""Decoding ahead in several processes: results in the order of the jobs, within a bound of memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType

from .decode import Decoded, DecodeJob, decode
from .decoder_process import Closed, DecoderProcess, patiently
from .signals import STOP_SIGNALS

RECYCLE = 256
"""Jobs after which a decoder process is replaced: bounds what it may leak, costs about a millisecond a job."""

_MOST_WAITING = 64  # results, however small


class Decoders:
    """Iterate over it for the results (`Decoded`) of `jobs`, in their order; a context manager.

    `workers` processes decode ahead while less than `waiting_bytes` of frames wait to be taken (each may finish the
    job it is at beyond that); 0 decodes in the calling thread. What was taken counts until the next is. A bad file is
    a result; iterating raises `OSError` or `MemoryError` if the machine keeps failing, `UniegoError` if no decoder
    starts. `close` ends everything, also an iteration in another thread; it closes itself at the end of the block.
    """

    def __init__(
        self,
        jobs: Iterable[DecodeJob],
        workers: int,
        *,
        timeout_s: float = 120.0,
        waiting_bytes: float = 2e9,
        recycle: int = RECYCLE,
    ) -> None:
        self._jobs, self._most_bytes = iter(jobs), waiting_bytes
        self._changed = threading.Condition()
        self._done: dict[int, Decoded | BaseException] = {}
        self._taken = self._given = self._bytes = self._held = 0  # jobs; results; bytes that wait; bytes in use
        self._ended, self._closing = False, threading.Event()
        self._processes = [DecoderProcess(timeout_s, recycle) for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._keep, args=(process,), name=f"decoder-{n}", daemon=True)
            for n, process in enumerate(self._processes)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the processes and wait for their threads; whoever iterates gets `Closed`."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        for process in self._processes:
            process.interrupt()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Decoded]:
        return self

    def __next__(self) -> Decoded:
        if not self._processes:
            job = next(self._jobs)
            return patiently(lambda: decode(job), self._closing)
        with self._changed:
            self._bytes -= self._held
            self._held = 0
            self._changed.notify_all()
            while self._given not in self._done:
                if self._closing.is_set():
                    raise Closed
                if self._ended and self._given == self._taken:
                    raise StopIteration
                self._changed.wait()
            result = self._done.pop(self._given)
            self._given += 1
            self._changed.notify_all()
            if isinstance(result, BaseException):
                raise result
            self._held = result.nbytes
            return result

    def _keep(self, process: DecoderProcess) -> None:
        """The life of a thread: jobs through its process. Its blocked signals are inherited by the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGINT})
        try:
            while (task := self._next_job()) is not None:
                number, job = task
                try:
                    self._put(number, process.decode(job))
                except BaseException as error:  # for whoever iterates
                    self._put(number, error)
        finally:
            process.close()

    def _next_job(self) -> tuple[int, DecodeJob] | None:
        """The next job and its number, when there is room for its frames; None at the end."""
        with self._changed:
            while self._bytes >= self._most_bytes or len(self._done) >= _MOST_WAITING:
                if self._closing.is_set():
                    break
                self._changed.wait()
            if self._closing.is_set() or self._ended:
                return None
            number = self._taken
            try:
                job = next(self._jobs)
            except StopIteration:
                self._ended = True
            except BaseException as error:
                self._ended = True
                self._taken += 1
                self._done[number] = error
            else:
                self._taken += 1
                return number, job
            self._changed.notify_all()
            return None

    def _put(self, number: int, result: Decoded | BaseException) -> None:
        with self._changed:
            self._done[number] = result
            self._bytes += result.nbytes if isinstance(result, Decoded) else 0
            self._changed.notify_all()
