"""Skeletons as the demo's data sets have them: ten frames a second, with the noise of a pose estimator."""

from __future__ import annotations

import numpy as np
from uniego.demo.dataset import FPS, noisy_joints
from uniego.pipeline.poses import Pose

SECONDS = (1.4, 2.7)  # how long a performance lasts


def estimated(joints: np.ndarray, rng: np.random.Generator, side: int) -> Pose:
    """A pose of exact joints [T, 17, 3] (x, y in pixels of a picture of `side`, 1 where seen) of a whole performance.

    How long the performance was is drawn anew, so that one clip gives skeletons of any speed.
    """
    frames = round(rng.uniform(*SECONDS) * FPS)
    picks = ((np.arange(frames) + 0.5) * len(joints) / frames).astype(int)
    return Pose(noisy_joints(joints[picks], rng, side)[None], (side, side))
