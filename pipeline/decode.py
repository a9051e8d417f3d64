"""One piece of decoding: the frames of one clip of one view that several readers want, as one job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError
from .sampling import Views, spread_indices
from .video import VideoError, VideoInfo, open_video, segment


class Look(Protocol):
    """How a network looks at a segment. Picklable, and free of torch: decoder processes import it."""

    def rows(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """Frames of the video that each view sees, of its segment first..end: int64 [V, T]."""

    def held(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """Those of them that are not to be decoded, since an earlier job brought them."""


@dataclass(frozen=True)
class ClipLook:
    """A segment looked at once, from each of the `views`."""

    views: Views

    def rows(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """See `Look`."""
        return self.views.picks(end - first, info.fps, info.has_duration) + first

    def held(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """Nothing."""
        return np.empty(0, np.int64)


@dataclass(frozen=True)
class DecodeJob:
    """Decode a segment of a video, seconds as for `segment`, at the frames that all readers together want.

    `counts`: numbers of frames wanted, each spread over the segment (`spread_indices`). `look`: the frames that it
    names, instead. None at all: only what the video says about itself.
    """

    path: str
    start_s: float | None
    end_s: float | None
    counts: tuple[int, ...]
    backend: str = "pyav"
    look: Look | None = None

    @property
    def wants_frames(self) -> bool:
        """Whether there is anything to decode."""
        return bool(self.counts) or self.look is not None


class Shape(NamedTuple):
    """Frames per second, height and width in pixels (upright) of a video that could be opened."""

    fps: float
    height: int
    width: int


@dataclass
class Decoded:
    """What a job gave: `frames` uint8 [U, H, W, 3] of the file's own size, or `error`.

    `shape`: None if the video could not be opened. `length`: frames of the segment. `numbers`: int64 [U], which of
    them the frames are, ascending. `rows`: of a look, the frames of each of its views, int64 [V, T], by the same
    numbers. `last_s`: when the video's last frame is shown, seconds. `nbytes`: memory that the frames take.
    """

    shape: Shape | None = None
    length: int = 0
    numbers: npt.NDArray[np.int64] | None = None
    frames: npt.NDArray[np.uint8] | None = None
    error: VideoError | None = None
    rows: npt.NDArray[np.int64] | None = None
    last_s: float = 0.0

    @property
    def nbytes(self) -> int:
        return 0 if self.frames is None else self.frames.nbytes

    def places(self, count: int) -> npt.NDArray[np.int64]:
        """Where in `frames` the `count` frames lie that are spread over the segment: int64 [count]."""
        assert self.numbers is not None
        return np.searchsorted(self.numbers, spread_indices(self.length, count))


def decode(job: DecodeJob) -> Decoded:
    """Carry a job out. A `VideoError` is part of the result, and so is what nobody foresaw of a damaged file.

    Raises `UsageError` as `open_video` and `segment` do; `OSError` and `MemoryError` if the machine fails.
    """
    shape = None
    try:
        with open_video(job.path, job.backend) as video:
            info = video.info
            shape, last = Shape(info.fps, info.height, info.width), float(info.times[-1])
            if not job.wants_frames:
                return Decoded(shape, last_s=last)
            first, end = segment(info, job.start_s, job.end_s)
            rows = None if job.look is None else job.look.rows(info, first, end)
            if job.look is None or rows is None:
                numbers = union(end - first, job.counts)
            else:
                rows = rows - first
                numbers = np.setdiff1d(rows, job.look.held(info, first, end) - first)
            return Decoded(shape, end - first, numbers, video.frames(numbers + first), rows=rows, last_s=last)
    except VideoError as error:
        return Decoded(shape, error=error)
    except (UniegoError, OSError, MemoryError):
        raise
    except Exception as error:
        return Decoded(shape, error=VideoError("unreadable", job.path, f"{type(error).__name__}: {error}"))


def union(length: int, counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Frames that all counts together want of a segment of `length` frames: int64 [U], ascending."""
    return np.unique(np.concatenate([spread_indices(length, count) for count in counts]))
