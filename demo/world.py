"""Render a performance from the head camera ("ego") or the fixed camera ("exo"): pictures, depth and joints, exactly.

    subject = sample_subject(rng)
    scene = sample_scene(rng, "push", subject)
    frames = render(scene, np.arange(0, scene.duration, 0.1), "exo", 96)

All chance is in the scene: a frame depends on the scene, its time, the view and the size alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .actions import ACTIONS, ALL_ACTIONS, motion
from .body import JOINT_RADIUS, capsules
from .camera import NEAR, Camera, aim, focal_of
from .geometry import Floats, dot
from .objects import solids, stand
from .performance import Scene, State, Subject, sample_scene, sample_subject, state
from .raster import Canvas, Hits, Shape, Solid, surface
from .room import background, table

__all__ = [
    "ACTIONS",
    "ALL_ACTIONS",
    "PARTS",
    "VIEWS",
    "Frames",
    "Scene",
    "Subject",
    "View",
    "render",
    "sample_scene",
    "sample_subject",
]

View = Literal["ego", "exo"]
VIEWS: tuple[View, ...] = get_args(View)

PARTS = ("room", "table", "body", "head", "acting hand", "object", "lid", "other hand", "other things")
CLUTTER = 8
"""What a pixel of `Frames.parts` shows."""

_LEAST = 32
_SLACK = 0.02  # metres by which a joint may lie deeper than its limb and still count as seen


@dataclass(frozen=True, slots=True)
class Frames:
    """T rendered frames of one view.

    `rgb` is uint8 [T, H, W, 3], `depth` float32 [T, H, W] in metres along the camera's axis, `parts` uint8 [T, H, W]
    indexes `PARTS`. `joints_3d` is float32 [T, 17, 3], world metres; `joints_2d` float32 [T, 17, 3]: x and y in pixels
    (0, 0 is the centre of the first) and 1 where the joint is in the picture and nothing hides it, else 0.
    `object_3d` and `object_2d` say the same of the object's centre, [T, 3] each. `intrinsics` is float32 [3, 3],
    `extrinsics` float32 [T, 3, 4] from world to camera (x right, y down, z forward).
    """

    rgb: npt.NDArray[np.uint8]
    depth: Floats
    parts: npt.NDArray[np.uint8]
    joints_3d: Floats
    joints_2d: Floats
    object_3d: Floats
    object_2d: Floats
    intrinsics: Floats
    extrinsics: Floats


def render(scene: Scene, times: npt.ArrayLike, view: View, size: int) -> Frames:
    """Render `scene` at `times` [T], seconds from the performance's begin, as pictures of size x size pixels.

    Times before 0 and after `scene.duration` show idling. Raises `UsageError` for an unknown view, a size below 32 or
    no times at all.
    """
    if view not in VIEWS:
        raise UsageError(f"unknown view {view!r}; expected {', '.join(VIEWS)}")
    if size < _LEAST:
        raise UsageError(f"pictures of {size} pixels are too small; at least {_LEAST}")
    moments = np.asarray(times, np.float32)
    if moments.ndim != 1 or not len(moments):
        raise UsageError(f"times is a list of seconds, not an array of shape {list(moments.shape)}")
    now = state(scene, moments)
    camera = _camera(scene, now, view, size)
    still = _first(camera) if view == "exo" else camera
    depth, unlit = background(scene.subject.room, still)
    canvas = Canvas(camera, depth)
    for shape in _shapes(scene, now, view):
        canvas.draw(shape)
    colour, parts = _shade(scene, now, canvas, unlit)
    depth = canvas.depth.reshape(canvas.shape)
    joints = now.posture.joints
    return Frames(
        rgb=_expose(scene, moments, view, colour),
        depth=depth,
        parts=parts,
        joints_3d=joints,
        joints_2d=_locate(camera, depth, joints, JOINT_RADIUS * scene.subject.figure.scale),
        object_3d=now.centre,
        object_2d=_locate(camera, depth, now.centre[:, None], np.array([scene.thing.radius * 1.5], np.float32))[:, 0],
        intrinsics=camera.intrinsics,
        extrinsics=camera.extrinsics,
    )


def _camera(scene: Scene, now: State, view: View, size: int) -> Camera:
    subject = scene.subject
    if view == "ego":
        posture, scale = now.posture, subject.figure.scale
        origin = posture.head + scale * (0.11 * posture.forward + 0.04 * posture.up)
        return Camera(aim(now.sight, now.roll), origin.astype(np.float32), focal_of(subject.ego_field, size), size)
    count = len(now.roll)
    turn = aim((subject.exo_to - subject.exo_from)[None], np.zeros(1, np.float32))
    origin = np.broadcast_to(subject.exo_from, (count, 3))
    return Camera(np.repeat(turn, count, 0), origin, focal_of(subject.exo_field, size), size)


def _first(camera: Camera) -> Camera:
    return Camera(camera.turn[:1], camera.origin[:1], camera.focal, camera.size)


def _shapes(scene: Scene, now: State, view: View) -> list[Shape]:
    """Everything that can hide something else."""
    count = len(now.roll)
    nothing = motion(None, np.zeros(count, np.float32), scene.variation)
    shapes: list[Shape] = [*table(scene.subject.room, count)]
    for thing, place in scene.subject.clutter:
        shapes += [replace(solid, part=CLUTTER) for solid in solids(thing, stand(thing, place, nothing))]
    shapes += solids(scene.thing, now.stance)
    shapes += capsules(scene.subject.figure, now.posture, scene.hand, with_head=view == "exo")
    return shapes


def _shade(scene: Scene, now: State, canvas: Canvas, unlit: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Lit colours [T, H, W, 3] and parts [T, H, W]."""
    room, camera = scene.subject.room, canvas.camera
    colour = np.empty((*canvas.shape, 3), np.float32)
    colour[:] = unlit * np.float32(0.55 + 0.5 * room.ambient)
    flat, parts = colour.reshape(-1, 3), np.zeros(canvas.winner.shape, np.uint8)
    light = camera.turn @ room.light
    for shape, hits in canvas.drawn():
        normal, plain, own = surface(shape, hits, camera)
        lit = room.ambient + (1.05 - room.ambient) * np.maximum(dot(normal, light[hits.frame]), 0)
        if isinstance(shape, Solid) and shape.texture is not None:
            lit = lit * _shadows(scene, now, own + shape.centre[0], hits)
        flat[hits.index] = plain * lit[:, None]
        parts[hits.index] = shape.part
    return colour, parts.reshape(canvas.shape)


def _shadows(scene: Scene, now: State, points: Floats, hits: Hits) -> Floats:
    """How much light [N] soft round shadows leave to points [N, 3] on the table."""
    light, posture = scene.subject.room.light, now.posture
    left = np.ones(len(points), np.float32)
    arms = [(posture.palms[side], 0.05, 0.45) for side in (0, 1)]
    arms += [((posture.joints[:, 7 + side] + posture.joints[:, 9 + side]) / 2, 0.09, 0.3) for side in (0, 1)]
    for caster, radius, share in [*arms, (now.centre, 1.5 * scene.thing.radius, 0.5)]:
        high = caster[:, 2] - scene.place[2]
        spot = caster[:, :2] - light[:2] / light[2] * high[:, None]
        width = (radius + 0.4 * np.maximum(high, 0)) ** 2
        strength = np.where(high > 0, share * radius**2 / width, 0)
        x, y = (points[:, i] - spot[:, i].copy().take(hits.frame) for i in (0, 1))
        x *= x
        y *= y
        x += y
        x /= width.take(hits.frame)
        left *= 1 - strength.take(hits.frame) / (1 + x**2)
    return left


def _expose(scene: Scene, times: Floats, view: View, colour: Floats) -> npt.NDArray[np.uint8]:
    """The camera's own colours and noise: uint8 [T, H, W, 3]. The noise of a frame is drawn from its time."""
    eye = VIEWS.index(view)
    colour = colour * scene.gain[eye] + scene.bias[eye]
    for frame, time in zip(colour, times, strict=True):
        stamp = round(float(time) * 1000) + 2**31
        rng = np.random.default_rng((scene.seed, eye, stamp))
        frame += np.float32(scene.noise) * rng.standard_normal(frame.shape, np.float32)
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)


def _locate(camera: Camera, depth: Floats, points: Floats, radius: Floats) -> Floats:
    """Pixels and visibility [T, N, 3] of world points [T, N, 3] that lie `radius` [N] metres deep at most."""
    pixels, z = camera.project(points)
    last = camera.size - 1
    inside = ((pixels > -0.5) & (pixels < last + 0.5)).all(-1) & (z > NEAR)
    column, row = (np.clip(np.rint(pixels[..., i]), 0, last).astype(np.int64) for i in (0, 1))
    surface_z = depth[np.arange(len(depth))[:, None], row, column]
    seen = inside & (np.abs(surface_z - z) < radius + _SLACK)
    return np.concatenate((pixels, seen[..., None]), -1).astype(np.float32)
