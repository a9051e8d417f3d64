"""A small ray caster: capsules, boxes, cylinders and balls over all frames of a clip at once, in numpy.

Everything is intersected in camera axes with rays (u, v, 1), so that a ray's parameter is the depth z. A shape is only
cast inside the window of pixels that can show it; windows have one size per shape and move with it from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .camera import NEAR, Camera
from .geometry import Floats, dot, unit

Indices = npt.NDArray[np.int64]
Kind = Literal["box", "cylinder", "ball"]


@dataclass(frozen=True, slots=True)
class Capsule:
    """All points within `radius` of the segment a-b; float32 [T, 3] metres each. `part` names what it belongs to.

    With the same array for both ends it is a ball, and cast as one.
    """

    a: Floats
    b: Floats
    radius: float
    colour: Floats
    part: int


@dataclass(frozen=True, slots=True)
class Solid:
    """A turned box, upright cylinder or ball: `centre` [T, 3], `axes` [T, 3, 3] (columns: its axes in the world),
    `half` its half extents [3]. It shows `colour`, and `second` where its pattern says so, or the `texture`
    (`texture` [64, 64, 3], `tile` metres wide) on its upper face."""

    kind: Kind
    centre: Floats
    axes: Floats
    half: Floats
    colour: Floats
    second: Floats
    part: int
    texture: Floats | None = None
    tile: float = 1.0


Shape = Capsule | Solid


@dataclass(frozen=True, slots=True)
class Hits:
    """Where a shape won: flat pixel indices [N] into [T*H*W], and their points in camera axes [N, 3] and frames [N]."""

    index: Indices
    point: Floats
    frame: Indices


class Canvas:
    """The z-buffer of a clip. `depth` float32 [T*H*W] starts as the background's, `winner` is -1 there."""

    def __init__(self, camera: Camera, depth: Floats) -> None:
        self.camera = camera
        size, count = camera.size, len(camera.origin)
        self.shape = (count, size, size)
        self.depth = np.array(np.broadcast_to(depth, self.shape), order="C").reshape(-1)
        self.winner = np.full(self.depth.shape, -1, np.int16)
        self.line = ((np.arange(size) - camera.centre) / camera.focal).astype(np.float32)
        self._drawn: list[tuple[Shape, Indices]] = []

    def draw(self, shape: Shape) -> None:
        """Cast a shape into the z-buffer."""
        window = self._window(shape)
        if window is None:
            return
        frames, left, top, width, height = window
        columns, rows = left[:, None] + np.arange(width), top[:, None] + np.arange(height)
        u, v = self.line[columns][:, None, :], self.line[rows][:, :, None]  # [t,1,w], [t,h,1]
        with np.errstate(invalid="ignore", divide="ignore"):
            if isinstance(shape, Capsule) and shape.a is shape.b:
                depth = _cast_ball(self._see(shape.a, frames), shape.radius, u, v)
            elif isinstance(shape, Capsule):
                depth = _cast_capsule(self._see(shape.a, frames), self._see(shape.b, frames), shape.radius, u, v)
            else:
                turn = np.matmul(self.camera.turn[frames], shape.axes[frames])
                depth = _cast_solid(shape, self._see(shape.centre, frames), turn, u, v)
        size = self.camera.size
        index = (frames[:, None, None] * size + rows[:, :, None]) * size + columns[:, None, :]
        wins = (depth < self.depth[index]) & (depth > NEAR)
        index = index[wins]
        self.depth[index] = depth[wins]
        self.winner[index] = len(self._drawn)
        self._drawn.append((shape, index))

    def drawn(self) -> list[tuple[Shape, Hits]]:
        """Every shape with the pixels that it kept."""
        kept = []
        for number, (shape, index) in enumerate(self._drawn):
            index = index[self.winner[index] == number]
            if len(index):
                kept.append((shape, self._hits(index)))
        return kept

    def _hits(self, index: Indices) -> Hits:
        size = self.camera.size
        line, column = np.divmod(index, size)
        frame, row = np.divmod(line, size)
        depth = self.depth[index]
        point = np.stack((self.line[column] * depth, self.line[row] * depth, depth), -1)
        return Hits(index, point, frame)

    def _see(self, points: Floats, frames: Indices) -> Floats:
        return self.camera.see(points)[frames]

    def _window(self, shape: Shape) -> tuple[Indices, Indices, Indices, int, int] | None:
        """Frames in which the shape can be seen, the windows' left and top corners there, their width and height."""
        centres, radius = _cover(shape)
        seen = self.camera.see(centres)  # [T,n,3]
        size, last = self.camera.size, self.camera.size - 1
        behind = (seen[..., 2] < NEAR - radius).all(1)
        close = (seen[..., 2] < NEAR + radius).any(1)  # no bounds can be had: the window is the whole image
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = _bounds(seen, radius)
        low = np.nan_to_num(low * self.camera.focal + self.camera.centre, nan=0.0)
        high = np.nan_to_num(high * self.camera.focal + self.camera.centre, nan=float(last))
        low[close], high[close] = 0.0, float(last)
        outside = (high < 0).any(1) | (low > last).any(1)
        frames = np.flatnonzero(~behind & ~outside)
        if not len(frames):
            return None
        first = np.clip(np.floor(low[frames]), 0, last).astype(np.int64)
        final = np.clip(np.ceil(high[frames]), 0, last).astype(np.int64)
        width, height = (int(value) for value in (final - first).max(0) + 1)
        return frames, np.minimum(first[:, 0], size - width), np.minimum(first[:, 1], size - height), width, height


def _cover(shape: Shape) -> tuple[Floats, float]:
    """Balls that cover a shape in their convex hull: centres [T, n, 3] and their radius."""
    if isinstance(shape, Capsule):
        return np.stack((shape.a, shape.b), 1), shape.radius
    if shape.kind == "ball":
        return shape.centre[:, None], float(shape.half[0])
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) * shape.half
    return shape.centre[:, None] + np.einsum("tij,nj->tni", shape.axes, corners), 0.004


def _bounds(seen: Floats, radius: float) -> tuple[Floats, Floats]:
    """Bounds of (x/z, y/z), float32 [T, 2] each, over the balls of `radius` about points [T, n, 3] in front."""
    z = seen[..., 2:]
    reach = radius * np.sqrt(seen[..., :2] ** 2 + z**2 - radius**2)  # the tangents from the camera
    scale = z**2 - radius**2
    return ((seen[..., :2] * z - reach) / scale).min(1), ((seen[..., :2] * z + reach) / scale).max(1)


def _per_frame(values: Floats) -> Any:
    """A value per frame [T], to be combined with windows [T, h, w]."""
    return values[:, None, None]


def _cast_capsule(a: Floats, b: Floats, radius: float, u: Floats, v: Floats) -> Floats:
    """Depth [T, h, w] at which rays (u, v, 1) enter a capsule; infinite where they miss."""
    along, square = b - a, np.float32(radius * radius)
    length = np.maximum(dot(along, along), 1e-8).astype(np.float32)
    start, reach = -dot(a, along), dot(a, a)
    ray = u * u + (v * v + 1)
    ray_along = u * _per_frame(along[:, 0]) + (v * _per_frame(along[:, 1]) + _per_frame(along[:, 2]))
    ray_a = u * _per_frame(-a[:, 0]) + (v * _per_frame(-a[:, 1]) + _per_frame(-a[:, 2]))
    quad = _per_frame(length) * ray - ray_along * ray_along
    half = _per_frame(length) * ray_a - _per_frame(start) * ray_along
    rest = _per_frame((length * reach - start * start) - square * length)
    root = half * half - quad * rest
    depth = (-half - np.sqrt(root)) / quad
    place = _per_frame(start) + depth * ray_along
    on_side = (place > 0) & (place < _per_frame(length))
    first = place <= 0  # the round ends; who misses the endless cylinder (NaN) misses them too
    ray_b = -(u * _per_frame(b[:, 0]) + (v * _per_frame(b[:, 1]) + _per_frame(b[:, 2])))
    turn = np.where(first, ray_a, ray_b)
    rest = np.where(first, _per_frame(reach - square), _per_frame(dot(b, b) - square))
    end = (-turn - np.sqrt(turn * turn - ray * rest)) / ray
    depth = np.where(on_side, depth, end)
    return np.asarray(np.where(np.isnan(depth), np.inf, depth), np.float32)


def _cast_ball(centre: Floats, radius: float, u: Floats, v: Floats) -> Floats:
    """Depth [T, h, w] at which rays (u, v, 1) enter a ball; infinite where they miss."""
    ray = u * u + (v * v + 1)
    half = u * _per_frame(centre[:, 0]) + (v * _per_frame(centre[:, 1]) + _per_frame(centre[:, 2]))
    rest = _per_frame(dot(centre, centre) - np.float32(radius * radius))
    depth = (half - np.sqrt(half * half - ray * rest)) / ray
    return np.asarray(np.where(np.isnan(depth), np.inf, depth), np.float32)


def _cast_solid(shape: Solid, centre: Floats, turn: Floats, u: Floats, v: Floats) -> Floats:
    """Depth [T, h, w] at which rays (u, v, 1) enter a solid with `turn` [T, 3, 3] (columns: its axes as seen)."""
    origin = -np.einsum("tji,tj->ti", turn, centre)
    start = [_per_frame(origin[:, i]) for i in range(3)]
    ray = [
        u * _per_frame(turn[:, 0, i]) + (v * _per_frame(turn[:, 1, i]) + _per_frame(turn[:, 2, i])) for i in range(3)
    ]
    flat = {"box": (0, 1, 2), "cylinder": (2,), "ball": ()}[shape.kind]
    rounds = [i for i in range(3) if i not in flat]
    enter, leave = np.float32(-np.inf), np.float32(np.inf)
    for i in flat:
        one, other = (-shape.half[i] - start[i]) / ray[i], (shape.half[i] - start[i]) / ray[i]
        enter, leave = np.maximum(enter, np.minimum(one, other)), np.minimum(leave, np.maximum(one, other))
    if rounds:
        quad = sum(ray[i] * ray[i] for i in rounds)
        half = sum(start[i] * ray[i] for i in rounds)
        rest = sum(start[i] * start[i] for i in rounds) - shape.half[0] ** 2
        root = np.sqrt(half * half - quad * rest)
        enter, leave = np.maximum(enter, (-half - root) / quad), np.minimum(leave, (-half + root) / quad)
    return np.asarray(np.where(enter < leave, enter, np.inf), np.float32)


def surface(shape: Shape, hits: Hits, camera: Camera) -> tuple[Floats, Floats, Floats]:
    """Of the pixels a shape kept: normals in camera axes [N, 3], plain colours [N, 3] and points in its own axes.

    A capsule has no axes of its own: its points come back as they are.
    """
    if isinstance(shape, Capsule):
        a, b = camera.see(shape.a), camera.see(shape.b)
        along = b - a
        length = np.maximum(dot(along, along), 1e-8)
        offset = hits.point - a[hits.frame]
        share = np.clip(dot(offset, along[hits.frame]) / length[hits.frame], 0, 1)
        normal = (offset - share[:, None] * along[hits.frame]) / shape.radius
        return normal, np.broadcast_to(shape.colour, normal.shape), hits.point
    turn = np.matmul(camera.turn, shape.axes)
    own = _turned(hits.point - camera.see(shape.centre)[hits.frame], turn.transpose(0, 2, 1), hits.frame)
    normal = _turned(_own_normal(shape, own), turn, hits.frame)
    return normal, _pattern(shape, own), own


def _turned(vectors: Floats, turn: Floats, frame: Indices) -> Floats:
    """`turn` [T, 3, 3] applied to vectors [N, 3], each in its frame [N]."""
    if (turn == turn[:1]).all():
        return np.asarray(vectors @ turn[0].T, np.float32)
    return np.asarray(np.matmul(turn[frame], vectors[:, :, None])[:, :, 0], np.float32)


def _own_normal(shape: Solid, own: Floats) -> Floats:
    scaled = own / shape.half
    if shape.kind == "ball":
        return scaled
    normal = np.zeros_like(own)
    if shape.kind == "box":
        face = np.abs(scaled).argmax(1)
        normal[np.arange(len(own)), face] = np.sign(scaled[np.arange(len(own)), face])
        return normal
    lid = np.abs(scaled[:, 2]) > np.hypot(scaled[:, 0], scaled[:, 1])
    normal[:, :2] = np.where(lid[:, None], 0, own[:, :2])
    normal[:, 2] = np.where(lid, np.sign(scaled[:, 2]), 0)
    return unit(normal)


def _pattern(shape: Solid, own: Floats) -> Floats:
    """Two tones that show how a solid is turned; a texture for flat things that lie."""
    if shape.texture is not None:
        texel = (own[:, :2] * (64.0 / shape.tile)).astype(np.int64) & 63
        return np.asarray(shape.texture[texel[:, 1], texel[:, 0]], np.float32)
    if shape.kind == "box":
        marked = np.abs(own[:, 2]) < 0.3 * shape.half[2]
    elif shape.kind == "cylinder":
        marked = own[:, 0] > 0.25 * shape.half[0]
    else:
        marked = np.abs(own[:, 0]) < 0.35 * shape.half[0]
    return np.where(marked[:, None], shape.second, shape.colour)
