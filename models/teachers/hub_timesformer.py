"""TimeSformer as transformers stores it (`TimesformerModel`), brought into our own network.

Theirs takes the number of frames from its configuration and gives wrong features, without a word, for any other
number; ours resizes its time table to the frames it gets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import WeightsError
from ..timesformer import MLP_RATIO, NORM_EPS, TimeSformer
from .local import hub_commit
from .sources import WeightsSource
from .weights import check_loaded, fetch, import_transformers, quiet, seeded

_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.time_embeddings$", "time_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.temporal_layernorm\.", ".temporal_norm1."),
    (r"\.temporal_dense\.", ".temporal_fc."),
    (r"\.(temporal_)?attention\.attention\.qkv\.", r".\1attn.qkv."),
    (r"\.(temporal_)?attention\.output\.dense\.", r".\1attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),  # after attention's
)


def load_hub_timesformer(key: str, source: WeightsSource) -> tuple[TimeSformer, str | None]:
    """Our TimeSformer with the weights of a `dir:` or `hub:` source, and the hub's commit, if any.

    A whole video classifier will do, its head is left out (ours has a fresh one, for one class). Raises
    `WeightsError` when the weights are not found, are of another kind of network, or leave part of it untouched.
    """
    library = import_transformers()
    with quiet(library):
        settings = fetch(key, source, library.AutoConfig.from_pretrained)
        _check(key, source, settings)

        def load(location: str, **options: Any) -> tuple[Any, dict[str, Any]]:
            loaded: tuple[Any, dict[str, Any]] = library.TimesformerModel.from_pretrained(
                location,
                config=settings,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported with names below, instead of a bare refusal
                weights_only=True,
                dtype=torch.float32,
                **options,
            )
            return loaded

        module, info = seeded(0, lambda: fetch(key, source, load))
        check_loaded(key, source, info, lambda name: True)
    model = TimeSformer(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_frames=settings.num_frames,
        width=settings.hidden_size,
        depth=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        num_classes=1,
        drop_path=0.0,
    )
    head = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    model.load_state_dict({**convert_names(module.state_dict()), **head})
    return model, hub_commit(source)


def convert_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `TimesformerModel` under the names of our TimeSformer; there is no head among them."""
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def _check(key: str, source: WeightsSource, settings: Any) -> None:
    """Refuse settings under which theirs is another network than ours."""
    if settings.model_type != "timesformer":
        raise WeightsError(
            f"teacher {key!r}: {source} is a {settings.model_type!r}; network timesformer takes timesformer"
        )
    fixed = {
        "attention_type": "divided_space_time",
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": NORM_EPS,
        "intermediate_size": MLP_RATIO * settings.hidden_size,
        "num_channels": 3,
    }
    other = [f"{name} {getattr(settings, name)!r}, not {value!r}" for name, value in fixed.items()
             if getattr(settings, name) != value]  # fmt: skip
    if other:
        raise WeightsError(f"teacher {key!r}: {source} is another TimeSformer than ours: {'; '.join(other)}")
