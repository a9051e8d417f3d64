"""What all skeleton files have in common: a pose, and how a file that gives none is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError

Reason = Literal["missing", "unreadable", "truncated"]
Keypoints = npt.NDArray[np.float32]

# Coordinates that never exceed this are no pixels: they were normalised to about -1..1 before they were stored.
LARGEST_NORMALISED = 4.0


class PoseError(UniegoError):
    """One clip's skeleton cannot be had; `reason` is missing, unreadable or truncated, `path` the file."""

    def __init__(self, reason: Reason, path: str | Path, message: str) -> None:
        self.reason, self.path = reason, str(path)
        super().__init__(f"{self.path}: {message}" if self.path else message)

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions with other arguments do not survive pickling
        return _restore, (self.reason, self.path, str(self))


def _restore(reason: Reason, path: str, text: str) -> PoseError:
    return PoseError(reason, path, text.removeprefix(f"{path}: "))


@dataclass(frozen=True)
class Pose:
    """The skeleton of one clip.

    `keypoints` is float32 [M, T, V, C], finite: M persons, T frames, V joints. 2-D: C = 3 with x and y in
    pixels and the detector's score; 3-D: C = 3 with x, y, z. A joint that was not found is all zeros.
    `image_size` is (height, width) in pixels of the image that 2-D coordinates refer to, None where the file
    does not say.
    """

    keypoints: Keypoints
    image_size: tuple[int, int] | None
    path: str = ""


def shaped(points: Any, scores: Any, path: Path) -> Keypoints:
    """float32 [M, T, V, 3] of an array and, for 2-D, its scores; a non-finite joint counts as not found."""
    points = np.asarray(points)
    if points.ndim == 3:
        points = points[None]
    if points.dtype.kind not in "fiu" or points.ndim != 4 or points.shape[-1] not in {2, 3} or points.size == 0:
        message = f"keypoints are numbers [M, T, V, 2 or 3]; got {points.dtype} {list(points.shape)}"
        raise PoseError("unreadable", path, message)
    if points.shape[-1] == 2:
        scores = np.ones(points.shape[:-1]) if scores is None else np.asarray(scores)
        if scores.shape != points.shape[:-1] or scores.dtype.kind not in "fiu":
            message = f"scores {list(scores.shape)} do not fit keypoints {list(points.shape)}"
            raise PoseError("unreadable", path, message)
        points = np.concatenate([points, scores[..., None]], axis=-1)
    return finite(points.astype(np.float32))


def finite(points: npt.NDArray[np.float32]) -> Keypoints:
    """The same array, with zeros for joints whose values are not all finite."""
    points[~np.isfinite(points).all(axis=-1)] = 0.0
    return points
