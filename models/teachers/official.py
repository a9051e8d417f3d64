"""Official checkpoints of DINOv2 and Depth Anything (V1 and V2), brought to the names of the Hugging Face hub's files.

Only names and shapes change hands here: a file of tensors goes in, and out come the tensors under the hub's names
with the settings that transformers needs to build the network. All is read off the shapes; what they do not tell is
the number of heads (64 channels each in every official file).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError, WeightsError
from ..pretrained import read_image_weights
from ..release import HEAD_WIDTH, listed

ENCODER_PREFIX = "pretrained."  # of Depth Anything; its head is depth_head.*
_HEAD_PREFIX = "depth_head."
_MLP_RATIO = 4

# transformers reads and writes these names whatever it calls its modules in memory.
_ENCODER_NAMES = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)
_HEAD_NAMES = (
    (r"^projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
    (r"^scratch\.output_conv1\.", "head.conv1."),
    (r"^scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^scratch\.output_conv2\.2\.", "head.conv3."),
)


@dataclass(frozen=True)
class OfficialWeights:
    """Tensors under the hub's names, float32 and apart from the file, and keywords of transformers' configuration."""

    state: dict[str, Tensor]
    settings: dict[str, Any]


def read_dinov2(path: Path, heads: int | None = None) -> OfficialWeights:
    """An official DINOv2 `.pth` (`dinov2_vitl14_pretrain.pth`, `dinov2_vitl14_reg4_pretrain.pth`, ...).

    `heads` is needed where the width is no multiple of 64. Raises `WeightsError` naming entries that are missing,
    unknown or of the wrong shape.
    """
    return _encoder(path, read_image_weights(path), heads)


def read_depth_encoder(path: Path, heads: int | None = None) -> OfficialWeights:
    """The encoder in an official Depth Anything `.pth` of either version; its depth head is left in the file.

    Raises `WeightsError` as `read_dinov2` does.
    """
    return _encoder(path, _part(path, read_image_weights(path), ENCODER_PREFIX), heads)


def read_depth_anything(path: Path, heads: int | None = None) -> OfficialWeights:
    """Encoder and depth head of an official Depth Anything `.pth`; `settings` are those of the whole network.

    The encoder's settings are under `backbone_config`. Raises `WeightsError` as `read_dinov2` does.
    """
    stored = read_image_weights(path)
    encoder = _encoder(path, _part(path, stored, ENCODER_PREFIX), heads)
    head = {_head_name(name): value.float().clone() for name, value in _part(path, stored, _HEAD_PREFIX).items()}
    try:
        settings = {
            "backbone_config": encoder.settings,
            "reassemble_hidden_size": encoder.settings["hidden_size"],
            "neck_hidden_sizes": [
                head[f"neck.reassemble_stage.layers.{i}.projection.weight"].shape[0] for i in range(4)
            ],
            "fusion_hidden_size": head["neck.convs.0.weight"].shape[0],
            "head_hidden_size": head["head.conv2.weight"].shape[0],
            "patch_size": encoder.settings["patch_size"],
        }
    except KeyError as error:
        raise WeightsError(f"{path}: its depth head lacks what transformers calls {error}") from error
    return OfficialWeights({**{f"backbone.{name}": value for name, value in encoder.state.items()}, **head}, settings)


def _part(path: Path, stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    if not part:
        raise WeightsError(f"{path}: not an official Depth Anything file, none of its entries starts with {prefix!r}")
    return part


def _encoder(path: Path, stored: Mapping[str, Tensor], heads: int | None) -> OfficialWeights:
    settings = settings_from_state(path, stored, heads)
    wanted = _shapes(settings)
    missing = [name for name in wanted if name not in stored and name != "mask_token"]  # training alone uses that
    unknown = [name for name in stored if name not in wanted]
    wrong = [
        f"{name} {list(value.shape)} instead of {list(wanted[name])}"
        for name, value in stored.items()
        if name in wanted and tuple(value.shape) != wanted[name]
    ]
    if missing or unknown or wrong:
        raise WeightsError(
            f"{path}: not the vision transformer of an official DINOv2 or Depth Anything file; missing: "
            f"{listed(missing)}; unknown: {listed(unknown)}; of another shape: {listed(wrong)}"
        )
    state: dict[str, Tensor] = {}
    for name, value in stored.items():
        state |= _renamed(name, value.float().clone())
    return OfficialWeights(state, settings)


def settings_from_state(path: Path, stored: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    """Keywords of transformers' Dinov2Config (with `num_register_tokens`, Dinov2WithRegistersConfig).

    The shapes alone of official entries are looked at. Raises `WeightsError` as `read_dinov2` does.
    """
    try:
        table, patches = stored["pos_embed"], stored["patch_embed.proj.weight"]
        width, patch = table.shape[2], patches.shape[3]
        hidden = stored["blocks.0.mlp.fc2.weight" if "blocks.0.mlp.fc2.weight" in stored else "blocks.0.mlp.w3.weight"]
        registers = stored["register_tokens"].shape[1] if "register_tokens" in stored else 0
        inner = hidden.shape[1]
    except (KeyError, IndexError) as error:
        raise WeightsError(
            f"{path}: not the vision transformer of an official DINOv2 or Depth Anything file: {error}; a folder "
            "written by save_pretrained is named as dir:<folder>"
        ) from error
    if heads is None and width % HEAD_WIDTH:
        raise WeightsError(
            f"{path}: the number of heads cannot be told from width {width}; set architecture: "
            "{num_attention_heads: <number>}"
        )
    if heads is not None and (type(heads) is not int or heads < 1 or width % heads):
        raise ConfigError(f"architecture: num_attention_heads {heads!r} does not divide {path}'s width, {width}")
    blocks = {int(match[1]) for name in stored if (match := re.match(r"blocks\.(\d+)\.", name))}
    swiglu = "blocks.0.mlp.w12.weight" in stored
    return {
        "hidden_size": width,
        "num_hidden_layers": min(max(blocks) + 1, len(stored)),
        "num_attention_heads": width // HEAD_WIDTH if heads is None else heads,
        "mlp_ratio": _MLP_RATIO if swiglu else max(1, inner // width),
        "use_swiglu_ffn": swiglu,
        "patch_size": patch,
        "image_size": math.isqrt(max(0, table.shape[1] - 1)) * patch,
        **({"num_register_tokens": registers} if registers else {}),
    }


def _shapes(settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, by the official names."""
    width, patch = settings["hidden_size"], settings["patch_size"]
    inner = settings["mlp_ratio"] * width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, width),
        "pos_embed": (1, 1 + (settings["image_size"] // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if "num_register_tokens" in settings:
        shapes["register_tokens"] = (1, settings["num_register_tokens"], width)
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if settings["use_swiglu_ffn"]:
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        linear |= {"mlp.w12": (2 * inner, width), "mlp.w3": (width, inner)}
    else:
        linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for block in (f"blocks.{index}." for index in range(settings["num_hidden_layers"])):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return shapes


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """One official entry under the hub's names: `qkv` is stored there as three."""
    for pattern, replacement in _ENCODER_NAMES:
        name = re.sub(pattern, replacement, name)
    start, found, part = name.partition(".attn.qkv.")
    if not found:
        return {name: value}
    three = zip(("query", "key", "value"), value.chunk(3), strict=True)
    return {f"{start}.attention.attention.{each}.{part}": chunk.clone() for each, chunk in three}


def _head_name(name: str) -> str:
    name = re.sub(r"^scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}.", name)
    name = re.sub(r"^scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}.", name)
    for pattern, replacement in _HEAD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
