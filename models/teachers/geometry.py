"""A teacher's width and cost, told from configuration, config.json or the shapes in a file, without its network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..graphs import GRAPHS
from ..release import PREFIX, geometry_from_state
from ..stgcn import default_strides, shape_from_state
from .config import FRAME_NETWORKS, TeacherConfig
from .costs import ViT, stgcn_flops, timesformer_flops, vit_flops
from .facts import TEACHERS
from .frames import USUAL_SIZE
from .local import LocalWeights
from .official import ENCODER_PREFIX, settings_from_state
from .skeleton import widths_of

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
        path = Path(source.location).expanduser()
        state = {name.removeprefix(ENCODER_PREFIX): value for name, value in read_shapes(path).items()}
        return settings_from_state(path, state, heads=1)
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
    size = int(config.image_size or USUAL_SIZE.get(network) or settings["image_size"])
    return Geometry(dim, config.frames * vit_flops(net, size, size) / 1e9)


def _timesformer(config: TeacherConfig, local: LocalWeights) -> Geometry:
    source = config.source
    net: Mapping[str, Any] = _TIMESFORMER
    if source is not None and source.kind == "random":
        net = {**_TIMESFORMER, **config.architecture}
    elif source is not None and source.kind == "file" and local.ready:
        state = read_shapes(Path(source.location).expanduser())
        net = geometry_from_state({name.removeprefix(PREFIX): value for name, value in state.items()}, heads=1)
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
    if source is not None and source.kind == "file":
        if not local.ready:
            return Geometry(config.dim)
        net = shape_from_state(read_shapes(Path(source.location).expanduser()))
        widths, strides, joints = net["widths"], net["strides"], net["joints"]
        channels, plus = net["channels"], net["variant"] == "stgcn++"
    else:
        widths = widths_of(config.architecture)
        strides, channels, plus = default_strides(widths), 3, config.architecture.get("variant") == "stgcn++"
        joints = (config.own_graph or GRAPHS[config.graph or "coco"]).joints
    flops = stgcn_flops(widths, strides, joints, channels, config.pose_frames, plus=plus)
    return Geometry(int(widths[-1]), flops / 1e9)


def read_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the meta device; their values are not read where the format allows it.

    Of a `.pth` the first mapping of tensors counts (`model_state`, `state_dict`, or the whole). Nothing is unpickled
    but tensors and plain values. Raises what the readers raise.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as stored:
            names = list(stored.keys())
            return {name: torch.empty(stored.get_slice(name).get_shape(), device="meta") for name in names}
    try:
        loaded = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        loaded = torch.load(path, map_location="meta", weights_only=True)
    for mapping in (loaded, *(value for value in loaded.values() if isinstance(value, Mapping))):
        tensors = {str(name): value for name, value in mapping.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise ValueError(f"{path}: holds no tensors")
