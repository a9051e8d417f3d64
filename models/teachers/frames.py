"""Frame teachers: an image network that sees each frame on its own (DINOv2, SigLIP, Depth Anything, CLIP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...pipeline.poses import Pose
from . import hands
from .base import Teacher
from .config import TeacherConfig, View
from .networks import image_feature, load_image_network
from .preprocess import check_frames, crop_squares, for_network
from .weights import check_dim

USUAL_SIZE = {"dinov2": 224, "depth_anything": 518}
"""The sides at which DINOv2 and Depth Anything are run, whatever the size of their position table."""


class FrameTeacher(Teacher):
    """One feature row per frame; with `crop: hands`, of a square round the forearms."""

    reads = "frames"
    prepares_on_device = True

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        network = load_image_network(key, config)
        self._layers = _layers(key, config, network.architecture)
        dim = network.dim * max(1, len(self._layers))
        check_dim(key, config, dim)
        super().__init__(key, view, config, network.module, dim, network.weights_hash)
        self._architecture, self._commit = network.architecture, network.commit
        size = config.image_size or USUAL_SIZE.get(config.network, network.trained_size)
        # SigLIP's own 384 is no multiple of 14 (the border is dropped), so the trained size is always fine.
        if size % network.patch and size != network.trained_size:
            raise ConfigError(f"teacher {key!r}: image_size {size} is no multiple of the patch, {network.patch} pixels")
        self._preprocess = for_network(config.network, size, network.patch)
        self.needs_pose = config.crop == "hands"

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """uint8 [T, H, W, 3] -> uint8 [T, 3, h, w]; see `Teacher.prepare`."""
        frames = self._checked_frames(frames)
        if not self.needs_pose:
            return self._preprocess.frames(frames)
        check_frames(frames)
        squares = hands.hand_squares(self._checked_pose(pose), self.frames, frames.shape[1], frames.shape[2])
        return torch.cat([self._preprocess.frames(square) for square in crop_squares(frames, squares)])

    def forward(self, batch: Tensor) -> Tensor:
        """uint8 [B, T, 3, h, w] -> [B, T, dim]; all frames are one batch of images."""
        images = self._preprocess.normalise(batch.flatten(0, 1))
        feature: Tensor = image_feature(self.config.network, self.config.output, self.module, images, self._layers)
        return feature.view(*batch.shape[:2], -1)

    def architecture(self) -> dict[str, Any]:
        return dict(self._architecture)

    def preprocessing(self) -> dict[str, Any]:
        settings = self._preprocess.fingerprint()
        if self.needs_pose:
            settings["crop"] = {
                "of": "forearms",
                "min_score": hands.MIN_SCORE,
                "margin": hands.MARGIN,
                "smallest": hands.SMALLEST,
                "window": hands.WINDOW,
            }
        return settings

    def fingerprint(self) -> dict[str, Any]:
        """Adds the chosen layers, where there are any."""
        return {**super().fingerprint(), **({"layers": list(self._layers)} if self._layers else {})}

    def describe(self) -> dict[str, Any]:
        """Adds the hub's commit of the weights, where they came from there."""
        return {**super().describe(), "commit": self._commit}


def _layers(key: str, config: TeacherConfig, architecture: dict[str, Any]) -> tuple[int, ...]:
    """The configured blocks counted from 0; none where the last one alone is meant."""
    if config.layers is None:
        return ()
    depth = int(architecture["num_hidden_layers"])
    layers = tuple(layer + depth if layer < 0 else layer for layer in config.layers)
    if not all(0 <= layer < depth for layer in layers) or len(set(layers)) < len(layers):
        raise ConfigError(
            f"teacher {key!r}: layers {config.layers}: the network has the blocks 0 to {depth - 1} "
            f"(or -{depth} to -1), and each can be taken once"
        )
    return () if layers == (depth - 1,) else layers
