"""The room: walls, floor and table with procedural textures, and the light."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from .camera import Camera
from .geometry import Floats, unit, vec
from .raster import Solid

TABLE = 1
LOW, HIGH = vec(-2.6, -1.7, 0.0), vec(2.6, 3.6, 2.8)
"""Corners of the room in metres."""


class Texture(NamedTuple):
    """A tile of 64 x 64 texels, `tile` metres wide, drawn from `seed` in two colours."""

    pattern: Literal["checks", "stripes", "planks", "speckles"]
    first: tuple[float, ...]
    second: tuple[float, ...]
    tile: float
    seed: int


@dataclass(frozen=True, slots=True)
class Room:
    """Everything that does not move. Lengths in metres; `light` [3] points to the lamp, `ambient` is its share.

    The table's top is at `height` and reaches from y = `near` to `far` and from -`reach` to `reach` in x.
    """

    height: float
    near: float
    far: float
    reach: float
    table: Texture
    floor: Texture
    wall: Texture
    light: Floats
    ambient: float


def sample_texture(rng: np.random.Generator, tile: float, brightness: tuple[float, float]) -> Texture:
    """A texture of two related colours."""
    patterns: tuple[Literal["checks", "stripes", "planks", "speckles"], ...] = (
        "checks", "stripes", "planks", "speckles",
    )  # fmt: skip
    first = rng.uniform(*brightness) * (1 + rng.normal(0, 0.14, 3))
    second = first * rng.uniform(0.6, 0.9) * (1 + rng.normal(0, 0.06, 3))
    return Texture(
        patterns[rng.integers(4)],
        tuple(np.clip(first, 0.05, 0.95).tolist()),
        tuple(np.clip(second, 0.05, 0.95).tolist()),
        float(tile * rng.uniform(0.7, 1.4)),
        int(rng.integers(2**31)),
    )


def sample_room(rng: np.random.Generator, height: float) -> Room:
    """A room with a table of the given height."""
    return Room(
        height=height,
        near=float(rng.uniform(0.15, 0.19)),
        far=float(rng.uniform(0.85, 1.1)),
        reach=float(rng.uniform(0.6, 0.85)),
        table=sample_texture(rng, 0.4, (0.35, 0.8)),
        floor=sample_texture(rng, 1.0, (0.25, 0.6)),
        wall=sample_texture(rng, 1.2, (0.5, 0.9)),
        light=unit(vec(rng.uniform(-0.8, 0.8), rng.uniform(-0.1, 0.9), 1.0)),
        ambient=float(rng.uniform(0.4, 0.6)),
    )


@lru_cache(maxsize=64)
def texels(texture: Texture) -> Floats:
    """The tile, float32 [64, 64, 3] in 0..1."""
    rng = np.random.default_rng(texture.seed)
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 64
    grain = rng.normal(0, 1, (64, 64))
    if texture.pattern == "checks":
        share = ((x < 0.5) ^ (y < 0.5)).astype(np.float32)
    elif texture.pattern == "stripes":
        share = (np.sin(4 * np.pi * x) > 0.3).astype(np.float32)
    elif texture.pattern == "planks":
        rows = rng.uniform(0, 1, 4)
        share = 0.6 * rows[(y * 4).astype(int)] + 0.25 * np.sin(2 * np.pi * (x + 3 * rows[(y * 4).astype(int)]))
        share = np.where((y * 16).astype(int) % 4 == 0, 1.0, np.clip(share, 0, 1))
    else:
        share = np.clip(0.4 + 0.5 * grain, 0, 1)
    first, second = np.array(texture.first), np.array(texture.second)
    tile = first + (second - first) * share[..., None] + 0.02 * grain[..., None]
    result: Floats = np.clip(tile, 0, 1).astype(np.float32)
    return result


def background(room: Room, camera: Camera) -> tuple[Floats, Floats]:
    """Depth [T, H, W] in metres and unlit colours [T, H, W, 3] of the empty room; every ray ends in it."""
    line = ((np.arange(camera.size) - camera.centre) / camera.focal).astype(np.float32)
    u, v, turn = line[None, None, :], line[None, :, None], camera.turn[:, :, :, None, None]
    rays = [u * turn[:, 0, i] + (v * turn[:, 1, i] + turn[:, 2, i]) for i in range(3)]  # world directions, z-depth 1
    exits = []
    for i, ray in enumerate(rays):
        ray = np.where(np.abs(ray) < 1e-7, np.float32(1e-7), ray)
        origin = camera.origin[:, i, None, None]
        exits.append(np.where(ray > 0, HIGH[i] - origin, LOW[i] - origin) / ray)
    depth = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    x, y, z = (camera.origin[:, i, None, None] + depth * rays[i] for i in range(3))
    level, side = depth == exits[2], depth == exits[0]
    below = level & (rays[2] < 0)
    tiles = np.stack((texels(room.wall), texels(room.floor), np.full((64, 64, 3), 0.8, np.float32)))
    kind = below + 2 * (level & ~below)  # wall, floor, ceiling
    scale = np.where(below, np.float32(64 / room.floor.tile), np.float32(64 / room.wall.tile))
    across = (np.where(side, y, x) * scale).astype(np.int32) & 63
    along = (np.where(level, y, z) * scale).astype(np.int32) & 63
    shade = np.where(level, np.float32(1.0), np.where(side, np.float32(0.8), np.float32(0.9)))
    return depth.astype(np.float32), tiles[kind, along, across] * shade[..., None]


def table(room: Room, count: int) -> list[Solid]:
    """The table top and two legs over `count` frames."""
    axes = np.broadcast_to(np.eye(3, dtype=np.float32), (count, 3, 3))
    grey = np.array(room.table.second, np.float32) * 0.6
    tile = texels(room.table)

    def slab(x: float, y: float, z: float, half: Floats, texture: Floats | None) -> Solid:
        centre = np.broadcast_to(vec(x, y, z), (count, 3))
        return Solid("box", centre, axes, half, grey, grey, TABLE, texture, room.table.tile)

    middle, deep = (room.near + room.far) / 2, (room.far - room.near) / 2
    legs = [
        slab(
            side * (room.reach - 0.04), room.far - 0.04, room.height / 2 - 0.02, vec(0.03, 0.03, room.height / 2), None
        )
        for side in (-1, 1)
    ]
    return [slab(0.0, middle, room.height - 0.02, vec(room.reach, deep, 0.02), tile), *legs]
