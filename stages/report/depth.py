"""Depth pictures of frames by the run's own depth teachers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import UniegoError
from ...models.teachers import TeacherConfig, teacher_view
from ...models.teachers.depth import depth_maps, depth_picture, load_depth_network
from ...pipeline.clips import View
from ...pipeline.progress import say
from ...pipeline.rundir import Run
from ..compute import resolve_device

_SIZE = 518
_V2_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}  # which an official file of V2 does not say


class DepthPictures:
    """Networks are loaded when the first picture is asked for, once per set of weights."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._networks: dict[str, Any] = {}

    def of(self, view: View, frames: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8] | None, str]:
        """Pictures uint8 [n, h, w, 3] of frames uint8 [n, H, W, 3], and by which teacher; None, and why there are none.

        The view's own depth teacher draws them, or the other view's.
        """
        named = [(key, c) for key, c in self._run.config.teachers.items() if c.network == "depth_anything"]
        if not named:
            return None, "the run has no depth teacher"
        key, config = min(named, key=lambda pair: teacher_view(*pair) != view)
        network = self._network(key, config)
        if isinstance(network, str):
            return None, network
        maps = depth_maps(network, torch.from_numpy(frames), config.image_size or _SIZE)
        return depth_picture(maps).numpy(), key

    def _network(self, key: str, config: TeacherConfig) -> Any:
        """The network, or why there is none."""
        weights = str(config.weights)
        if weights not in self._networks:
            say(f"depth pictures: loading {weights}")
            try:
                network = load_depth_network(key, config, _blocks(config))
                self._networks[weights] = network.to(resolve_device(self._run.config.compute))
            except (UniegoError, OSError) as error:
                self._networks[weights] = str(error)
        return self._networks[weights]


def _blocks(config: TeacherConfig) -> Sequence[int] | None:
    """Blocks that the head of an official file of V2 reads, told by its published name; None: the network's own."""
    name = str(config.weights).lower()
    if not (name.startswith("file:") and "v2" in name):
        return None
    return _V2_BLOCKS[24 if "vitl" in name else 12]
