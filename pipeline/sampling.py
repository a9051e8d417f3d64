"""Which frames of a clip a network sees.

Three rules, all returning frame numbers inside the clip, in order; a clip with fewer frames than picks repeats some:

- `window`: the rule of the released UNIEGO code (arXiv 2606.20559), for parity. A window of `count * rate` frames of
  a 30 fps video (8.53 s for 8 x 32) is laid on the clip; a shorter clip repeats its last frame.
- `fit`: the picks are spread evenly over the window or the clip, whichever is shorter.
- `spread`: the centres of equal parts of the whole clip, for teachers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Indices = npt.NDArray[np.int64]

WINDOW_FPS = 30
"""Frames per second in which `rate` is counted."""

_TIME_BASE_SLACK = 1e-3
"""The released decoder truncates the start to the stream's time base before it takes the first frame at or after
it: a start this little past a frame, in frames, still counts as that frame."""


def window_length(fps: float, count: int = 8, rate: int = 32) -> float:
    """Length of the window in source frames (not rounded): `count * rate * fps / 30`."""
    return count * rate * fps / WINDOW_FPS


def window_start(num_frames: int, fps: float, fraction: float, count: int = 8, rate: int = 32) -> float:
    """Start of the window in source frames; `fraction` in [0, 1] of the room that the window leaves in the clip.

    Training draws the fraction uniformly; a test view takes `test_fraction`. 0 for a clip shorter than the window.
    """
    _check(num_frames, fps, count, rate)
    _check_fraction("fraction", fraction)
    return fraction * max(num_frames - window_length(fps, count, rate), 0.0)


def window_indices(
    num_frames: int, fps: float, start: float, count: int = 8, rate: int = 32, has_duration: bool = True
) -> Indices:
    """Picks of the `window` rule, int64 [count], each in 0..num_frames-1.

    `start`: in source frames, from `window_start`. `has_duration`: whether the stream's header states a duration;
    the released decoder reads streams without one (mkv) whole and rounds their picks differently.
    Raises `UsageError` for arguments out of range.
    """
    _check(num_frames, fps, count, rate)
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"start must be a number of frames >= 0, not {start}")
    steps = np.linspace(0, max(window_length(fps, count, rate) - 1, 0.0), count)  # a window may be under a frame
    if has_duration:
        picks = math.ceil(start - _TIME_BASE_SLACK) + np.trunc(steps)
    else:
        picks = np.trunc(start + steps)
    return _inside(picks, num_frames)


def test_fraction(view: int, views: int) -> float:
    """Where the `window` rule puts test view `view` of `views`: `view / views`, as the released code does."""
    _check_view(view, views)
    return view / views


def fit_indices(
    num_frames: int, fps: float, *, count: int = 8, rate: int = 32, start: float = 0.5, phase: float = 0.5
) -> Indices:
    """Picks of the `fit` rule, int64 [count], each in 0..num_frames-1: one pick in each of `count` equal parts.

    The parts divide a span of min(clip, window) frames. `start` in [0, 1]: where the span lies in the clip.
    `phase` in [0, 1]: where in its part each pick lies. Training draws both uniformly; one test view is centred
    (0.5 and 0.5); several test views take `fit_fraction` as start. Raises `UsageError` for arguments out of range.
    """
    _check(num_frames, fps, count, rate)
    _check_fraction("start", start)
    _check_fraction("phase", phase)
    span = min(float(num_frames), window_length(fps, count, rate))
    offset = start * (num_frames - span)
    return _inside(np.floor(offset + (np.arange(count) + phase) * span / count), num_frames)


def fit_fraction(view: int, views: int) -> float:
    """`start` of test view `view` of `views` under the `fit` rule: `view / (views - 1)`, and 0.5 for a single view.

    The first view begins with the clip and the last ends with it, so that together they see the whole clip whenever
    it is no longer than `views` windows.
    """
    _check_view(view, views)
    return 0.5 if views == 1 else view / (views - 1)


@dataclass(frozen=True)
class Views:
    """How a network looks at a clip: `count` frames by the rule `policy` (window or fit) at every place.

    `places`: (start, phase) of each view, fractions in [0, 1]; the `window` rule knows no phase.
    """

    policy: str
    count: int
    rate: int
    places: tuple[tuple[float, float], ...]

    def picks(self, num_frames: int, fps: float, has_duration: bool) -> Indices:
        """The frames of each view, int64 [views, count], each in 0..num_frames-1."""
        return np.stack([self._picks(num_frames, fps, has_duration, *place) for place in self.places])

    def _picks(self, num_frames: int, fps: float, has_duration: bool, start: float, phase: float) -> Indices:
        if self.policy == "window":
            begin = window_start(num_frames, fps, start, count=self.count, rate=self.rate)
            return window_indices(num_frames, fps, begin, self.count, self.rate, has_duration)
        return fit_indices(num_frames, fps, count=self.count, rate=self.rate, start=start, phase=phase)


def spread_indices(num_frames: int, count: int) -> Indices:
    """Centres of `count` equal parts of the clip, int64 [count]: floor((i + 0.5) * num_frames / count)."""
    _check(num_frames, 1.0, count, 1)
    return ((2 * np.arange(count, dtype=np.int64) + 1) * num_frames) // (2 * count)


def thinned(num_frames: int, fps: float, most: float | None) -> Indices:
    """Frames of a clip at no more than `most` frames per second, int64 [n], in order: all of them when None.

    Centres of equal parts of the clip, so that no frame is farther than half a part (fps / most / 2) from one of them.
    """
    _check(num_frames, fps, 1, 1)
    if most is None or most >= fps:
        return np.arange(num_frames, dtype=np.int64)
    return spread_indices(num_frames, math.ceil(num_frames * most / fps))


def _inside(picks: npt.NDArray[np.float64], num_frames: int) -> Indices:
    return np.clip(picks, 0, num_frames - 1).astype(np.int64)


def _check(num_frames: int, fps: float, count: int, rate: int) -> None:
    if num_frames < 1:
        raise UsageError(f"a clip needs at least one frame to sample from, not {num_frames}")
    if count < 1 or rate < 1:
        raise UsageError(f"count ({count}) and rate ({rate}) must be at least 1")
    if not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"fps must be a positive number, not {fps}")


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} must lie in [0, 1], not {value}")


def _check_view(view: int, views: int) -> None:
    if not 0 <= view < views:
        raise UsageError(f"view must be one of 0..{views - 1}, not {view}")
