"""Skeleton teachers: a graph network over the clip's body joints (ST-GCN, ST-GCN++)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError
from ...pipeline.poses import Keypoints, Pose, PoseError
from ..graphs import GRAPHS, JointGraph, adjacency, bone_ends, graph_of, named_by
from ..stgcn import MODES, STANDARD_WIDTHS, STGCN, Variant, read_pyskl_checkpoint
from .base import Teacher
from .config import TeacherConfig, View
from .skeletons import PERSONS, centred_3d, modality_of, normalise_2d, normalise_3d, pad_persons, sample_frames
from .sources import WeightsSource
from .weights import check_dim, checked_hash, required_source

SPATIAL = ("nturgb+d",)  # layouts recorded in three dimensions
_FIELDS = ("variant", "base_width", "stages", "inflate", "classes")


class SkeletonTeacher(Teacher):
    """ST-GCN's pooled output: mean over frames and joints, then over two persons; one row per clip.

    Loads PYSKL's `.pth` files, or their tensors as `.safetensors`; the classifier is not used.
    Poses are prepared as PYSKL does in testing, except for its ten random samplings: here one, at the centres of
    equal parts.
    """

    reads = "skeleton"
    needs_pose = True

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        source = required_source(key, config)
        model = _random(config, source) if source.kind == "random" else _from_file(source)
        self._model = model
        self._layout, self._graph = _layout(key, config, model)
        self._dims = config.pose_dims or (3 if self._layout in SPATIAL else 2)
        if self._graph is None and (config.modality in ("b", "bm") or self._dims == 3):
            what = "pose_dims 3 needs the centre" if self._dims == 3 else f"modality {config.modality} needs the bones"
            raise ConfigError(f"teacher {key!r}: {what} of its {model.joints} joints; set edges")
        used = {name: value for name, value in model.state_dict().items() if not name.startswith("cls_head.")}
        check_dim(key, config, model.widths[-1])
        super().__init__(key, view, config, model, model.widths[-1], checked_hash(key, source, used))

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """Keypoints [M, T, V, 3] -> float32 [2, pose_frames, V, C]; see `Teacher.prepare`."""
        points = sample_frames(self.points(self._checked_pose(pose)), self.config.pose_frames)
        return torch.from_numpy(np.ascontiguousarray(points))

    def points(self, pose: Pose) -> Keypoints:
        """The whole skeleton as the network reads it, before frames are picked: float32 [2, T, V, C]."""
        joints, channels = pose.keypoints.shape[2], self._model.channels
        if joints != self._model.joints:
            message = f"teacher {self.key!r} wants {self._model.joints} joints, the skeleton has {joints}"
            raise PoseError("unreadable", pose.path, message)
        points = self._normalised(pose)
        if self.config.modality != "j":
            ends = bone_ends(self._graph, self._layout) if self._graph else []
            points = modality_of(points, self.config.modality, ends, scored=self._dims == 2)
        return pad_persons(points)[..., :channels]

    @property
    def dims(self) -> int:
        """2: joints are (x, y, score); 3: they are (x, y, z)."""
        return self._dims

    def _normalised(self, pose: Pose) -> Keypoints:
        if self._dims == 2:
            return normalise_2d(pose)
        if self._layout in SPATIAL:
            return normalise_3d(pose.keypoints)
        return centred_3d(pose.keypoints, self._graph.centre if self._graph else 0)

    def forward(self, batch: Tensor) -> Tensor:
        """float32 [B, M, T, V, C] -> [B, 1, dim]."""
        feature: Tensor = self.module(batch).feature
        return feature[:, None]

    def architecture(self) -> dict[str, Any]:
        model = self._model
        return {
            "variant": model.variant,
            "graph": self._layout if self._layout or not self._graph else [list(bone) for bone in self._graph.bones],
            "widths": list(model.widths),
            "strides": list(model.strides),
            "joints": model.joints,
            "channels": model.channels,
        }

    def preprocessing(self) -> dict[str, Any]:
        return {
            "normalisation": f"{self._dims}d",
            "modality": self.config.modality,
            "frames": self.config.pose_frames,
            "sampling": "centres",
            "persons": PERSONS,
        }


def _layout(key: str, config: TeacherConfig, model: STGCN) -> tuple[str | None, JointGraph | None]:
    """The network's joint layout: its name, if it has one, and its bones, if they are known.

    What the configuration says is checked against the weights: the number of joints, and for ST-GCN, whose graph is
    fixed, the graph itself (that of ST-GCN++ is learned and no longer tells). Where it says nothing, the weights do.
    """
    stack = model.state_dict()["backbone.gcn.0.gcn.A"].double().numpy()  # [3, V, V]
    fixed = model.variant == "stgcn"
    stated = config.own_graph or (GRAPHS[config.graph] if config.graph else None)
    if stated is None:
        name = named_by(stack, MODES["stgcn"]) if fixed else graph_of(model.joints)
        return name, GRAPHS[name] if name else None
    what = f"graph {config.graph}" if config.graph else "edges"
    if stated.joints != model.joints:
        raise ConfigError(f"teacher {key!r}: {what} has {stated.joints} joints, {config.weights} {model.joints}")
    if fixed and not np.allclose(stack, adjacency(stated, MODES["stgcn"]), rtol=0.0, atol=1e-5):
        raise ConfigError(
            f"teacher {key!r}: {config.weights} was trained on another graph of {model.joints} joints than {what}"
        )
    return config.graph, stated


def _random(config: TeacherConfig, source: WeightsSource) -> STGCN:
    unknown = sorted(set(config.architecture) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"architecture: stgcn has {', '.join(_FIELDS)}, not {', '.join(unknown)}")
    variant: Variant = config.architecture.get("variant", "stgcn")
    classes = config.architecture.get("classes", 60)
    try:
        widths = widths_of(config.architecture)
    except TypeError as error:
        raise ConfigError(
            f"architecture: base_width and stages are numbers, inflate a list of them: {error}"
        ) from error
    if variant not in {"stgcn", "stgcn++"} or not widths or min(widths) < 6 or not isinstance(classes, int):
        raise ConfigError("architecture: variant is stgcn or stgcn++, base_width at least 6, stages at least 1")
    return STGCN(
        config.own_graph or config.graph or "coco", widths=widths, classes=classes, variant=variant, seed=source.seed
    )


def widths_of(architecture: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels per block: `base_width`, doubled at the stages (counted from 1) that `inflate` names."""
    base = architecture.get("base_width", STANDARD_WIDTHS[0])
    inflate = architecture.get("inflate", (5, 8))
    stages = range(1, 1 + architecture.get("stages", len(STANDARD_WIDTHS)))
    return tuple(int(base) * 2 ** sum(at <= stage for at in inflate) for stage in stages)


def _from_file(source: WeightsSource) -> STGCN:
    return STGCN.from_state(read_pyskl_checkpoint(Path(source.location).expanduser()))
