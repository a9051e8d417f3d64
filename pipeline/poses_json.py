"""Skeletons that data sets publish as JSON: Ego-Exo4D's body poses, Assembly101's hands.

Both number their frames at a rate of their own, whatever the rate of the video that a clip names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .poses_common import Keypoints, PoseError, Reason, finite

_CACHED_FILES = 2

COCO = (
    "nose",
    "left-eye",
    "right-eye",
    "left-ear",
    "right-ear",
    "left-shoulder",
    "right-shoulder",
    "left-elbow",
    "right-elbow",
    "left-wrist",
    "right-wrist",
    "left-hip",
    "right-hip",
    "left-knee",
    "right-knee",
    "left-ankle",
    "right-ankle",
)
"""Joints of the body as Ego-Exo4D names them, in the order of COCO."""

EGOEXO4D_FPS = 30.0
EGOEXO4D_IMAGE = (2160, 3840)  # (height, width) of the GoPro videos, before Ego-Exo4D scales them down
EGOEXO4D_HOLD = 15  # frames for which an annotation stands in for its neighbours without one

ASSEMBLY101_FPS = 60.0
HANDS, HAND_JOINTS = 2, 21


@dataclass(frozen=True, eq=False)
class Recording:
    """The skeleton of a whole recording: `keypoints` as in `Pose`, at `fps` frames per second from its start."""

    keypoints: Keypoints
    fps: float
    image_size: tuple[int, int] | None


def read_json_poses(path: Path, mtime_ns: int, size: int, camera: str | None) -> Recording:
    """The skeletons in a JSON file, of which `mtime_ns` and `size` are the present state; parsed files are kept.

    Assembly101 (a list): both hands, [2, T, 21, 3], x, y, z, joints in the data set's own order. Ego-Exo4D (an
    object): the body in the picture of `camera`, the stem of its video, [1, T, 17, 3], x, y in pixels of the
    full-size video and score 1, COCO's order; of several annotators the first. A frame without annotation
    has that of the nearest annotated frame, at most 15 frames (half a second) away, and is zero otherwise.

    Raises `PoseError`: truncated, unreadable, or missing for a camera that the file does not know.
    """
    content = _parsed(str(path), mtime_ns, size)
    if isinstance(content, Recording):
        return content
    body = content.get(camera or "")
    if body is None:
        known = ", ".join(sorted(content)) or "none"
        message = f"no 2-D body poses of camera {camera!r}, the stem of the clip's video; the file has {known}"
        raise PoseError("missing", path, message)
    return body


@lru_cache(maxsize=_CACHED_FILES)
def _parsed(name: str, _mtime_ns: int, _size: int) -> Recording | dict[str, Recording]:
    path = Path(name)
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:
        reason: Reason = "truncated" if _ends_early(error, data.rstrip()) else "unreadable"
        raise PoseError(reason, path, f"no whole JSON text: {error}") from error
    try:
        if isinstance(content, list):
            return _assembly101(content)
        if isinstance(content, dict):
            return _egoexo4d(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"neither Ego-Exo4D body poses nor Assembly101 hands: {type(error).__name__}: {error}"
        raise PoseError("unreadable", path, message) from error
    raise PoseError("unreadable", path, "neither Ego-Exo4D body poses (an object) nor Assembly101 hands (a list)")


def _ends_early(error: ValueError, data: bytes) -> bool:
    """Whether it is the end of the text that does not parse, or that is no end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(error.doc.rstrip()) or not data.endswith((b"}", b"]"))


def _assembly101(frames: Sequence[Mapping[str, Any]]) -> Recording:
    """A list per frame of {"landmarks": {"0", "1": 21 x 3}, "tracking_confidence": {"0", "1": number}}."""
    if not frames:
        raise ValueError("no frames")
    points = np.zeros((HANDS, len(frames), HAND_JOINTS, 3), dtype=np.float32)
    for number, frame in enumerate(frames):
        confidence = frame.get("tracking_confidence", {})
        for hand, joints in frame["landmarks"].items():
            if confidence.get(hand, 1.0) > 0 and joints:
                if len(joints) != HAND_JOINTS:
                    raise ValueError(f"frame {number}: {len(joints)} joints of hand {hand}, not {HAND_JOINTS}")
                points[_hand(hand), number] = joints
    return Recording(finite(points), ASSEMBLY101_FPS, None)


def _hand(name: str) -> int:
    if name not in {"0", "1"}:
        raise ValueError(f"hand {name!r}; hands are '0' and '1'")
    return int(name)


def _egoexo4d(frames: Mapping[str, Any]) -> dict[str, Recording]:
    """{frame: [{"annotation2D": {camera: {joint: {"x", "y", "placement"}}}, "annotation3D": ...}]}, by camera."""
    found: dict[str, dict[int, Keypoints]] = {}
    for frame, annotators in frames.items():
        for camera, joints in (annotators[0].get("annotation2D") or {} if annotators else {}).items():
            found.setdefault(camera, {})[int(frame)] = _body(joints)
    return {
        camera: Recording(_held(annotated), EGOEXO4D_FPS, EGOEXO4D_IMAGE)
        for camera, annotated in found.items()
        if any(body.any() for body in annotated.values())
    }


def _body(joints: Mapping[str, Any]) -> Keypoints:
    """float32 [17, 3]. Joints that nobody placed are not in the file; those of hands are not of the body."""
    body = np.zeros((len(COCO), 3), dtype=np.float32)
    for place, name in enumerate(COCO):
        if name in joints:
            body[place] = joints[name]["x"], joints[name]["y"], 1.0
    return finite(body)


def _held(annotated: Mapping[int, Keypoints]) -> Keypoints:
    """[1, T, 17, 3] up to the last annotated frame and the time that it stands for."""
    at = np.array(sorted(annotated), dtype=np.int64)
    if at[0] < 0:
        raise ValueError(f"frame {at[0]} is before the first")
    points = np.stack([annotated[frame] for frame in at.tolist()])
    every = np.arange(at[-1] + EGOEXO4D_HOLD + 1)
    after = np.searchsorted(at, every).clip(max=len(at) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(at[before] - every) <= np.abs(at[after] - every), before, after)
    held: Keypoints = points[nearest]
    held[np.abs(at[nearest] - every) > EGOEXO4D_HOLD] = 0.0
    return held[None]
