"""Depth pictures of Depth Anything, for reports. The teachers take its encoder's features and never run this head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError, WeightsError
from . import official
from .config import UNTOLD, TeacherConfig
from .networks import from_state
from .preprocess import for_network
from .weights import check_loaded, checked_hash, fetch, import_transformers, quiet, required_source, seeded

# From far to near: dark blue, teal, yellow-green, light yellow.
_COLOURS = np.array([(13, 8, 60), (24, 92, 128), (76, 172, 110), (196, 214, 66), (255, 250, 190)], np.float64)

_NEAREST = 0.05  # metres


def load_depth_network(key: str, config: TeacherConfig, blocks: Sequence[int] | None = None) -> nn.Module:
    """The whole Depth Anything of a teacher's configuration, in float32 and eval mode.

    `blocks` are the encoder's blocks (from 0) that the head reads. A folder or the hub says it. An official file does
    not: the last four, as in V1, unless given; V2 reads 4, 11, 17, 23 of its large encoder and 2, 5, 8, 11 of the
    small and the base one. Raises `WeightsError` as loading the teacher does, `ConfigError` for another network.
    """
    source = required_source(key, config)
    if config.network != "depth_anything" or source.kind == "random":
        raise ConfigError(f"teacher {key!r}: depth pictures need network depth_anything with trained weights")
    library = import_transformers()
    model, state = library.DepthAnythingForDepthEstimation, None
    with quiet(library):
        if source.kind == "file":
            heads = config.architecture.get(UNTOLD["depth_anything"])
            weights = official.read_depth_anything(Path(source.location).expanduser(), heads)
            settings, state = _settings(library, weights.settings, blocks), weights.state
            module, info = seeded(0, lambda: from_state(model, settings, state))
        else:
            settings = fetch(key, source, library.AutoConfig.from_pretrained)
            if settings.model_type != "depth_anything":
                raise WeightsError(f"teacher {key!r}: {source} is a {settings.model_type!r}, not a depth_anything")

            def load(location: str, **options: Any) -> Any:
                return model.from_pretrained(
                    location, output_loading_info=True, weights_only=True, dtype=torch.float32, **options
                )

            module, info = seeded(0, lambda: fetch(key, source, load))
    check_loaded(key, source, info, lambda name: not name.endswith("mask_token"))
    checked_hash(key, source, module.state_dict())
    network: nn.Module = module.eval().requires_grad_(False)
    return network


def _settings(library: Any, values: dict[str, Any], blocks: Sequence[int] | None) -> Any:
    depth = values["backbone_config"]["num_hidden_layers"]
    chosen = list(range(depth - 4, depth)) if blocks is None else list(blocks)
    if len(chosen) != 4 or not all(0 <= block < depth for block in chosen):
        raise ConfigError(f"blocks {chosen}: the head reads four blocks of 0 to {depth - 1}")
    backbone = library.Dinov2Config(
        **values["backbone_config"],
        out_indices=[block + 1 for block in chosen],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    return library.DepthAnythingConfig(**{**values, "backbone_config": backbone})


@torch.inference_mode()
def depth_maps(network: nn.Module, frames: Tensor, size: int = 518) -> Tensor:
    """Inverse depth (larger is nearer) of frames, uint8 [n, H, W, 3] -> float32 [n, h, w] on the CPU.

    It is relative, or in 1/m of a network whose head tells metres. h and w are those of the network's input: the aspect
    kept, one side near `size`, both multiples of the patch.
    """
    settings: Any = network.config
    preprocess = for_network("depth_anything", size, int(settings.patch_size))
    device = next(network.parameters()).device
    images = preprocess.normalise(preprocess.frames(frames).to(device))
    depth: Tensor = torch.cat([network(image[None]).predicted_depth for image in images])
    depth = depth.float().cpu()
    return 1.0 / depth.clamp_min(_NEAREST) if settings.depth_estimation_type == "metric" else depth


def depth_picture(depth: Tensor) -> Tensor:
    """Depth maps [n, h, w] in colour, uint8 [n, h, w, 3]: each map from its own farthest (dark) to nearest (light)."""
    values = depth.double().numpy()
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    share = (values - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    places = np.linspace(0.0, 1.0, len(_COLOURS))
    channels = [np.interp(share, places, _COLOURS[:, channel]) for channel in range(3)]
    return torch.from_numpy(np.stack(channels, axis=-1).round().astype(np.uint8))
