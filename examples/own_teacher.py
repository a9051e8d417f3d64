"""A teacher of your own: the mean colours of a frame's cells, as a feature of each frame.

Put the class into a module that Python finds (installed, or its folder in PYTHONPATH) and name it in run.yaml:

    teachers:
      ego_colour:
        network: own_teacher:ColourTeacher
        options: {grid: 4}

    PYTHONPATH=examples uniego extract-teachers --teacher ego_colour
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from uniego.errors import ConfigError
from uniego.models.teachers import Teacher, TeacherConfig, View
from uniego.pipeline.poses import Pose


class ColourTeacher(Teacher):
    """Mean red, green and blue of `grid` x `grid` cells (option `grid`, 4 by default): D = 3 * grid**2."""

    reads = "frames"  # each frame on its own, so that a clip has `frames` rows

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        self.grid = config.options.get("grid", 4)
        if not isinstance(self.grid, int) or self.grid < 1:
            raise ConfigError(f"teachers.{key}.options.grid: a whole number of at least 1, not {self.grid!r}")
        # A network with weights goes where nn.AdaptiveAvgPool2d is; its state is hashed into the fingerprint.
        super().__init__(key, view, config, nn.AdaptiveAvgPool2d(self.grid), dim=3 * self.grid**2)

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """uint8 [T, H, W, 3] -> uint8 [T, 3, H, W]; runs on the CPU, in threads."""
        return self._checked_frames(frames).permute(0, 3, 1, 2).contiguous()

    def forward(self, batch: Tensor) -> Tensor:
        """uint8 [B, T, 3, H, W] -> [B, T, D]; runs on the device."""
        cells = self.module(batch.flatten(0, 1).to(torch.float32) / 255)  # [B * T, 3, grid, grid]
        return cells.flatten(1).view(*batch.shape[:2], -1)

    def preprocessing(self) -> dict[str, Any]:
        """What `prepare` does, for the fingerprint."""
        return {"layout": "TCHW"}

    def architecture(self) -> dict[str, Any]:
        """What the weights do not tell, for the fingerprint."""
        return {"grid": self.grid}
