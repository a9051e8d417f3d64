"""Who does what: random people, random performances, and where everything is at any time of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .actions import VERBS, Motion, Variation, family, motion, sample_variation
from .body import Figure, Posture, Reach, pose, sample_figure, torso
from .geometry import Floats, Wave, sample_wave, smooth, unit, vec
from .objects import Stance, Thing, sample_thing, stand
from .room import Room, sample_room

MISSES = 0.3
"""Share of performances in which the person looks away from what the hands do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A person with a room: body, clothes, habits, table, light, things that stand about, and the fixed camera.

    `right_handed` is a habit, `speed` and `amplitude` are factors on the usual; `exo_from` and `exo_to` [3] metres
    place the outer camera, `exo_field` and `ego_field` are the cameras' fields of view in radians.
    """

    figure: Figure
    room: Room
    clutter: tuple[tuple[Thing, Floats], ...]
    right_handed: bool
    speed: float
    amplitude: float
    exo_from: Floats
    exo_to: Floats
    exo_field: float
    ego_field: float


@dataclass(frozen=True, slots=True)
class Gaze:
    """Where the head points: `offset` [2] radians (right, up) off the object throughout, `glance` [2] away from it for
    a while about the phase `when`; `follow` is how much of the object's way it follows. `shake` has yaw, pitch,
    roll."""

    offset: Floats
    glance: Floats
    when: float
    length: float
    follow: float
    shake: Wave


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything random about one performance. It lasts from 0 to `duration` seconds; before and after, and throughout
    where `action` is None, the person idles. `hand` is 0 for the left, 1 for the right one; `place` [3] metres is where
    the thing stands, `grasp` [3] where it is taken, in its own axes; `rests` are both palms' resting places."""

    subject: Subject
    action: str | None
    duration: float
    hand: int
    thing: Thing
    place: Floats
    grasp: Floats
    rests: Floats
    variation: Variation
    gaze: Gaze
    sway: Wave
    drift: Wave
    fidget: Wave
    gain: Floats
    bias: Floats
    noise: float
    seed: int

    @property
    def caption(self) -> str:
        """One sentence on what is to be seen."""
        verb = "sits idle with" if self.action is None else VERBS[self.action]
        thing = f"the {self.thing.name} {self.thing.make}"
        return f"a person {verb} {thing} with the {('left', 'right')[self.hand]} hand"


@dataclass(frozen=True, slots=True)
class State:
    """A scene at T times: person, thing, its centre [T, 3], the head camera's line of sight [T, 3] and roll [T]."""

    posture: Posture
    stance: Stance
    centre: Floats
    sight: Floats
    roll: Floats


def sample_subject(rng: np.random.Generator) -> Subject:
    """A random person in a random room."""
    figure = sample_figure(rng)
    room = sample_room(rng, figure.hip + float(rng.uniform(0.17, 0.23) if figure.seated else rng.uniform(0.06, 0.12)))
    clutter = []
    for _ in range(int(rng.integers(0, 3))):
        x = float(rng.choice([-1, 1]) * rng.uniform(0.36, room.reach - 0.08))
        clutter.append((sample_thing(rng), vec(x, rng.uniform(0.35, room.far - 0.1), room.height)))
    angle = float(rng.choice([-1, 1]) * rng.uniform(0.4, 1.0))
    distance = float(rng.uniform(1.75, 2.15))
    target = vec(0.0, 0.22, figure.hip + rng.uniform(0.34, 0.39))
    rise = float(rng.uniform(0.6, 0.95))
    return Subject(
        figure=figure,
        room=room,
        clutter=tuple(clutter),
        right_handed=bool(rng.random() < 0.8),
        speed=float(np.exp(rng.normal(0, 0.12))),
        amplitude=float(np.exp(rng.normal(0, 0.1))),
        exo_from=target + vec(distance * np.sin(angle), distance * np.cos(angle), rise),
        exo_to=target,
        exo_field=float(rng.uniform(0.5, 0.57)),
        ego_field=float(rng.uniform(0.95, 1.15)),
    )


def sample_scene(rng: np.random.Generator, action: str | None, subject: Subject) -> Scene:
    """A random performance of `action` by a person; None: nothing but idling."""
    room = subject.room
    hand = int(subject.right_handed ^ (rng.random() < 0.15))
    side = 1.0 if hand else -1.0
    thing = sample_thing(rng, action)
    # The middle of the way of what is pushed; what is picked up stands there.
    place = vec(side * 0.08 + rng.uniform(-0.12, 0.12), rng.uniform(0.36, 0.47), room.height)
    rests = np.array(
        [[sign * rng.uniform(0.17, 0.25), rng.uniform(0.24, 0.29), room.height + 0.035] for sign in (-1, 1)], np.float32
    )
    if subject.figure.seated and rng.random() < 0.4:  # the other hand lies in the lap
        rests[1 - hand] = (-side * 0.12, 0.22, subject.figure.hip + 0.09)
    return Scene(
        subject=subject,
        action=action,
        duration=float(np.clip(rng.uniform(1.6, 2.3) / subject.speed, 1.4, 2.7)),
        hand=hand,
        thing=thing,
        place=place,
        grasp=_sample_grasp(rng, action, thing, side),
        rests=rests,
        variation=sample_variation(rng, subject.amplitude),
        gaze=_sample_gaze(rng),
        sway=sample_wave(rng, (0.012, 0.012), 0.15, 0.7),
        drift=sample_wave(rng, (0.006,) * 6, 0.3, 1.5),
        fidget=sample_wave(rng, (0.05, 0.04, 0.015) * 2, 0.3, 0.9),
        gain=np.exp(rng.normal(0, 0.06, (2, 3))).astype(np.float32),
        bias=rng.normal(0, 0.015, (2, 3)).astype(np.float32),
        noise=float(rng.uniform(0.006, 0.02)),
        seed=int(rng.integers(2**63)),
    )


def _sample_grasp(rng: np.random.Generator, action: str | None, thing: Thing, side: float) -> Floats:
    angle, height, above = rng.uniform(-1.5, 0.3), rng.uniform(0.5, 0.8), rng.random() < 0.4
    kind = "push" if action is None else family(action)
    if kind in {"screw", "stir", "tap"} or (kind == "pick up" and above):
        return vec(0, 0, thing.top + 0.028)
    if kind == "tilt up":
        height = 0.9
    away = thing.radius * (1.15 if thing.make == "box" else 1.0) + 0.028
    turn = -thing.yaw
    x, y = side * np.cos(angle) * away, np.sin(angle) * away
    return vec(x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), height * thing.height)


def _sample_gaze(rng: np.random.Generator) -> Gaze:
    away = np.array([rng.choice([-1, 1]) * rng.uniform(0.5, 0.9), rng.uniform(-0.2, 0.45)])
    misses, throughout = rng.random() < MISSES, rng.random() < 0.5
    return Gaze(
        offset=(rng.normal(0, (0.1, 0.09)) + (away if misses and throughout else 0)).astype(np.float32),
        glance=(away if misses and not throughout else away * 0).astype(np.float32),
        when=float(rng.uniform(0.3, 0.7)),
        length=float(rng.uniform(0.3, 0.45)),
        follow=float(rng.uniform(0.0, 0.6)),
        shake=sample_wave(rng, (0.022, 0.022, 0.03), 0.3, 2.5, waves=4),
    )


def state(scene: Scene, times: Floats) -> State:
    """Where everything is at `times` [T], in seconds from the performance's begin."""
    times = np.asarray(times, np.float32)
    moved = motion(scene.action, times / scene.duration, scene.variation)
    lifted = smooth(moved.shift[:, 2] / 0.06)[:, None] if _lifts(scene) else np.zeros((len(times), 1), np.float32)
    drift = scene.drift.at(times)
    stance = stand(scene.thing, scene.place + lifted * drift[:, :3], moved)
    reach = _reach(scene, times, moved, stance, drift)
    figure, sway = scene.subject.figure, scene.sway.at(times)
    pelvis, chest, _ = torso(figure, sway, reach)
    eyes = chest + figure.scale * (vec(0, 0.13, 0.28) + 0.4 * (chest - pelvis) * vec(1, 1, 0))
    sight, roll = _look(scene, times, moved, eyes)
    posture = pose(figure, sway, reach, sight)
    return State(posture, stance, stance.place(vec(0, 0, scene.thing.height / 2)), sight, roll)


def _lifts(scene: Scene) -> bool:
    return scene.action is not None and family(scene.action) in {"pick up", "shake"}


def _reach(scene: Scene, times: Floats, moved: Motion, stance: Stance, drift: Floats) -> Reach:
    """Palms and their directions; the acting palm goes from its rest to the grasp and moves with the thing."""
    figure, hand = scene.subject.figure, scene.hand
    idle = np.ones_like(times) if scene.action is None else np.maximum(-times, times - scene.duration) / 0.5
    fidget = scene.fidget.at(times) * (0.15 + 0.85 * smooth(idle))[:, None]
    fidget[:, 2::3] = np.abs(fidget[:, 2::3])  # not into the table
    zero = np.zeros_like(moved.rise)
    ring = np.stack((0.02 * np.sin(-moved.orbit), 0.02 * np.cos(moved.orbit), zero), -1) * (moved.orbit != 0)[:, None]
    grasp = scene.grasp + np.stack((zero, zero, moved.rise + moved.release), -1)
    held = stance.place(grasp) - ring
    grip = moved.grip[:, None]
    palms, approach = [], []
    for side, sign in enumerate((-1.0, 1.0)):
        palm = scene.rests[side] + drift[:, 3:] * vec(1, 1, 0.3) + fidget[:, 3 * side : 3 * side + 3]
        if side == hand:
            hop = np.stack((zero, zero, 0.24 * moved.grip * (1 - moved.grip)), -1)
            palm = palm + grip * (held - palm) + hop
        shoulder = vec(sign * figure.width, 0.05, figure.hip + 0.5 * figure.scale)
        way = unit((palm - shoulder) * vec(1, 1, 0))
        if side == hand:
            way = _swing(way, 0.75 * moved.orbit * moved.grip)
        palms.append(palm.astype(np.float32))
        approach.append(unit(way + vec(0, 0, -0.25) * (1 + grip)))
    return Reach((palms[0], palms[1]), (approach[0], approach[1]), hand, stance.place(scene.grasp * 0.5), moved.grip)


def _swing(vectors: Floats, angle: Floats) -> Floats:
    """Vectors [T, 3] turned by angles [T] about the vertical."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[:, 0], vectors[:, 1]
    return np.stack((x * cos - y * sin, x * sin + y * cos, vectors[:, 2]), -1).astype(np.float32)


def _look(scene: Scene, times: Floats, moved: Motion, eyes: Floats) -> tuple[Floats, Floats]:
    """The head camera's line of sight [T, 3] and roll [T] from the eyes [T, 3]."""
    gaze = scene.gaze
    way = scene.place + vec(0, 0, 0.04) + gaze.follow * moved.shift - eyes
    shake = gaze.shake.at(times)
    window = ((times / scene.duration - gaze.when) / gaze.length) ** 2
    turn = gaze.offset + gaze.glance * np.exp(-(window**2))[:, None] + shake[:, :2]
    yaw = np.arctan2(way[:, 0], way[:, 1])
    pitch = np.arctan2(way[:, 2], np.hypot(way[:, 0], way[:, 1])) + turn[:, 1]
    pitch = np.clip(pitch, -1.35, 0.6)
    ahead = np.stack((np.cos(pitch) * np.sin(yaw), np.cos(pitch) * np.cos(yaw), np.sin(pitch)), -1)
    right = np.stack((np.cos(yaw), -np.sin(yaw), np.zeros_like(yaw)), -1)
    # In the camera's own axes: a head that looks down at the table turns its picture as far as one that looks ahead.
    sight = np.cos(turn[:, :1]) * ahead + np.sin(turn[:, :1]) * right
    return sight.astype(np.float32), shake[:, 2]
