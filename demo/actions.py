"""What can be done with an object, as motion over the phase of the action in 0..1.

The eight actions are four opposing pairs. The second of each pair is the first run backwards in time, with a
variation of its own: single frames tell the pair, only their order tells which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Floats, smooth, vec

PAIRS = (("push", "pull"), ("pick up", "put down"), ("screw", "unscrew"), ("tilt up", "tilt down"))
ACTIONS = tuple(action for pair in PAIRS for action in pair)
"""Names of the actions; the index in here is the label."""

VERBS = {
    "push": "pushes",
    "pull": "pulls",
    "pick up": "picks up",
    "put down": "puts down",
    "screw": "screws on the lid of",
    "unscrew": "unscrews the lid of",
    "tilt up": "tilts up",
    "tilt down": "tilts down",
}

_FORWARD = {name: index == 0 for pair in PAIRS for index, name in enumerate(pair)}
_FAMILY = {name: pair[0] for pair in PAIRS for name in pair}


@dataclass(frozen=True, slots=True)
class Variation:
    """How one performance differs from another. `amplitude` is a factor, `azimuth` the direction in radians (0: away
    from the person, positive: to the right), `reach` and `leave` the shares of time in which the hand comes and goes,
    `skew` bends the progress in time, `strokes` counts the turns of a lid."""

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
    """The first action of the pair that `action` belongs to."""
    return _FAMILY[action]


def opposite(action: str) -> str:
    """The other action of the pair."""
    return next(pair[1 - pair.index(action)] for pair in PAIRS if action in pair)


def motion(action: str | None, phase: Floats, variation: Variation) -> Motion:
    """The motion of an action at `phase` [T]; phases outside 0..1 hold the first or last state. None: nothing moves."""
    phase = np.clip(np.asarray(phase, np.float32), 0.0, 1.0)
    if action is None:
        return _motion(variation, phase * 0, phase * 0)
    if not _FORWARD[action]:
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


_FAMILIES = {"push": _push, "pick up": _pick_up, "screw": _screw, "tilt up": _tilt_up}
