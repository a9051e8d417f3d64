"""A decoder process seen from outside: started when needed, given jobs, watched, replaced.

Decoders hang, crash and leak. One that gives no answer in time is killed, one that died is started again, and one
that did its share of jobs is replaced. The job is tried once more; a second time it is the file's fault.
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import IO, TypeVar

import numpy as np

from ..errors import UniegoError
from . import files
from .decode import Decoded, DecodeJob
from .decoder_child import LARGEST_MESSAGE, READY
from .video_info import Reason, VideoError

_log = logging.getLogger(__name__)

T = TypeVar("T")
_START_S = 120.0  # a loaded machine may take long to start Python
_STARTS = 3
_BYTES_A_SECOND = 1e6


class _Lost(Exception):
    """The process hung or died over a job."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason: Reason = reason
        super().__init__(message)


class Closed(Exception):
    """The decoder was told to end."""


def patiently(act: Callable[[], T], closing: threading.Event) -> T:
    """Do it; errors of the machine (`OSError`, `MemoryError`) are tried again after pauses, then raised."""
    for pause in files.PAUSES:
        try:
            return act()
        except (OSError, MemoryError) as error:
            _log.warning("decoding: %s: trying again in %.1f s", error, pause)
            if closing.wait(pause * random.SystemRandom().uniform(1.0, 1.5)):
                raise Closed from error
    return act()


class DecoderProcess:
    """One process at a time. To be used, from `decode` to `close`, by one thread, which outlives the process.

    `timeout_s`: seconds that a job may take, plus one per megabyte of its file. `recycle`: jobs after which the
    process is replaced.
    """

    def __init__(self, timeout_s: float, recycle: int) -> None:
        self._timeout_s, self._recycle, self._jobs = timeout_s, recycle, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closing = threading.Event()

    def decode(self, job: DecodeJob) -> Decoded:
        """The job's result, its frames in memory that is freed with them.

        Raises `OSError` or `MemoryError` if the machine keeps failing, `UniegoError` if no decoder starts, and
        `Closed` after `interrupt`.
        """
        return patiently(lambda: self._decode(job), self._closing)

    def interrupt(self) -> None:
        """Make `decode` end with `Closed`, now and from now on; from any thread."""
        self._closing.set()
        if (connection := self._socket) is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk cannot die yet
                self._process.wait(5)
            self._process = None

    def _decode(self, job: DecodeJob) -> Decoded:
        try:
            return self._ask(job)
        except _Lost as lost:
            _log.warning("%s: %s; trying again", job.path, lost)
        try:
            return self._ask(job)
        except _Lost as lost:
            error = VideoError(lost.reason, job.path, f"twice, {lost}")
        shape = None
        if job.wants_frames:  # who wants only this would have got it
            with suppress(_Lost):
                shape = self._ask(replace(job, counts=(), look=None)).shape
        return Decoded(shape, error=error)

    def _ask(self, job: DecodeJob) -> Decoded:
        connection = self._socket or self._started()
        limit = self._timeout_s + _size(job.path) / _BYTES_A_SECOND
        try:
            connection.settimeout(limit)
            connection.send(pickle.dumps(job))
            message, fds, _, _ = socket.recv_fds(connection, LARGEST_MESSAGE, 1)
        except TimeoutError:
            self.close()
            raise _Lost("decoder_timeout", f"the decoder gave no answer in {limit:.0f} s") from None
        except ConnectionError:
            message, fds = b"", []
        if not message:
            died = self._died()
            if self._closing.is_set():
                raise Closed
            raise _Lost("decoder_crash", f"the decoder process died ({died})")
        self._jobs += 1
        if self._jobs >= self._recycle:
            self.close()
        answer = pickle.loads(message)  # noqa: S301  (from our own child)
        if isinstance(answer, Exception):
            raise answer
        decoded: Decoded = answer[0]
        shape: tuple[int, ...] = answer[1]
        if fds:
            return replace(decoded, frames=_mapped(fds[0], shape))
        return replace(decoded, frames=np.empty(shape, np.uint8)) if shape else decoded  # frames, but none of them

    def _started(self) -> socket.socket:
        for _ in range(_STARTS):
            with tempfile.TemporaryFile() as errors:
                connection = self._start(errors)
                try:
                    connection.settimeout(_START_S)
                    ready = connection.recv(LARGEST_MESSAGE) == READY
                except OSError:
                    ready = False
                if self._closing.is_set():
                    raise Closed
                if ready:
                    return connection
                died = self._died()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
        raise UniegoError(f"no decoder process could be started ({died}): {' / '.join(said[-3:]) or 'it said nothing'}")

    def _start(self, errors: IO[bytes]) -> socket.socket:
        """Start Python with this process's search path; `-m` would search the working directory first.

        Stop signals stay blocked in the child from its first instruction on: a scheduler sends them to all.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__package__}.decoder_child import serve; serve({theirs.fileno()}, {os.getpid()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket, self._jobs = ours, 0
        return ours

    def _died(self) -> str:
        """Clear away what is left of the process; what it died of."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        self.close()
        code = process.returncode if process is not None else None
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


def _mapped(fd: int, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The memory behind a descriptor as an array; it is freed when nothing refers to the array any more."""
    try:
        memory = mmap.mmap(fd, int(np.prod(shape)), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(fd)
    return np.frombuffer(memory, np.uint8).reshape(shape)
