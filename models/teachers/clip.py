"""Clip teachers: a video network that sees all frames together (TimeSformer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError, UsageError
from ...pipeline.poses import Pose
from ..release import check_names, geometry_from_state, read_release_checkpoint, read_safetensors
from ..timesformer import TimeSformer
from .base import Teacher
from .config import TeacherConfig, View
from .preprocess import for_network
from .sources import WeightsSource
from .weights import required_source, state_hash

_FIELDS = ("image_size", "patch_size", "num_frames", "width", "depth", "heads", "num_classes")


class ClipTeacher(Teacher):
    """TimeSformer's CLS token after the final norm: one row per clip.

    Loads checkpoints in the layout of the TimeSformer release (`.pyth`), and `.safetensors` of `TimeSformer`'s own
    names, whose metadata may state the number of `heads`; their classifier is not used.
    """

    reads = "clip"

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        source = required_source(key, config)
        model = _random(config, source) if source.kind == "random" else _released(source)
        self._geometry = {name: model.geometry[name] for name in _FIELDS}
        used = {
            name: value for name, value in model.state_dict().items() if not name.startswith(("head.", "proj_layer"))
        }
        super().__init__(key, view, config, model, self._geometry["width"], state_hash(used))
        size = config.image_size or self._geometry["image_size"]
        if size < self._geometry["patch_size"]:
            raise ConfigError(f"teacher {key!r}: image_size {size} is below one patch")
        self._preprocess = for_network("timesformer", size, self._geometry["patch_size"])

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """uint8 [T, H, W, 3] -> uint8 [T, 3, size, size]; see `Teacher.prepare`."""
        return self._preprocess.frames(self._checked_frames(frames))

    def forward(self, batch: Tensor) -> Tensor:
        """uint8 [B, T, 3, h, w] -> [B, 1, dim]."""
        images = self._preprocess.normalise(batch.flatten(0, 1))
        video = images.view(*batch.shape[:2], *images.shape[1:]).transpose(1, 2).contiguous()  # [B, 3, T, h, w]
        token: Tensor = self.module(video).token
        return token[:, None]

    def architecture(self) -> dict[str, Any]:
        return {name: value for name, value in self._geometry.items() if name != "num_classes"}

    def preprocessing(self) -> dict[str, Any]:
        return self._preprocess.fingerprint()


def _random(config: TeacherConfig, source: WeightsSource) -> TimeSformer:
    unknown = sorted(set(config.architecture) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"architecture: timesformer has {', '.join(_FIELDS)}, not {', '.join(unknown)}")
    wanted = {"num_frames": config.frames, **config.architecture}
    try:
        return TimeSformer(**wanted, drop_path=0.0, seed=source.seed)
    except (UsageError, TypeError) as error:
        raise ConfigError(f"architecture: {error}") from error


def _released(source: WeightsSource) -> TimeSformer:
    path, heads = Path(source.location).expanduser(), None
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        check_names(state, str(path))
        heads = int(metadata["heads"]) if metadata.get("heads", "").isdigit() else None
    else:
        state, _ = read_release_checkpoint(path)
    model = TimeSformer(**geometry_from_state(state, heads))
    model.load_state_dict(state)
    return model
