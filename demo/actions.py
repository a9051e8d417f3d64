"""What can be done with an object, as motion over the phase of the action in 0..1.

Eight actions are four opposing pairs. The second of each pair is the first run backwards in time, with a
variation of its own: single frames tell the pair, only their order tells which of the two it is. Four more are the same
forwards and backwards: for data sets with twelve actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Floats, smooth, vec

PAIRS = (("push", "pull"), ("pick up", "put down"), ("screw", "unscrew"), ("tilt up", "tilt down"))
ACTIONS = tuple(action for pair in PAIRS for action in pair)
"""Names of the demo's actions; the index in here is the label."""

SYMMETRIC = ("wipe", "stir", "shake", "tap")
"""Actions that run backwards as they run forwards."""

ALL_ACTIONS = (*ACTIONS, *SYMMETRIC)
"""Names of all twelve; the index in here is the label, the demo's eight keep theirs."""

VERBS = {
    "push": "pushes",
    "pull": "pulls",
    "pick up": "picks up",
    "put down": "puts down",
    "screw": "screws on the lid of",
    "unscrew": "unscrews the lid of",
    "tilt up": "tilts up",
    "tilt down": "tilts down",
    "wipe": "slides to and fro",
    "stir": "leads in circles",
    "shake": "shakes",
    "tap": "taps on",
}

_BACKWARD = {pair[1] for pair in PAIRS}
_FAMILY = {name: pair[0] for pair in PAIRS for name in pair} | {name: name for name in SYMMETRIC}
_OPPOSITE = {name: pair[1 - pair.index(name)] for pair in PAIRS for name in pair} | {name: name for name in SYMMETRIC}


@dataclass(frozen=True, slots=True)
class Variation:
    """How one performance differs from another. `amplitude` is a factor, `azimuth` the direction in radians (0: away
    from the person, positive: to the right), `reach` and `leave` the shares of time in which the hand comes and goes,
    `skew` bends the progress of what has a direction in time, `strokes` (1 or 2) counts the turns of a lid and, with
    some more, circles, shakes and knocks."""

    amplitude: float
    azimuth: float
    reach: float
    leave: float
    skew: float
    strokes: int


@dataclass(frozen=True, slots=True)
class Motion:
    """The state at T phases. `shift` float32 [T, 3] metres moves the object, `tilt` [T] radians leans it towards the
    azimuth `lean` about the edge of its base, `turn` [T] radians rotates the lid (seen from above, counter-clockwise)
    and `rise` [T] metres lifts it. `grip` [T] is 0 with the hand at rest, 1 with the hand on the object; `orbit` [T]
    radians carries the hand about the object's axis and `release` [T] metres lifts it off between two strokes."""

    shift: Floats
    tilt: Floats
    lean: float
    turn: Floats
    rise: Floats
    grip: Floats
    orbit: Floats
    release: Floats


def sample_variation(rng: np.random.Generator, amplitude: float = 1.0) -> Variation:
    """A random performance about a person's usual amplitude."""
    return Variation(
        amplitude=float(amplitude * rng.uniform(0.75, 1.2)),
        azimuth=float(rng.normal(0.0, 0.35)),
        reach=float(rng.uniform(0.14, 0.27)),
        leave=float(rng.uniform(0.14, 0.27)),
        skew=float(np.exp(rng.normal(0.0, 0.2))),
        strokes=int(rng.integers(1, 3)),
    )


def family(action: str) -> str:
    """The first action of the pair that `action` belongs to; a symmetric action is its own."""
    return _FAMILY[action]


def opposite(action: str) -> str:
    """What `action` is when it runs backwards: the other action of the pair; a symmetric action is itself."""
    return _OPPOSITE[action]


def motion(action: str | None, phase: Floats, variation: Variation) -> Motion:
    """The motion of an action at `phase` [T]; phases outside 0..1 hold the first or last state. None: nothing moves."""
    phase = np.clip(np.asarray(phase, np.float32), 0.0, 1.0)
    if action is None:
        return _motion(variation, phase * 0, phase * 0)
    if action in _BACKWARD:
        phase = 1.0 - phase
    return _FAMILIES[family(action)](phase, variation)


def _motion(variation: Variation, grip: Floats, progress: Floats, **parts: Floats) -> Motion:
    still = np.zeros_like(progress)
    return Motion(
        shift=parts.get("shift", np.zeros((len(progress), 3), np.float32)),
        tilt=parts.get("tilt", still),
        lean=variation.azimuth,
        turn=parts.get("turn", still),
        rise=parts.get("rise", still),
        grip=grip,
        orbit=parts.get("orbit", still),
        release=parts.get("release", still),
    )


def _progress(phase: Floats, variation: Variation, *, stays: bool = False) -> tuple[Floats, Floats, Floats]:
    """Grip, eased progress and plain progress of the part in which the object moves. `stays`: the hand never leaves."""
    last = 0.96 if stays else 1.0 - variation.leave
    grip = smooth(phase / variation.reach)
    if not stays:
        grip = grip * smooth((1.0 - phase) / variation.leave)
    plain = np.clip((phase - variation.reach) / (last - variation.reach), 0.0, 1.0)
    return grip, smooth(plain**variation.skew), plain


def _push(phase: Floats, variation: Variation) -> Motion:
    grip, progress, _ = _progress(phase, variation)
    way = vec(np.sin(variation.azimuth), np.cos(variation.azimuth), 0.0) * (0.21 * variation.amplitude)
    return _motion(variation, grip, progress, shift=(progress - 0.5)[:, None] * way)


def _pick_up(phase: Floats, variation: Variation) -> Motion:
    grip, progress, _ = _progress(phase, variation, stays=True)
    way = vec(0.25 * np.sin(variation.azimuth), -0.25, 1.0) * (0.2 * variation.amplitude)
    return _motion(variation, grip, progress, shift=progress[:, None] * way)


def _tilt_up(phase: Floats, variation: Variation) -> Motion:
    grip, progress, _ = _progress(phase, variation)
    return _motion(variation, grip, progress, tilt=(1.0 - progress) * np.float32(1.15 * min(variation.amplitude, 1.25)))


def _screw(phase: Floats, variation: Variation) -> Motion:
    """Clockwise strokes with the hand on the lid, which sinks; between them the hand comes back lifted."""
    grip, _, plain = _progress(phase, variation)
    at = plain * (variation.strokes - 1e-4)
    stroke, within = np.floor(at), at - np.floor(at)
    ahead = 1.0 if variation.strokes == 1 else 0.74  # share of a stroke in which the lid turns
    held, back = smooth(within / ahead), smooth((within - ahead) / (1.0 - ahead + 1e-6))
    back = np.where(stroke < variation.strokes - 1, back, 0.0).astype(np.float32)
    done = (stroke + held) / variation.strokes
    arc = 2.3 * variation.amplitude
    return _motion(
        variation,
        grip,
        plain,
        turn=-arc * variation.strokes * done,
        rise=(1.0 - done) * np.float32(0.05 * variation.amplitude),
        orbit=arc * (0.5 - held + back),
        release=np.sin(np.pi * back) * np.float32(0.035),
    )


def _to_and_fro(phase: Floats, variation: Variation) -> tuple[Floats, Floats, Floats]:
    """Grip, plain progress and the strength [T] of something repeated, which begins and ends as softly."""
    grip, _, plain = _progress(phase, variation)
    return grip, plain, smooth(plain / 0.2) * smooth((1.0 - plain) / 0.2)


def _wipe(phase: Floats, variation: Variation) -> Motion:
    """To one side, the other and back; its azimuth says how oblique, and which side is first."""
    grip, plain, strength = _to_and_fro(phase, variation)
    first = 1.0 if variation.azimuth >= 0 else -1.0
    way = vec(np.cos(variation.azimuth), -np.sin(variation.azimuth), 0.0) * (0.13 * variation.amplitude * first)
    return _motion(variation, grip, plain, shift=(strength * np.sin(3 * np.pi * plain))[:, None] * way)


def _stir(phase: Floats, variation: Variation) -> Motion:
    """Two or three circles on the table, leaning a little; its azimuth says which way round."""
    grip, plain, strength = _to_and_fro(phase, variation)
    angle = (plain - 0.5) * (2 * np.pi * (1 + variation.strokes) * (1.0 if variation.azimuth >= 0 else -1.0))
    circle = np.stack((np.sin(angle), np.cos(angle), np.zeros_like(plain)), -1)
    shift = circle * (strength * np.float32(0.065 * variation.amplitude))[:, None]
    return _motion(variation, grip, plain, shift=shift.astype(np.float32), tilt=strength * np.float32(0.3))


def _shake(phase: Floats, variation: Variation) -> Motion:
    """Lifted, shaken up and down three or four times and set down again."""
    grip, plain, _ = _to_and_fro(phase, variation)
    lifted = smooth(plain / 0.3) * smooth((1.0 - plain) / 0.3)
    wave = np.cos((plain - 0.5) * (2 * np.pi * (2 + variation.strokes))) * lifted
    height = (0.17 * lifted + 0.045 * wave) * np.float32(variation.amplitude)
    return _motion(variation, grip, plain, shift=height[:, None] * vec(0.0, -0.3, 1.0))


def _tap(phase: Floats, variation: Variation) -> Motion:
    """Three or four knocks on the top of what stands still."""
    grip, plain, _ = _to_and_fro(phase, variation)
    knocks = 0.5 - 0.5 * np.cos(plain * (2 * np.pi * (2 + variation.strokes)))
    return _motion(variation, grip, plain, release=knocks * np.float32(0.085 * variation.amplitude))


_FAMILIES = {
    "push": _push,
    "pick up": _pick_up,
    "screw": _screw,
    "tilt up": _tilt_up,
    "wipe": _wipe,
    "stir": _stir,
    "shake": _shake,
    "tap": _tap,
}
