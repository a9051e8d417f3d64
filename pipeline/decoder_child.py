"""The inside of a decoder process: answers jobs from its socket until the other side closes it.

It imports no torch (the decord backend does), so that it starts in a fraction of a second. Each message is one
packet of the socket; frames travel as a descriptor of anonymous memory, which has no name and so cannot be left
behind by whoever is killed.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import traceback
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError
from .decode import Decoded, decode
from .signals import ignore_in_child

READY = b"ready"
LARGEST_MESSAGE = 1 << 16
_PR_SET_PDEATHSIG = 1
_MOST_TEXT = 8000


def serve(fd: int, parent: int) -> None:
    """Decode until the socket `fd` closes; dies with its parent process, whatever that died of."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask to be told
        return
    ignore_in_child()
    with socket.socket(fileno=fd) as connection:
        connection.send(READY)
        while message := connection.recv(LARGEST_MESSAGE):
            _answer(connection, message)


def _answer(connection: socket.socket, message: bytes) -> None:
    fds: list[int] = []
    answer: Any
    try:
        decoded = decode(pickle.loads(message))  # noqa: S301  (from our own parent)
        answer = _without_frames(decoded)
        if decoded.frames is not None and decoded.frames.size:
            fds.append(_shared(decoded.frames))
    except Exception as error:
        answer = _plain(error)
    try:
        socket.send_fds(connection, [pickle.dumps(answer)], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _without_frames(decoded: Decoded) -> tuple[Decoded, tuple[int, ...]]:
    frames = decoded.frames
    return replace(decoded, frames=None), () if frames is None else frames.shape


def _shared(frames: npt.NDArray[np.uint8]) -> int:
    """A descriptor of anonymous memory that holds the frames; running out of it is an `OSError`, not a signal."""
    fd = os.memfd_create("frames")
    try:
        rest = np.ascontiguousarray(frames).reshape(-1).data
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _plain(error: Exception) -> Exception:
    """The error as one that survives pickling."""
    if isinstance(error, UniegoError):
        return error
    if isinstance(error, MemoryError):
        return MemoryError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, str(error.strerror), error.filename)
    return RuntimeError("in a decoder process:\n" + "".join(traceback.format_exception(error))[-_MOST_TEXT:])
