"""What is known about a video file before its pictures are decoded, and how a file that cannot be used is refused."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError

StrPath = str | os.PathLike[str]
Reason = Literal["missing", "unreadable", "no_video", "truncated", "decoder_timeout", "decoder_crash"]

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_DENIED = {errno.EACCES, errno.EPERM}
_MACHINE = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
    errno.EBUSY, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ENETDOWN, errno.ECONNRESET,
}  # fmt: skip
_BLOCK = 1 << 20
_MUCH = 1 << 28


class VideoError(UniegoError):
    """A video file that cannot give the pictures asked for; the fault lies in the file, not in the machine.

    `reason`: missing (no such file), unreadable (no video container, not permitted, or pictures that do not decode),
    no_video (no video stream), truncated (the file ends before the pictures asked for), decoder_timeout and
    decoder_crash (a decoder process hung or died on it, twice). `path`: the file.
    """

    def __init__(self, reason: Reason, path: StrPath, message: str) -> None:
        self.reason: Reason = reason
        self.path = os.fspath(path)
        super().__init__(reason, self.path, message)  # all three, so that a copy in another process is whole

    def __str__(self) -> str:
        return f"{self.path}: {self.args[2]} ({self.reason})"


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """A video's frames and shape, known without decoding it.

    `times`: float64 [frame_count], seconds at which each frame is shown, the first being 0. `fps`: average rate of
    the stream. `width`, `height`: pixels, upright, i.e. after `rotation` (degrees counter-clockwise that were
    applied: 0, 90, 180 or 270). `has_duration`: whether the stream's header states a duration (mkv does not).
    """

    path: str
    frame_count: int
    times: npt.NDArray[np.float64]
    fps: float
    width: int
    height: int
    rotation: int
    codec: str
    has_duration: bool


def check_file(path: StrPath) -> None:
    """Refuse what is no readable, regular, non-empty file: `VideoError`; an `OSError` of the machine passes."""
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            advice = "a folder of pictures is read through a .frames file, which says how many there are in a second"
            raise VideoError("unreadable", path, f"a folder; {advice} (docs/datasets.md)")
        if not stat.S_ISREG(status.st_mode):
            raise VideoError("unreadable", path, "not a regular file")
        with Path(path).open("rb") as file:
            if not file.read(1):
                raise VideoError("unreadable", path, "the file is empty")
    except OSError as error:
        if error.errno in _MISSING:
            raise VideoError("missing", path, "no such file") from error
        if error.errno in _DENIED:
            raise VideoError("unreadable", path, "no permission to read it") from error
        raise


def refuse(path: StrPath, error: Exception, what: str) -> Exception:
    """The error to raise when a decoding library failed on `path` with `error` while doing `what`.

    Libraries report a damaged file and a failing disk alike, so the file is read through: if that fails, its
    `OSError` is the answer (and passes as one); a file that reads well is itself at fault, a `VideoError`. A damaged
    file may also ask for absurd amounts of memory: it is at fault as long as there is memory to be had.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        if not _memory_left():
            return error
    elif number in _MACHINE and number != errno.EIO:
        return OSError(number, str(error), os.fspath(path))
    try:
        with Path(path).open("rb", buffering=0) as file:
            head = file.read(12)
            while file.read(_BLOCK):
                pass
    except OSError as machine:
        return machine
    text = f"{what}: {error}"
    if what == "opening" and head[4:8] == b"ftyp":
        return VideoError("truncated", path, f"an MP4 file whose index cannot be read; cut short? {text}")
    return VideoError("unreadable", path, text)


def _memory_left() -> bool:
    """Whether this process may still have some memory, more than frames usually need."""
    try:
        mmap.mmap(-1, _MUCH).close()
    except (OSError, MemoryError):
        return False
    return True
