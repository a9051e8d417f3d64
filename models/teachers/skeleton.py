"""Skeleton teachers: a graph network over the clip's body joints (ST-GCN, ST-GCN++)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from ...pipeline.poses import Keypoints, Pose, PoseError
from ..graphs import GRAPHS, graph_of
from ..stgcn import STANDARD_WIDTHS, STGCN, Variant, read_pyskl_checkpoint
from .base import Teacher
from .config import TeacherConfig, View
from .skeletons import PERSONS, normalise_2d, normalise_3d, pad_persons, sample_frames
from .sources import WeightsSource
from .weights import required_source, state_hash

SPATIAL = ("nturgb+d",)  # layouts recorded in three dimensions
_FIELDS = ("variant", "base_width", "stages", "inflate", "classes")


class SkeletonTeacher(Teacher):
    """ST-GCN's pooled output: mean over frames and joints, then over two persons; one row per clip.

    Loads PYSKL's `.pth` files (joint modality), or their tensors as `.safetensors`; the classifier is not used.
    Poses are prepared as PYSKL does in testing, except for its ten random samplings: here one, at the centres of
    equal parts.
    """

    reads = "skeleton"
    needs_pose = True

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        source = required_source(key, config)
        model = _random(config, source) if source.kind == "random" else _from_file(source)
        self._model = model
        graph = config.graph or graph_of(model.joints)
        if graph is not None and GRAPHS[graph].joints != model.joints:
            raise ConfigError(
                f"teacher {key!r}: graph {graph} has {GRAPHS[graph].joints} joints, {source} {model.joints}"
            )
        self._graph = graph
        used = {name: value for name, value in model.state_dict().items() if not name.startswith("cls_head.")}
        super().__init__(key, view, config, model, model.widths[-1], state_hash(used))

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """Keypoints [M, T, V, 3] -> float32 [2, pose_frames, V, C]; see `Teacher.prepare`."""
        pose = self._checked_pose(pose)
        joints, channels = pose.keypoints.shape[2], self._model.channels
        if joints != self._model.joints:
            message = f"teacher {self.key!r} wants {self._model.joints} joints, the skeleton has {joints}"
            raise PoseError("unreadable", pose.path, message)
        points = self._normalised(pose)
        points = sample_frames(pad_persons(points), self.config.pose_frames)
        return torch.from_numpy(np.ascontiguousarray(points[..., :channels]))

    def _normalised(self, pose: Pose) -> Keypoints:
        if self._graph in SPATIAL:
            return normalise_3d(pose.keypoints)
        return normalise_2d(pose)

    def forward(self, batch: Tensor) -> Tensor:
        """float32 [B, M, T, V, C] -> [B, 1, dim]."""
        feature: Tensor = self.module(batch).feature
        return feature[:, None]

    def architecture(self) -> dict[str, Any]:
        model = self._model
        return {
            "variant": model.variant,
            "graph": self._graph,
            "widths": list(model.widths),
            "strides": list(model.strides),
            "joints": model.joints,
            "channels": model.channels,
        }

    def preprocessing(self) -> dict[str, Any]:
        return {
            "normalisation": "3d" if self._graph in SPATIAL else "2d",
            "frames": self.config.pose_frames,
            "sampling": "centres",
            "persons": PERSONS,
        }


def _random(config: TeacherConfig, source: WeightsSource) -> STGCN:
    unknown = sorted(set(config.architecture) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"architecture: stgcn has {', '.join(_FIELDS)}, not {', '.join(unknown)}")
    variant: Variant = config.architecture.get("variant", "stgcn")
    classes = config.architecture.get("classes", 60)
    try:
        widths = _widths(config.architecture)
    except TypeError as error:
        raise ConfigError(
            f"architecture: base_width and stages are numbers, inflate a list of them: {error}"
        ) from error
    if variant not in {"stgcn", "stgcn++"} or not widths or min(widths) < 6 or not isinstance(classes, int):
        raise ConfigError("architecture: variant is stgcn or stgcn++, base_width at least 6, stages at least 1")
    return STGCN(config.graph or "coco", widths=widths, classes=classes, variant=variant, seed=source.seed)


def _widths(architecture: dict[str, Any]) -> tuple[int, ...]:
    """Channels per block: `base_width`, doubled at the stages (counted from 1) that `inflate` names."""
    base = architecture.get("base_width", STANDARD_WIDTHS[0])
    inflate = architecture.get("inflate", (5, 8))
    stages = range(1, 1 + architecture.get("stages", len(STANDARD_WIDTHS)))
    return tuple(int(base) * 2 ** sum(at <= stage for at in inflate) for stage in stages)


def _from_file(source: WeightsSource) -> STGCN:
    return STGCN.from_state(read_pyskl_checkpoint(Path(source.location).expanduser()))
