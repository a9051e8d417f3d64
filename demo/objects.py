"""Things to act with: a box, a ball, a bottle and a jar with a lid, made of solids that move as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .actions import Motion, family
from .geometry import UP, Floats, rotation, vec
from .raster import Kind, Solid

Make = Literal["box", "ball", "bottle", "jar"]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.14, 0.12),
    "orange": (0.95, 0.52, 0.1),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.22),
    "blue": (0.15, 0.3, 0.85),
    "purple": (0.55, 0.2, 0.7),
    "white": (0.93, 0.93, 0.9),
    "pink": (0.95, 0.5, 0.65),
}

_FITS: dict[str, tuple[Make, ...]] = {
    "push": ("box", "ball", "bottle", "jar"),
    "pick up": ("box", "ball", "bottle", "jar"),
    "screw": ("bottle", "jar"),
    "tilt up": ("box", "bottle", "jar"),
    "wipe": ("box", "ball", "bottle", "jar"),
    "stir": ("box", "bottle", "jar"),
    "shake": ("box", "ball", "bottle", "jar"),
    "tap": ("box", "ball", "bottle", "jar"),
}

OBJECT, LID = 5, 6
"""Part numbers of an object's body and of its lid."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object. `radius` (half the width) and `height` in metres, without the lid; `yaw` radians as it stands."""

    make: Make
    name: str
    colour: Floats
    second: Floats
    lid: Floats
    radius: float
    height: float
    yaw: float

    @property
    def top(self) -> float:
        """Height of the highest point above the table, in metres."""
        return self.height + {"bottle": 0.085, "jar": 0.035}.get(self.make, 0.0)


@dataclass(frozen=True, slots=True)
class Stance:
    """Where a thing is: its base's centre [T, 3], its axes [T, 3, 3] and the state of its lid."""

    base: Floats
    axes: Floats
    turn: Floats
    rise: Floats

    def place(self, points: Floats) -> Floats:
        """World points [T, 3] of points [3] or [T, 3] in the thing's own axes (origin at the base's centre)."""
        own = np.broadcast_to(points, self.base.shape)
        result: Floats = (self.base + np.einsum("tij,tj->ti", self.axes, own)).astype(np.float32)
        return result


def sample_thing(rng: np.random.Generator, action: str | None = None) -> Thing:
    """A thing that `action` can be done with; None: any."""
    makes: tuple[Make, ...] = _FITS["push" if action is None else family(action)]
    make = makes[rng.integers(len(makes))]
    names = list(COLOURS)
    name = names[rng.integers(len(names))]
    colour = np.clip(np.array(COLOURS[name]) + rng.normal(0, 0.03, 3), 0.03, 1)
    radius, height = {
        "box": (rng.uniform(0.04, 0.07), rng.uniform(0.07, 0.13)),
        "ball": (rng.uniform(0.04, 0.065), 0.0),
        "bottle": (rng.uniform(0.034, 0.046), rng.uniform(0.13, 0.18)),
        "jar": (rng.uniform(0.045, 0.06), rng.uniform(0.09, 0.13)),
    }[make]
    return Thing(
        make=make,
        name=name,
        colour=colour.astype(np.float32),
        second=(0.45 * colour if name in {"white", "yellow"} else 0.5 * colour + 0.42).astype(np.float32),
        lid=np.repeat(rng.choice([0.12, 0.35, 0.8]), 3).astype(np.float32),
        radius=float(radius),
        height=float(2 * radius if make == "ball" else height),
        yaw=float(rng.uniform(-0.6, 0.6)),
    )


def stand(thing: Thing, place: Floats, motion: Motion) -> Stance:
    """A thing moved from its place [3] on the table, or from places [T, 3]."""
    lean = vec(np.sin(motion.lean), np.cos(motion.lean), 0.0)
    tilted = rotation(vec(lean[1] * -1.0, lean[0], 0.0), motion.tilt)  # UP goes towards `lean`
    edge = lean * thing.radius
    base = place + motion.shift + edge - np.einsum("tij,j->ti", tilted, edge)
    yaw = rotation(vec(*UP), np.full(len(motion.tilt), thing.yaw, np.float32))
    return Stance(base.astype(np.float32), np.matmul(tilted, yaw), motion.turn, motion.rise)


def solids(thing: Thing, stance: Stance) -> list[Solid]:
    """The solids that make up a thing."""
    half = vec(thing.radius, thing.radius, thing.height / 2)
    kinds: dict[str, Kind] = {"box": "box", "ball": "ball"}
    middle = stance.place(vec(0, 0, thing.height / 2))
    body = Solid(kinds.get(thing.make, "cylinder"), middle, stance.axes, half, thing.colour, thing.second, part=OBJECT)
    parts = [body]
    lid = vec(0.9 * thing.radius, 0.9 * thing.radius, 0.0175)
    low = thing.height
    if thing.make == "bottle":
        lid, low = vec(0.02, 0.02, 0.02), thing.height + 0.045
        neck, at = vec(0.015, 0.015, 0.0275), stance.place(vec(0, 0, thing.height + 0.0275))
        parts.append(Solid("cylinder", at, stance.axes, neck, thing.colour, thing.second, part=OBJECT))
    if thing.make in {"bottle", "jar"}:
        zero = np.zeros_like(stance.rise)
        at = stance.place(np.stack((zero, zero, low + lid[2] + stance.rise), -1))
        axes = np.matmul(stance.axes, rotation(vec(*UP), stance.turn))
        parts.append(Solid("cylinder", at, axes, lid, thing.lid, 1.0 - 0.8 * thing.lid, part=LID))
    return parts
