"""The person: 17 joints in the order of COCO, moved by the acting hand, and the capsules around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import UP, Floats, dot, unit, vec
from .raster import Capsule

JOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip

JOINT_RADIUS = np.array(
    [0.03, 0.03, 0.03, 0.035, 0.035, 0.085, 0.085, 0.055, 0.055, 0.045, 0.045, 0.13, 0.13, 0.085, 0.085, 0.06, 0.06],
    np.float32,
)
"""How deep in the body a joint lies at most, in metres."""

BODY, HEAD, HAND, OTHER_HAND = 2, 3, 4, 7
"""Part numbers; `HAND` is the acting one."""

_PALM = 0.075


@dataclass(frozen=True, slots=True)
class Figure:
    """A person's measures in metres and colours [3]. `hip` is the hips' height; `seated` or standing."""

    scale: float
    width: float
    hip: float
    seated: bool
    upper_arm: float
    forearm: float
    skin: Floats
    cloth: Floats
    sleeve: Floats
    trousers: Floats
    hair: Floats


@dataclass(frozen=True, slots=True)
class Reach:
    """What the hands do: palm positions [T, 3] and the directions from wrist to palm [T, 3], by side (left, right).

    `touch` [T, 3] is what the acting hand's fingers point at, `grip` [T] how much they do.
    """

    palms: tuple[Floats, Floats]
    approach: tuple[Floats, Floats]
    acting: int
    touch: Floats
    grip: Floats


@dataclass(frozen=True, slots=True)
class Posture:
    """A posed person: `joints` [T, 17, 3], the `palms` and finger tips [T, 3] by side, and the head's axes."""

    joints: Floats
    palms: tuple[Floats, Floats]
    tips: tuple[Floats, Floats]
    chest: Floats
    head: Floats
    forward: Floats
    right: Floats
    up: Floats


def sample_figure(rng: np.random.Generator) -> Figure:
    """A random person."""
    scale, seated = float(rng.uniform(0.93, 1.07)), bool(rng.random() < 0.65)
    tone = rng.uniform(0.0, 1.0)
    skin = (1 - tone) * np.array([0.95, 0.76, 0.64]) + tone * np.array([0.42, 0.27, 0.19])
    cloth = rng.uniform(0.1, 0.85, 3)
    bare = rng.random() < 0.4
    return Figure(
        scale=scale,
        width=float(scale * rng.uniform(0.17, 0.195)),
        hip=float((0.5 if seated else 0.92) * scale),
        seated=seated,
        upper_arm=float(0.3 * scale * rng.uniform(0.95, 1.05)),
        forearm=float(0.27 * scale * rng.uniform(0.95, 1.05)),
        skin=skin.astype(np.float32),
        cloth=cloth.astype(np.float32),
        sleeve=(skin if bare else cloth * rng.uniform(0.75, 0.95)).astype(np.float32),
        trousers=rng.uniform(0.1, 0.45, 3).astype(np.float32),
        hair=(np.array([0.28, 0.19, 0.12]) * rng.uniform(0.3, 2.2)).astype(np.float32),
    )


def torso(figure: Figure, sway: Floats, reach: Reach) -> tuple[Floats, Floats, Floats]:
    """Middle of the hips [3], of the shoulders [T, 3] and the direction across the shoulders [T, 3] to the right.

    `sway` [T, 2] metres is small idle motion. The body leans and turns after the acting hand.
    """
    pelvis, spine = vec(0.0, 0.0, figure.hip), 0.5 * figure.scale
    hand = reach.palms[reach.acting]
    forth = 0.05 + 0.45 * np.maximum(hand[:, 1] - 0.36, 0.0) + sway[:, 1]
    aside = 0.25 * hand[:, 0] * np.clip(hand[:, 1] / 0.5, 0, 1) + sway[:, 0]
    rise = np.sqrt(np.maximum(spine**2 - forth**2 - aside**2, 0.01))
    chest = pelvis + np.stack((aside, forth, rise), -1)
    side = 1.0 if reach.acting else -1.0
    twist = side * 0.7 * (hand[:, 1] - 0.3)
    across = np.stack((np.cos(twist), np.sin(twist), np.zeros_like(twist)), -1)
    return pelvis, chest.astype(np.float32), across.astype(np.float32)


def pose(figure: Figure, sway: Floats, reach: Reach, gaze: Floats) -> Posture:
    """Pose a person whose eyes look along `gaze` [T, 3]."""
    pelvis, chest, across = torso(figure, sway, reach)
    head = chest + figure.scale * (vec(0, 0.03, 0.25) + 0.4 * (chest - pelvis) * vec(1, 1, 0))
    flat = unit(gaze * vec(1, 1, 0))
    forward = unit(unit(gaze) * 0.6 + flat * 0.4)  # the eyes and the tilted camera do the rest
    right = unit(np.cross(forward, vec(*UP)))
    up = np.cross(right, forward).astype(np.float32)
    joints = np.zeros((len(chest), 17, 3), np.float32)
    for joint, (x, y, z) in enumerate(
        [(0, 0.105, -0.02), (-0.033, 0.088, 0.025), (0.033, 0.088, 0.025), (-0.082, 0, 0), (0.082, 0, 0)]
    ):
        joints[:, joint] = head + figure.scale * (x * right + y * forward + z * up)
    palms, tips = [], []
    for side, sign in enumerate((-1.0, 1.0)):
        joints[:, 5 + side] = chest + sign * figure.width * across
        wrist, elbow = _bend(figure, joints[:, 5 + side], reach, side, sign)
        joints[:, 7 + side], joints[:, 9 + side] = elbow, wrist
        palm = wrist + _PALM * reach.approach[side]
        curl = unit(reach.touch - palm) * reach.grip[:, None] if side == reach.acting else np.float32(0.0)
        tips.append((palm + 0.07 * unit(reach.approach[side] + 1.2 * curl)).astype(np.float32))
        palms.append(palm.astype(np.float32))
        joints[:, 11 + side] = pelvis + vec(sign * 0.095 * figure.scale, 0, 0)
        knee, ankle = _leg(figure, sign)
        joints[:, 13 + side], joints[:, 15 + side] = knee, ankle
    return Posture(joints, (palms[0], palms[1]), (tips[0], tips[1]), chest, head, forward, right, up)


def _bend(figure: Figure, shoulder: Floats, reach: Reach, side: int, sign: float) -> tuple[Floats, Floats]:
    """Wrist and elbow [T, 3] of an arm with two links; a wrist out of reach comes as near as the arm allows."""
    upper, lower = figure.upper_arm, figure.forearm
    way = reach.palms[side] - _PALM * reach.approach[side] - shoulder
    distance = np.sqrt(dot(way, way))[:, None]
    along = way / np.maximum(distance, 1e-6)
    distance = np.clip(distance, abs(upper - lower) + 0.02, 0.995 * (upper + lower))
    foot = (distance**2 + upper**2 - lower**2) / (2 * distance)
    out = np.sqrt(np.maximum(upper**2 - foot**2, 0.0))
    hint = vec(sign * 0.75, -0.25, -0.65)
    bend = unit(hint - dot(np.broadcast_to(hint, along.shape), along)[:, None] * along)
    return shoulder + along * distance, shoulder + along * foot + bend * out


def _leg(figure: Figure, sign: float) -> tuple[Floats, Floats]:
    if figure.seated:
        knee = vec(sign * 0.13 * figure.scale, 0.42 * figure.scale, figure.hip)
        return knee, vec(sign * 0.13 * figure.scale, 0.36 * figure.scale, 0.09)
    return vec(sign * 0.11, 0.02, 0.5 * figure.scale), vec(sign * 0.12, -0.03, 0.09)


def capsules(figure: Figure, posture: Posture, acting: int, *, with_head: bool) -> list[Capsule]:
    """The body's capsules; a head camera leaves out the head that it sits on."""
    joints, s = posture.joints, figure.scale
    hips, chest = (joints[:, 11] + joints[:, 12]) / 2, posture.chest

    def limb(a: Floats, b: Floats, radius: float, colour: Floats, part: int = BODY) -> Capsule:
        return Capsule(a.astype(np.float32), b.astype(np.float32), radius * s, colour, part)

    belly = hips + vec(0, 0, 0.02)
    parts = [
        limb(belly, chest - 0.25 * (chest - belly), 0.135, figure.cloth),
        limb(joints[:, 5], joints[:, 6], 0.075, figure.cloth),
    ]
    for side in (0, 1):
        shoulder, elbow, wrist = (joints[:, k + side] for k in (5, 7, 9))
        hip, knee, ankle = (joints[:, k + side] for k in (11, 13, 15))
        part = HAND if side == acting else OTHER_HAND
        palm, tip = posture.palms[side], posture.tips[side]
        thumb = palm + 0.045 * unit(tip - palm) + (0.03 if side == 0 else -0.03) * posture.right
        parts += [
            limb(shoulder, elbow, 0.05, figure.cloth),
            limb(elbow, wrist, 0.037, figure.sleeve),
            limb(wrist, palm, 0.033, figure.skin, part),
            limb(palm, tip, 0.024, figure.skin * 0.95, part),
            limb(palm, thumb, 0.017, figure.skin * 0.9, part),
            limb(hip, knee, 0.08, figure.trousers),
            limb(knee, ankle, 0.055, figure.trousers),
        ]
    if with_head:
        parts += _head(figure, posture)
    return parts


def _head(figure: Figure, posture: Posture) -> list[Capsule]:
    joints, s, head, up = posture.joints, figure.scale, posture.head, posture.up

    def ball(centre: Floats, radius: float, colour: Floats) -> Capsule:
        centre = centre.astype(np.float32)
        return Capsule(centre, centre, radius * s, colour, HEAD)

    skull = Capsule(head + 0.02 * s * up, head - 0.045 * s * up, 0.083 * s, figure.skin, HEAD)
    neck = Capsule(posture.chest, head, 0.05 * s, figure.skin * 0.92, HEAD)
    hair = ball(head + s * (0.042 * up - 0.025 * posture.forward), 0.092, figure.hair)
    dark = vec(0.08, 0.06, 0.06)
    details = [ball(joints[:, 0], 0.02, figure.skin * 0.85), *(ball(joints[:, k], 0.014, dark) for k in (1, 2))]
    return [neck, skull, hair, *details, *(ball(joints[:, k], 0.022, figure.skin * 0.9) for k in (3, 4))]
