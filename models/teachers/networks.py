"""The image networks of frame teachers, built through transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError, WeightsError
from . import official
from .config import UNTOLD, TeacherConfig
from .local import hub_commit
from .sources import WeightsSource
from .weights import check_loaded, checked_hash, fetch, import_transformers, quiet, required_source, seeded

_VIT_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "hidden_act",
    "layer_norm_eps",
)
_DINO_FIELDS = (*_VIT_FIELDS, "mlp_ratio", "qkv_bias", "use_swiglu_ffn", "num_register_tokens")
_CLIP_FIELDS = (*_VIT_FIELDS, "intermediate_size")

# transformers 5 renamed modules in memory; weights are hashed under the names of their files, which stay.
_FILE_NAMES = (
    (re.compile(r"^(vision_model|backbone)\."), ""),
    (re.compile(r"(?<=encoder\.layer\.)(\d+)\.attention\.q_proj\."), r"\1.attention.attention.query."),
    (re.compile(r"(?<=encoder\.layer\.)(\d+)\.attention\.k_proj\."), r"\1.attention.attention.key."),
    (re.compile(r"(?<=encoder\.layer\.)(\d+)\.attention\.v_proj\."), r"\1.attention.attention.value."),
    (re.compile(r"(?<=encoder\.layer\.)(\d+)\.attention\.o_proj\."), r"\1.attention.output.dense."),
)


@dataclass(frozen=True)
class ImageNetwork:
    """A loaded image network: `module` in float32, `architecture` JSON-able, `dim` the width of its feature.

    `commit` is the hub's commit of the weights, where they came from there.
    """

    module: nn.Module
    architecture: dict[str, Any]
    weights_hash: str
    dim: int
    patch: int
    trained_size: int
    commit: str | None


@dataclass(frozen=True)
class _Kind:
    """How one network is made: transformers' class names by `model_type`, and what of it is used."""

    config: str
    models: dict[str, str]
    random_model: str
    fields: tuple[str, ...]
    dim: str
    part: str | None = None  # the submodule that gives the feature; the rest is dropped after loading
    random: tuple[tuple[str, Any], ...] = ()


_KINDS: dict[str, _Kind] = {
    "dinov2": _Kind(
        "Dinov2Config",
        {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
        "Dinov2Model",
        _DINO_FIELDS,
        "hidden_size",
    ),
    "siglip": _Kind(
        "SiglipVisionConfig",
        {"siglip": "SiglipVisionModel", "siglip_vision_model": "SiglipVisionModel"},
        "SiglipVisionModel",
        (*_VIT_FIELDS, "intermediate_size"),
        "hidden_size",
    ),
    "depth_anything": _Kind(
        "Dinov2Config",
        {"depth_anything": "DepthAnythingForDepthEstimation"},
        "Dinov2Backbone",
        _DINO_FIELDS,
        "hidden_size",
        part="backbone",
        random=(("reshape_hidden_states", False), ("apply_layernorm", True)),
    ),
    "clip": _Kind(
        "CLIPVisionConfig",
        {"clip": "CLIPVisionModelWithProjection", "clip_vision_model": "CLIPVisionModelWithProjection"},
        "CLIPVisionModelWithProjection",
        (*_CLIP_FIELDS, "projection_dim"),
        "projection_dim",
    ),
}


def load_image_network(key: str, config: TeacherConfig) -> ImageNetwork:
    """Build the network of a frame teacher and load its weights; global random state is left alone.

    Raises `WeightsError` when the weights are not set, cannot be found, are of another kind of network, or do
    not cover it; `ConfigError` for architecture fields that the network does not have.
    """
    source, kind = required_source(key, config), _KINDS[config.network]
    library = import_transformers()
    with quiet(library):
        if source.kind == "random":
            module, commit = _random(library, kind, config, source), None
        else:
            # Loading draws numbers for whatever the file lacks, before that is found out and refused.
            load = _official if source.kind == "file" else _pretrained
            module, commit = seeded(0, lambda: load(library, kind, key, config, source))
    settings = module.config
    return ImageNetwork(
        module=module.eval(),
        architecture=_architecture(settings, kind.fields),
        weights_hash=checked_hash(
            key, source, {_file_name(name): value for name, value in module.state_dict().items()}
        ),
        dim=int(getattr(settings, kind.dim)),
        patch=int(settings.patch_size),
        trained_size=int(settings.image_size),
        commit=commit,
    )


def _file_name(name: str) -> str:
    for pattern, replacement in _FILE_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _architecture(settings: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in fields if hasattr(settings, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _random(library: Any, kind: _Kind, config: TeacherConfig, source: WeightsSource) -> Any:
    make = getattr(library, kind.config)
    known = set(make().to_dict())
    unknown = sorted(set(config.architecture) - known)
    if unknown:
        raise ConfigError(f"architecture: {config.network} has no {', '.join(unknown)}")
    try:
        settings = make(**{**config.architecture, **dict(kind.random)})
        return seeded(source.seed, lambda: getattr(library, kind.random_model)(settings))
    except Exception as error:  # sizes that do not fit together surface in many ways
        raise ConfigError(f"architecture: {config.network} cannot be built like this: {error}") from error


def _pretrained(
    library: Any, kind: _Kind, key: str, config: TeacherConfig, source: WeightsSource
) -> tuple[Any, str | None]:
    settings = fetch(key, source, library.AutoConfig.from_pretrained)
    name = kind.models.get(settings.model_type)
    if config.network == "siglip" and settings.model_type.startswith("siglip2"):
        raise WeightsError(
            f"teacher {key!r}: {source} is a SigLIP 2 of variable resolution (NaFlex), which is not supported; take "
            "one of a fixed resolution, for example hub:google/siglip2-so400m-patch14-384"
        )
    if name is None:
        raise WeightsError(
            f"teacher {key!r}: {source} is a {settings.model_type!r}; network {config.network} takes "
            f"{', '.join(kind.models)}"
        )
    model = getattr(library, name)

    def load(location: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        loaded: tuple[Any, dict[str, Any]] = model.from_pretrained(
            location,
            config=_vision_part(settings),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported with names below, instead of a bare refusal
            weights_only=True,
            dtype=torch.float32,
            **options,
        )
        return loaded

    module, info = fetch(key, source, load)
    check_loaded(key, source, info, _used(kind.part))
    return getattr(module, kind.part) if kind.part else module, hub_commit(source)


def _official(
    library: Any, kind: _Kind, key: str, config: TeacherConfig, source: WeightsSource
) -> tuple[Any, str | None]:
    """A network out of one official file; names and shapes are checked there, under the names of the file."""
    path, heads = Path(source.location).expanduser(), config.architecture.get(UNTOLD[config.network])
    read = official.read_depth_encoder if config.network == "depth_anything" else official.read_dinov2
    weights = read(path, heads)
    flavour = "Dinov2WithRegisters" if "num_register_tokens" in weights.settings else "Dinov2"
    name = kind.random_model.replace("Dinov2", flavour)
    settings = getattr(library, f"{flavour}Config")(**{**weights.settings, **dict(kind.random)})
    module, info = from_state(getattr(library, name), settings, weights.state)
    check_loaded(key, source, info, _used(None))
    return module, None


def from_state(model: Any, settings: Any, state: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """A network of transformers with weights under the hub's names, and the report of what was loaded."""
    loaded: tuple[Any, dict[str, Any]] = model.from_pretrained(
        None,
        config=settings,
        state_dict=state,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    return loaded


def _used(part: str | None) -> Callable[[str], bool]:
    def used(name: str) -> bool:
        return not name.endswith("mask_token") and (part is None or name.startswith(part + "."))

    return used


def _vision_part(settings: Any) -> Any:
    """The image half of a two-towered model's settings, with the width of the space both project to."""
    vision = getattr(settings, "vision_config", None)
    if vision is None:
        return settings
    if hasattr(settings, "projection_dim") and hasattr(vision, "projection_dim"):
        vision.projection_dim = settings.projection_dim
    return vision


def image_feature(kind: str, output: str, module: nn.Module, images: Tensor, layers: Sequence[int] = ()) -> Tensor:
    """One feature row per image: [n, 3, h, w] normalised -> [n, dim].

    DINOv2's and Depth Anything's tokens are those after the final norm: CLS, registers if any, then patches; of
    several `layers` (block numbers from 0) the features stand side by side.
    """
    if kind == "clip":
        return module(pixel_values=images, interpolate_pos_encoding=True).image_embeds  # type: ignore[no-any-return]
    if kind == "siglip":
        out = module(pixel_values=images, interpolate_pos_encoding=True)
        feature: Tensor = out.pooler_output if output == "pooled" else out.last_hidden_state.mean(dim=1)
        return feature
    network: Any = module  # Dinov2Model, with registers or without, or Dinov2Backbone
    blocks = network.encoder.layer
    first_patch = 1 + int(getattr(network.config, "num_register_tokens", 0) or 0)
    wanted = list(layers) or [len(blocks) - 1]
    features: dict[int, Tensor] = {}
    hidden: Tensor = network.embeddings(images)  # [n, first_patch + N, width]
    for number, block in enumerate(blocks[: max(wanted) + 1]):
        hidden = block(hidden)
        if number in wanted:
            tokens: Tensor = network.layernorm(hidden)
            features[number] = tokens[:, 0] if output == "cls" else tokens[:, first_patch:].mean(dim=1)
    return torch.cat([features[number] for number in wanted], dim=1)
