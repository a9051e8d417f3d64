"""Where the hands are: a square round the forearms of a 2-D skeleton, smoothed over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...pipeline.poses import LARGEST_NORMALISED, Pose, PoseError

COCO_JOINTS = 17
FOREARMS = [7, 8, 9, 10]  # elbows and wrists of the 17 COCO joints

# Chosen here, not taken from a paper: a forearm's box leaves the hand out, hence the generous margin.
MIN_SCORE = 0.3
MARGIN = 1.6
SMALLEST = 0.2  # of the frame's short side
WINDOW = 9  # pose frames of the moving average

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def hand_squares(pose: Pose, picks: int, height: int, width: int) -> list[tuple[int, int, int]]:
    """One square (top, left, side) in pixels per pick, inside a frame of `height` x `width`.

    Picks lie at the centres of equal parts of the skeleton's time. The person with the highest mean score is
    followed. Per skeleton frame, the square surrounds the elbows and wrists with a score of at least 0.3 (two
    of them at least), else all such joints; frames without either are filled in from their neighbours. Centre
    and side are averaged over 9 skeleton frames.

    Raises `PoseError`: unreadable for a skeleton of other than 17 joints or not in pixels, missing when no frame
    shows anyone.
    """
    _, count, joints, _ = pose.keypoints.shape
    if joints != COCO_JOINTS:
        message = f"the hand crop needs {COCO_JOINTS} COCO joints, the skeleton has {joints}"
        raise PoseError("unreadable", pose.path, message)
    person = pose.keypoints[pose.keypoints[..., 2].mean(axis=(1, 2)).argmax()].astype(np.float64)  # [T, V, 3]
    image_height, image_width = pose.image_size or (height, width)
    points = person[..., :2] * (width / image_width, height / image_height)
    boxes, valid = _boxes(points, person[..., 2] >= MIN_SCORE)
    if not valid.any():
        raise PoseError("missing", pose.path, f"no frame shows a person with scores of {MIN_SCORE} or more")
    if pose.image_size is None and np.abs(pose.keypoints[..., :2]).max() <= LARGEST_NORMALISED:
        raise PoseError("unreadable", pose.path, "the hand crop needs pixels, the coordinates are normalised")
    smooth = _smoothed(_filled(boxes, valid))
    moments = ((np.arange(picks) + 0.5) * count / picks).astype(int)
    return [_inside(smooth[moment], height, width) for moment in moments]


def _boxes(points: Floats, seen: Bools) -> tuple[Floats, Bools]:
    """Centre x, centre y and side of each frame's box [T, 3], and which frames have one [T]."""
    arms = np.zeros_like(seen)
    arms[:, FOREARMS] = seen[:, FOREARMS]
    used = np.where((arms.sum(axis=1) >= 2)[:, None], arms, seen)[..., None]  # [T, V, 1]
    low = np.where(used, points, np.inf).min(axis=1)
    high = np.where(used, points, -np.inf).max(axis=1)
    valid: Bools = np.asarray(used.any(axis=(1, 2)))
    low[~valid], high[~valid] = 0.0, 0.0
    side = MARGIN * (high - low).max(axis=1, keepdims=True)
    return np.concatenate([(low + high) / 2, side], axis=1), valid


def _filled(boxes: Floats, valid: Bools) -> Floats:
    moments = np.arange(len(boxes))
    columns = [np.interp(moments, moments[valid], boxes[valid, column]) for column in range(boxes.shape[1])]
    return np.stack(columns, axis=1)


def _smoothed(values: Floats) -> Floats:
    half = WINDOW // 2
    padded = np.pad(values, ((half, half), (0, 0)), mode="edge")
    smooth: Floats = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0).mean(axis=-1)
    return smooth


def _inside(box: Floats, height: int, width: int) -> tuple[int, int, int]:
    x, y, side = (float(value) for value in box)
    short = min(height, width)
    length = max(1, min(short, round(max(side, SMALLEST * short))))
    top = min(max(round(y - length / 2), 0), height - length)
    left = min(max(round(x - length / 2), 0), width - length)
    return top, left, length
