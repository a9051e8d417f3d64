"""Clip teachers: a video network that sees all frames together (TimeSformer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError, UsageError, WeightsError
from ...pipeline.poses import Pose
from ..release import check_names, geometry_from_state, read_release_checkpoint, read_safetensors
from ..timesformer import TimeSformer
from .base import Teacher
from .config import UNTOLD, TeacherConfig, View
from .hub_timesformer import load_hub_timesformer
from .preprocess import for_network
from .sources import WeightsSource
from .weights import check_dim, checked_hash, required_source

_FIELDS = ("image_size", "patch_size", "num_frames", "width", "depth", "heads", "num_classes")


class ClipTeacher(Teacher):
    """TimeSformer's CLS token after the final norm: one row per clip.

    Loads checkpoints in the layout of the TimeSformer release (`.pyth`), `.safetensors` of `TimeSformer`'s own
    names, whose metadata may state the number of `heads`, and transformers' TimesformerModel from a folder or the
    hub; their classifier is not used. All become our network, which takes any number of frames.
    """

    reads = "clip"
    prepares_on_device = True

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        source = required_source(key, config)
        model, self._commit = _load(key, config, source)
        self._geometry = {name: model.geometry[name] for name in _FIELDS}
        used = {
            name: value for name, value in model.state_dict().items() if not name.startswith(("head.", "proj_layer"))
        }
        check_dim(key, config, self._geometry["width"])
        super().__init__(key, view, config, model, self._geometry["width"], checked_hash(key, source, used))
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

    def describe(self) -> dict[str, Any]:
        """Adds the hub's commit of the weights, where they came from there."""
        return {**super().describe(), "commit": self._commit}


def _load(key: str, config: TeacherConfig, source: WeightsSource) -> tuple[TimeSformer, str | None]:
    if source.kind == "random":
        return _random(config, source), None
    if source.kind == "file":
        return _released(config, source), None
    return load_hub_timesformer(key, source)


def _random(config: TeacherConfig, source: WeightsSource) -> TimeSformer:
    unknown = sorted(set(config.architecture) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"architecture: timesformer has {', '.join(_FIELDS)}, not {', '.join(unknown)}")
    wanted = {"num_frames": config.frames, **config.architecture}
    try:
        return TimeSformer(**wanted, drop_path=0.0, seed=source.seed)
    except (UsageError, TypeError) as error:
        raise ConfigError(f"architecture: {error}") from error


def _released(config: TeacherConfig, source: WeightsSource) -> TimeSformer:
    path, heads = Path(source.location).expanduser(), config.architecture.get(UNTOLD["timesformer"])
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        check_names(state, str(path))
        if heads is None and metadata.get("heads", "").isdigit():
            heads = int(metadata["heads"])
    else:
        state, _ = read_release_checkpoint(path)
    try:
        model = TimeSformer(**geometry_from_state(state, heads))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}; heads: set architecture: {{heads: <number>}}") from error
    except UsageError as error:
        raise ConfigError(f"architecture: {error}") from error
    model.load_state_dict(state)
    return model
