"""Skeletons as a network in training sees them: frames drawn anew in every epoch, or those that extraction takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..models.teachers.skeleton import SkeletonTeacher
from ..models.teachers.skeletons import draw_frames
from ..pipeline.clips import Clip
from ..pipeline.poses import Pose
from ..pipeline.randomness import clip_stream
from .batches import SINGLE, Protocol
from .shard_work import clip_pose


@dataclass(frozen=True)
class SkeletonReader:
    """Reads the skeletons of clips the way a skeleton teacher sees them. Picklable.

    `teacher` prepares them, its weights do not matter; `scale` is the most by which an axis is stretched or shrunk in
    training; `backend` opens the videos that skeletons were taken from, for their frame rate and size.
    """

    teacher: SkeletonTeacher
    scale: float
    backend: str
    seed: int

    def train(self, clip: Clip, epoch: int) -> Tensor:
        """Drawn frames of the skeleton, stretched: float32 [M, T, V, C]. Raises `PoseError`."""
        rng = clip_stream(self.seed, epoch, clip.clip_id, "skeleton")
        stretch = (1.0 + self.scale * rng.uniform(-1.0, 1.0, 3)).astype(np.float32)
        points = draw_frames(self.teacher.points(self._pose(clip)), self.teacher.config.pose_frames, rng)
        axes = self.teacher.dims  # a score is not stretched
        return torch.from_numpy(np.concatenate([points[..., :axes] * stretch[:axes], points[..., axes:]], axis=-1))

    def test(self, clip: Clip, protocol: Protocol = SINGLE) -> Tensor:
        """What extraction gives the network: float32 [1, M, T, V, C]. Raises `PoseError`."""
        if protocol != SINGLE:
            raise UsageError(f"a skeleton is looked at once, not as {protocol.views} views of {protocol.crops} crops")
        return self.teacher.prepare(pose=self._pose(clip))[None]

    def _pose(self, clip: Clip) -> Pose:
        return clip_pose(clip, self.teacher.view, self.backend)
