"""A teacher for tests: the mean colour of each frame, as slow as UNIEGO_TEST_SECONDS a clip says.

Black clips fail (their features are not finite), or kill the process where UNIEGO_TEST_DEADLY is set; where the file
that UNIEGO_TEST_CURE names exists they are clips like any other.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from uniego.models.teachers import Teacher, TeacherConfig, View


class ColourTeacher(Teacher):
    reads = "frames"

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        super().__init__(key, view, config, nn.AdaptiveAvgPool2d(1), dim=3)

    def prepare(self, frames: Tensor | None = None, pose: object = None) -> Tensor:
        return self._checked_frames(frames).permute(0, 3, 1, 2).contiguous()

    def preprocessing(self) -> dict[str, Any]:
        return {"layout": "TCHW"}

    def architecture(self) -> dict[str, Any]:
        return {}

    def forward(self, batch: Tensor) -> Tensor:
        time.sleep(float(os.environ.get("UNIEGO_TEST_SECONDS", "0")) * len(batch))
        colours = self.module(batch.flatten(0, 1).float()).flatten(1).view(*batch.shape[:2], 3)
        black = colours.amax(dim=(1, 2)) < 2
        if black.any() and not Path(os.environ.get("UNIEGO_TEST_CURE", "/nowhere")).exists():
            if os.environ.get("UNIEGO_TEST_DEADLY"):
                os.kill(os.getpid(), signal.SIGKILL)
            colours[black] = torch.nan
        return colours
