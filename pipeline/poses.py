"""Skeleton files: `.npy` arrays, one per clip; PYSKL pickles with many annotations; data sets' own JSON."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .poses_common import LARGEST_NORMALISED, Keypoints, Pose, PoseError, Reason, shaped
from .poses_json import read_json_poses
from .poses_pickle import annotated_pose, read_annotations

__all__ = ["LARGEST_NORMALISED", "Keypoints", "Pose", "PoseError", "Reason", "read_pose"]

SUFFIXES = (".npy", ".pkl", ".pickle", ".json")

# An annotation may end this much before its clip does: pose estimators drop frames at the end of a file.
_SHORTEST = 0.9


def read_pose(
    path: str | Path,
    *,
    clip_id: str,
    video_stem: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> Pose:
    """Read the skeleton of one clip.

    A `.npy` file ([T, V, C] or [M, T, V, C]; C = 2 gets score 1) belongs to the clip as a whole. In a PYSKL
    pickle (`.pkl`, `.pickle`; a list of annotations, or a dict with `annotations`) the annotation whose
    `frame_dir` is `clip_id` is taken whole; otherwise that of `video_stem`, cut to frames round(start_s *
    fps) up to, not including, round(end_s * fps) (seconds; None: from the start, to the end). A `.json` file holds
    the body poses of an Ego-Exo4D take, of which those in the picture of camera `video_stem` are taken, or the hands
    of an Assembly101 recording (see `poses_json`); it is cut likewise, at its own frame rate.

    `image_size`, (height, width) of the video, stands in where the file does not say it: for `.npy` files, whose
    coordinates are pixels unless all of them lie within -4..4. Pickles may hold NumPy arrays and plain Python values
    only. Pickles and JSON are kept parsed for the next clip.

    Raises:
        PoseError: no such file or annotation (missing), a file that is not what it should be or that cannot be cut
            for want of `fps` (unreadable), or one that ends before the clip does (truncated).
        UsageError: another kind of file, or a pickle that asks for any other class; the message names it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: skeleton files are {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PoseError("missing", path, "no such file") from error
    if path.suffix == ".npy":
        keypoints = shaped(_read_npy(path, stat.st_size), None, path)
        normalised = np.abs(keypoints[..., :2]).max() <= LARGEST_NORMALISED
        return Pose(keypoints, None if normalised else image_size, str(path))
    if path.suffix == ".json":
        return _from_recording(path, stat, video_stem, start_s, end_s)
    table = read_annotations(str(path), stat.st_mtime_ns, stat.st_size)
    if clip_id in table:
        return annotated_pose(table[clip_id], path, image_size)
    if video_stem is None or video_stem not in table:
        names = f"{clip_id!r}" + (f" or {video_stem!r}" if video_stem else "")
        raise PoseError("missing", path, f"no annotation with frame_dir {names}")
    return _cut(annotated_pose(table[video_stem], path, image_size), start_s, end_s, fps)


def _from_recording(
    path: Path, stat: os.stat_result, camera: str | None, start_s: float | None, end_s: float | None
) -> Pose:
    recording = read_json_poses(path, stat.st_mtime_ns, stat.st_size, camera)
    whole = Pose(recording.keypoints, recording.image_size, str(path))
    pose = _cut(whole, start_s, end_s, recording.fps)
    if not pose.keypoints.any():
        raise PoseError("missing", path, "nobody is annotated between the clip's start and end")
    return pose


def _cut(pose: Pose, start_s: float | None, end_s: float | None, fps: float | None) -> Pose:
    if start_s is None and end_s is None:
        return pose
    if fps is None or not fps > 0:
        message = "a clip is cut out of it at the frame rate of its video, which is not known; can the video be opened?"
        raise PoseError("unreadable", pose.path, message)
    count = pose.keypoints.shape[1]
    first = round((start_s or 0.0) * fps)
    last = count if end_s is None else round(end_s * fps)
    if min(last, count) - first < max(1.0, _SHORTEST * (last - first)):
        message = f"the skeleton has {count} frames, the clip is frames {first} to {last}"
        raise PoseError("truncated", pose.path, message)
    return Pose(pose.keypoints[:, first:last], pose.image_size, pose.path)


def _read_npy(path: Path, size: int) -> npt.NDArray[Any]:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if file.tell() + math.prod(shape) * dtype.itemsize > size:
                raise PoseError("truncated", path, f"ends before its {list(shape)} {dtype} values do")
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        reason: Reason = "truncated" if "EOF" in str(error) else "unreadable"
        raise PoseError(reason, path, f"not a NumPy array of numbers: {error}") from error
