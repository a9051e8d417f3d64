"""A teacher's width and cost, told from configuration, config.json or the shapes in a file, without its network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import FRAME_NETWORKS, TeacherConfig
from .costs import ViT, stgcn_flops, timesformer_flops, vit_flops
from .facts import TEACHERS
from .local import LocalWeights

Shapes = dict[str, tuple[int, ...]]

_VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "mlp_ratio": 4, "patch_size": 14}
PUBLISHED: dict[str, dict[str, Any]] = {
    "facebook/dinov2-large": {**_VIT_L, "image_size": 518},
    "LiheYoung/depth-anything-large-hf": {**_VIT_L, "image_size": 518},
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 384,
    },
    "openai/clip-vit-base-patch16": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "patch_size": 16,
        "image_size": 224,
        "projection_dim": 512,
    },
}
"""What config.json of the default weights says, for where they are not at hand."""

_TIMESFORMER = {"width": 768, "depth": 12, "patch_size": 16, "image_size": 224}
_STGCN = {"widths": (64,) * 4 + (128,) * 3 + (256,) * 3, "strides": (1,) * 4 + (2, 1, 1, 2, 1, 1), "joints": 17}
_USUAL_SIZE = {"dinov2": 224, "depth_anything": 518}  # as in frames.py: whatever the position table has

_UNREADABLE = (
    *(LookupError, TypeError, ValueError, AttributeError, StopIteration),  # other entries than were expected
    *(OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError),  # other bytes
)


class Geometry(NamedTuple):
    """Width of the feature, and GFLOP of one clip; None what cannot be told."""

    dim: int | None = None
    gflop: float | None = None


def geometry(config: TeacherConfig, local: LocalWeights) -> Geometry:
    """Width and cost of a teacher. One whose weights are not set is taken to be the paper's."""
    try:
        if config.network in FRAME_NETWORKS:
            return _frames(config, _settings(config, local))
        if config.network == "timesformer":
            return _timesformer(config, local)
        if config.network == "stgcn":
            return _stgcn(config, local)
    except _UNREADABLE:
        pass  # a listing says less, it does not fail; loading the weights tells what is wrong with them
    return Geometry(config.dim)


def _settings(config: TeacherConfig, local: LocalWeights) -> Mapping[str, Any]:
    """Fields of the image network's configuration, as in config.json."""
    source = config.source
    if source is not None and source.kind == "random":
        return config.architecture
    if source is not None and source.kind == "file" and local.ready:
        return _image_shapes(read_shapes(Path(source.location).expanduser()))
    whole = local.settings
    if whole is None:
        default = next(facts.hub for facts in TEACHERS.values() if facts.network == config.network)
        return PUBLISHED[str(default if source is None else source.location)]
    inner = whole.get("vision_config") or whole.get("backbone_config") or whole
    return {**inner, **{name: whole[name] for name in ("projection_dim",) if name in whole}}


def _frames(config: TeacherConfig, settings: Mapping[str, Any]) -> Geometry:
    network, width = config.network, int(settings["hidden_size"])
    projection = int(settings["projection_dim"]) if network == "clip" else 0
    dim = projection or width * len(config.layers or [-1])
    if settings.get("use_swiglu_ffn"):
        return Geometry(dim)
    net = ViT(
        width=width,
        depth=int(settings["num_hidden_layers"]),
        mlp=int(settings.get("intermediate_size") or width * settings.get("mlp_ratio", 4)),
        patch=int(settings["patch_size"]),
        extra=0 if network == "siglip" else 1 + int(settings.get("num_register_tokens") or 0),
        projection=projection,
        pooled_by_attention=network == "siglip" and config.output == "pooled",
    )
    size = int(config.image_size or _USUAL_SIZE.get(network) or settings["image_size"])
    return Geometry(dim, config.frames * vit_flops(net, size, size) / 1e9)


def _image_shapes(shapes: Shapes) -> dict[str, Any]:
    """The fields of config.json that the shapes of an official checkpoint tell (DINOv2, Depth Anything's encoder)."""
    token, patch = _ending(shapes, "cls_token"), _ending(shapes, "patch_embed.proj.weight")
    registers = [shape[1] for name, shape in shapes.items() if name.endswith("register_tokens")]
    return {
        "hidden_size": token[-1],
        "num_hidden_layers": _blocks(shapes),
        "patch_size": patch[-1],
        "intermediate_size": _ending(shapes, "blocks.0.mlp.fc1.weight")[0],
        "num_register_tokens": sum(registers),
    }


def _timesformer(config: TeacherConfig, local: LocalWeights) -> Geometry:
    source = config.source
    net: Mapping[str, Any] = _TIMESFORMER
    if source is not None and source.kind == "random":
        net = {**_TIMESFORMER, **config.architecture}
    elif source is not None and source.kind == "file" and local.ready:
        shapes = read_shapes(Path(source.location).expanduser())
        width, patch = _ending(shapes, "cls_token")[-1], _ending(shapes, "patch_embed.proj.weight")[-1]
        side = round((_ending(shapes, "pos_embed")[1] - 1) ** 0.5)
        net = {"width": width, "depth": _blocks(shapes), "patch_size": patch, "image_size": side * patch}
    elif source is not None:
        whole = local.settings
        if whole is None:
            return Geometry(config.dim)
        net = {**whole, "width": whole["hidden_size"], "depth": whole["num_hidden_layers"]}
    image = config.image_size or net["image_size"]
    flops = timesformer_flops(net["width"], net["depth"], net["patch_size"], image, config.frames)
    return Geometry(int(net["width"]), flops / 1e9)


def _stgcn(config: TeacherConfig, local: LocalWeights) -> Geometry:
    source = config.source
    net: dict[str, Any] = {**_STGCN, "channels": 3}
    if source is not None and source.kind == "file":
        if not local.ready:
            return Geometry(config.dim)
        net = _graph_shapes(read_shapes(Path(source.location).expanduser()))
    elif source is not None:
        wanted = config.architecture
        stages = range(1, 1 + wanted.get("stages", 10))
        inflate = wanted.get("inflate", (5, 8))
        net["widths"] = [wanted.get("base_width", 64) * 2 ** sum(at <= stage for at in inflate) for stage in stages]
        net["strides"] = [2 if stage > 1 and stage in inflate else 1 for stage in stages]
        net["plus"] = wanted.get("variant") == "stgcn++"
        net["joints"] = {"openpose": 18, "nturgb+d": 25, "handmp": 21}.get(config.graph or "coco", 17)
    return Geometry(int(net["widths"][-1]), stgcn_flops(frames=config.pose_frames, **net) / 1e9)


def _graph_shapes(shapes: Shapes) -> dict[str, Any]:
    shapes = {name.removeprefix("module."): shape for name, shape in shapes.items()}
    block = "backbone.gcn.{}."
    count = len([name for name in shapes if re.fullmatch(r"backbone\.gcn\.\d+\.tcn\.bn\.weight", name)])
    projected = [f"{block.format(index)}residual.conv.weight" in shapes for index in range(count)]
    return {
        "widths": [shapes[f"{block.format(index)}tcn.bn.weight"][0] for index in range(count)],
        "strides": [2 if index and there else 1 for index, there in enumerate(projected)],
        "joints": shapes["backbone.gcn.0.gcn.A"][-1],
        "channels": shapes["backbone.gcn.0.gcn.conv.weight"][1],
        "plus": "backbone.gcn.0.tcn.branches.5.weight" in shapes,
    }


def _ending(shapes: Shapes, name: str) -> tuple[int, ...]:
    return next(shape for known, shape in sorted(shapes.items()) if known.endswith(name))


def _blocks(shapes: Shapes) -> int:
    found = (re.search(r"(?:^|\.)blocks\.(\d+)\.", name) for name in shapes)
    return 1 + max(int(match[1]) for match in found if match)


def read_shapes(path: Path) -> Shapes:
    """Shapes of the tensors in a checkpoint, by name, without reading their values where the format allows it.

    Of a `.pth` the first mapping of tensors counts (`model_state`, `state_dict`, or the whole). Nothing is unpickled
    but tensors and plain values. Raises what the readers raise.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    try:
        loaded = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        loaded = torch.load(path, map_location="meta", weights_only=True)
    for mapping in (loaded, *(value for value in loaded.values() if isinstance(value, Mapping))):
        shapes = {str(name): tuple(value.shape) for name, value in mapping.items() if isinstance(value, Tensor)}
        if shapes:
            return shapes
    raise ValueError(f"{path}: holds no tensors")
