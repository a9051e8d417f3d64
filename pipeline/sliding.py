"""A window that slides over an untrimmed video: how many steps it makes, and which frames a network sees at each.

Step i stands for the time from i * step to (i + 1) * step seconds; its window lies around the middle of that. The
network's T frames are those shown at the centres of T equal parts of the window; before the begin and after the end of
the video its first and last frame are repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .video import VideoInfo


@dataclass(frozen=True)
class Sliding:
    """A window of `window_s` seconds that moves by `step_s` seconds, or by `every` frames of the video.

    Raises `UsageError` unless one of the two is given, and all is positive.
    """

    window_s: float
    step_s: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        step = self.step_s if self.every is None else self.every
        if (self.step_s is None) == (self.every is None):
            raise UsageError("a sliding window moves by step_s seconds or by every so many frames: give one of them")
        if step is None or not (0 < self.window_s < math.inf and 0 < step < math.inf):
            raise UsageError(f"window ({self.window_s} s) and step ({step}) must be positive numbers")

    def seconds(self, fps: float) -> float:
        """Length of a step."""
        return self.step_s if self.step_s is not None else (self.every or 1) / fps

    def steps(self, last_s: float, fps: float) -> int:
        """How many features a video has, whose last frame is shown at `last_s`: its length in steps, rounded up."""
        return max(1, math.ceil(round((last_s + 1 / fps) / self.seconds(fps), 6)))

    def picks(self, info: VideoInfo, frames: int, begin: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Frames that the windows begin..stop look at, int64 [steps, frames]; `stop` None: to the last."""
        stop = self.steps(float(info.times[-1]), info.fps) if stop is None else stop
        middles = (np.arange(begin, stop) + 0.5) * self.seconds(info.fps)
        parts = ((np.arange(frames) + 0.5) / frames - 0.5) * self.window_s
        shown = np.searchsorted(info.times, middles[:, None] + parts + 1e-6, side="right") - 1
        return np.clip(shown, 0, info.frame_count - 1).astype(np.int64)


@dataclass(frozen=True)
class Windows:
    """The windows begin..stop of a whole video, a `decode.Look`; frames of the windows from `known` on are there."""

    sliding: Sliding
    frames: int
    begin: int
    stop: int
    known: int

    def rows(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """The frames of each window, int64 [windows, frames]."""
        return self.sliding.picks(info, self.frames, self.begin, self.stop)

    def held(self, info: VideoInfo, first: int, end: int) -> npt.NDArray[np.int64]:
        """Those of the stretch before."""
        return self.sliding.picks(info, self.frames, self.known, self.begin).reshape(-1)
