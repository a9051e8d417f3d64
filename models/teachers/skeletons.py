"""Skeletons as PYSKL's networks want them (Duan et al., 2022): normalised, two persons, T frames.

Arrays are float32 [M, T, V, 3]; a joint or person that is not there is all zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...pipeline.poses import LARGEST_NORMALISED, Keypoints, Pose, PoseError

PERSONS = 2
MIN_SCORE = 0.01
_LARGEST_SCORE = 2.0  # heat map peaks exceed 1 a little

_SPINE_BASE, _SPINE, _LEFT_SHOULDER, _RIGHT_SHOULDER = 0, 1, 4, 8  # of the 25 Kinect joints


def normalise_2d(pose: Pose) -> Keypoints:
    """Pixels (x, y, score) to x and y in -1..1 about the image's centre; scores <= 0.01 become zeros.

    Without an image size the coordinates must be normalised already. Raises `PoseError` (unreadable) when they look
    like pixels, or when the third channel is no score.
    """
    points = pose.keypoints.copy()
    if not (points[..., 2].min() >= 0 and points[..., 2].max() <= _LARGEST_SCORE):
        raise PoseError("unreadable", pose.path, "the third channel is no score; a 2-D layout takes x, y, score")
    if pose.image_size is not None:
        height, width = pose.image_size
        half = np.array([width / 2, height / 2], dtype=np.float32)
        points[..., :2] = (points[..., :2] - half) / half
    elif np.abs(points[..., :2]).max() > LARGEST_NORMALISED:
        raise PoseError(
            "unreadable",
            pose.path,
            "coordinates in pixels, but no image size; use a PYSKL pickle with img_shape, or "
            "store (x - w/2)/(w/2) and (y - h/2)/(h/2)",
        )
    points[points[..., 2] <= MIN_SCORE] = 0.0
    return points


def normalise_3d(keypoints: Keypoints) -> Keypoints:
    """Kinect joints with the first frame's spine at the origin, upright along z, shoulders along x.

    Frames are those in which the main person, the one seen in more frames, is there; that person comes first.
    """
    seen = np.asarray(keypoints.any(axis=(2, 3)))  # [M, T]
    if not seen.any():
        return keypoints.copy()
    order = np.argsort(-seen.sum(axis=1), kind="stable")
    points = keypoints[order][:, seen[order[0]]].astype(np.float64)
    there = points.any(axis=-1, keepdims=True)
    points = (points - points[0, 0, _SPINE]) * there
    points = points @ _turn(points[0, 0, _SPINE] - points[0, 0, _SPINE_BASE], (0.0, 0.0, 1.0)).T
    points = points @ _turn(points[0, 0, _RIGHT_SHOULDER] - points[0, 0, _LEFT_SHOULDER], (1.0, 0.0, 0.0)).T
    result: Keypoints = points.astype(np.float32)
    return result


def centred_3d(keypoints: Keypoints, centre: int) -> Keypoints:
    """Points (x, y, z) moved so that joint `centre` starts at the origin: its first sighting, persons in their order.

    Nothing is turned or scaled; joints that are not there stay zeros. For layouts without a spine, such as hands.
    """
    there = np.asarray(keypoints.any(axis=-1, keepdims=True))  # [M, T, V, 1]
    seen = np.argwhere(there[:, :, centre, 0].T)  # (frame, person), the first frame first
    if not len(seen):
        return keypoints.copy()
    frame, person = seen[0]
    result: Keypoints = (keypoints - keypoints[person, frame, centre]) * there
    return result


def modality_of(points: Keypoints, modality: str, ends: Sequence[int], *, scored: bool) -> Keypoints:
    """Joints (j), bones (b), or the motion of either from frame to frame (jm, bm), as PYSKL computes them.

    A bone is a joint less the joint at its other end (`ends`, one per joint); motion is the next frame less this one,
    zero in the last. With `scored` the third channel is a score, and becomes the mean of the two that were subtracted.
    """
    if modality in ("b", "bm"):
        points = _difference(points, points[:, :, list(ends)], scored=scored)
    if modality in ("jm", "bm"):
        motion = np.zeros_like(points)
        motion[:, :-1] = _difference(points[:, 1:], points[:, :-1], scored=scored)
        points = motion
    return points


def _difference(points: Keypoints, others: Keypoints, *, scored: bool) -> Keypoints:
    result = points - others
    if scored:
        result[..., 2] = (points[..., 2] + others[..., 2]) / 2
    return result


def _turn(vector: npt.NDArray[np.float64], onto: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """The rotation [3, 3] by the smallest angle that brings `vector` onto `onto` (Rodrigues)."""
    target = np.array(onto)
    axis = np.cross(vector, target)
    sine, cosine = float(np.linalg.norm(axis)), float(vector @ target)
    if sine < 1e-9:  # parallel: nothing to turn about
        return np.eye(3)
    x, y, z = axis / sine
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = np.arctan2(sine, cosine)
    turn: npt.NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
    return turn


def pad_persons(points: Keypoints, persons: int = PERSONS) -> Keypoints:
    """The first `persons` persons, with zeros for those that are not there."""
    missing = persons - len(points)
    if missing <= 0:
        return points[:persons]
    return np.concatenate([points, np.zeros((missing, *points.shape[1:]), dtype=points.dtype)])


def sample_frames(points: Keypoints, count: int) -> Keypoints:
    """`count` frames at the centres of equal parts; a shorter clip starts over until there are enough."""
    frames = points.shape[1]
    if frames < count:
        return points[:, np.arange(count) % frames]
    return points[:, ((np.arange(count) + 0.5) * frames / count).astype(int)]


def draw_frames(points: Keypoints, count: int, rng: np.random.Generator) -> Keypoints:
    """`count` frames in order, drawn for training as PYSKL does.

    A shorter clip starts over, from any frame; one of less than twice as many frames skips one here and there; of a
    longer one, each of `count` equal parts gives any one frame.
    """
    frames = points.shape[1]
    if frames < count:
        return points[:, (int(rng.integers(frames)) + np.arange(count)) % frames]
    if frames < 2 * count:
        skips = np.zeros(count + 1, dtype=np.int64)
        skips[rng.choice(count + 1, frames - count, replace=False)] = 1
        return points[:, np.arange(count) + skips.cumsum()[:-1]]
    starts = np.arange(count + 1) * frames // count
    return points[:, starts[:-1] + rng.integers(np.diff(starts))]
