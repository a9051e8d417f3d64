"""Small vector helpers. Arrays are float32; world axes are x right, y forward (as the person sits), z up, in metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]
UP = (0.0, 0.0, 1.0)


def vec(*values: float) -> Floats:
    """A float32 vector."""
    return np.array(values, np.float32)


def unit(vectors: Floats) -> Floats:
    """Vectors [..., 3] at length 1; a zero vector stays zero."""
    length = np.sqrt((vectors * vectors).sum(-1, keepdims=True))
    result: Floats = (vectors / np.maximum(length, 1e-9)).astype(np.float32)
    return result


def smooth(x: Floats) -> Floats:
    """Eases from 0 at x <= 0 to 1 at x >= 1 with a flat start and end."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def rotation(axis: Floats, angle: Floats) -> Floats:
    """Rotation matrices [T, 3, 3] by `angle` [T] radians about the unit vector `axis` [3] (Rodrigues' formula)."""
    x, y, z = (float(value) for value in axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], np.float32)
    angle = np.asarray(angle, np.float32)[:, None, None]
    turned: Floats = np.eye(3, dtype=np.float32) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    result: Floats = turned.astype(np.float32)
    return result


def dot(a: Floats, b: Floats) -> Floats:
    """Scalar products over the last axis."""
    return np.asarray((a * b).sum(-1), np.float32)


@dataclass(frozen=True, slots=True)
class Wave:
    """A wandering value: a sum of slow sinusoids. `amplitude`, `phase` are [K, D], `rate` is [K] in Hz."""

    amplitude: Floats
    phase: Floats
    rate: Floats

    def at(self, times: Floats) -> Floats:
        """The value at times [T] in seconds, float32 [T, D]."""
        angle = 2 * np.pi * times[:, None, None] * self.rate[:, None] + self.phase  # [T,K,D]
        return np.asarray((self.amplitude * np.sin(angle)).sum(1), np.float32)


def sample_wave(rng: np.random.Generator, size: tuple[float, ...], low: float, high: float, waves: int = 3) -> Wave:
    """A wave whose D = len(size) values have about the standard deviations `size`, with rates low..high Hz."""
    share = rng.dirichlet(np.ones(waves), len(size)).T  # [K,D]
    return Wave(
        amplitude=(np.sqrt(2.0 * share) * np.array(size)).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, share.shape).astype(np.float32),
        rate=np.exp(rng.uniform(np.log(low), np.log(high), waves)).astype(np.float32),
    )
