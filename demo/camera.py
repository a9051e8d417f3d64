"""Pinhole cameras that may move. Camera axes: x right, y down, z forward; pixel (0, 0) is the centre of the first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import UP, Floats, rotation, unit, vec

NEAR = 0.04
"""Metres; nothing nearer to a camera is seen."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera over T frames: `turn` float32 [T, 3, 3] (rows: the camera's axes in the world), `origin` [T, 3] metres,
    `focal` in pixels, `size` pixels high and wide."""

    turn: Floats
    origin: Floats
    focal: float
    size: int

    @property
    def centre(self) -> float:
        """The principal point's coordinate, the same for x and y."""
        return (self.size - 1) / 2

    @property
    def intrinsics(self) -> Floats:
        """float32 [3, 3]."""
        return np.array([[self.focal, 0, self.centre], [0, self.focal, self.centre], [0, 0, 1]], np.float32)

    @property
    def extrinsics(self) -> Floats:
        """World to camera, float32 [T, 3, 4]."""
        shift = -np.einsum("tij,tj->ti", self.turn, self.origin)
        return np.concatenate((self.turn, shift[..., None]), -1).astype(np.float32)

    def see(self, points: Floats) -> Floats:
        """World points [T, 3] or [T, N, 3] in camera axes, same shape."""
        offset = points - (self.origin if points.ndim == 2 else self.origin[:, None])
        seen = offset[:, None] if points.ndim == 2 else offset
        out = np.matmul(seen, self.turn.transpose(0, 2, 1))
        return np.asarray(out.reshape(points.shape), np.float32)

    def project(self, points: Floats) -> tuple[Floats, Floats]:
        """Pixels (x, y) [T, N, 2] and depth z [T, N] of points [T, N, 3]; behind the camera, pixels mean nothing."""
        seen = self.see(points)
        depth = seen[..., 2]
        pixels = seen[..., :2] * (self.focal / np.maximum(depth, 1e-3))[..., None] + self.centre
        return pixels.astype(np.float32), depth


def focal_of(field: float, size: int) -> float:
    """Focal length in pixels of a camera that sees `field` radians across."""
    return float(size / (2.0 * np.tan(field / 2.0)))


def aim(forward: Floats, roll: Floats) -> Floats:
    """Rotations [T, 3, 3], world to camera, looking along `forward` [T, 3], rolled by [T] radians."""
    forward = unit(forward)
    right = unit(np.cross(forward, vec(*UP)))
    down = np.cross(forward, right)
    level = np.stack((right, down, forward), 1)
    return np.asarray(np.matmul(rotation(vec(0, 0, 1), roll), level), np.float32)
