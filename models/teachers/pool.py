"""What there is to say about the teachers of a pool: for listings, before any network is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import PRECOMPUTED, TeacherConfig
from .facts import OWN_CHECKPOINT, TEACHERS, licence_of
from .geometry import geometry
from .local import local_weights
from .registry import teacher_view


def describe_pool(teachers: Mapping[str, TeacherConfig]) -> list[dict[str, Any]]:
    """One JSON-able entry per teacher, in the pool's order.

    `name`, `view`; `kind`: the network; `dim`: width of the feature; `source`: what it is, in words; `license`, and
    `non_commercial` where it forbids commercial use; `weights`: as configured; `ready`: whether they are on this
    machine, `missing`: what is not; `cost_per_clip`: GFLOP of the forward passes (a multiplication with its addition
    is two), for square frames; `reconstruction`: not the authors' network; `random`: untrained. What cannot be told
    without loading the weights is None.
    """
    return [_describe(key, config) for key, config in teachers.items()]


def _describe(key: str, config: TeacherConfig) -> dict[str, Any]:
    local = local_weights(key, config)
    shape = geometry(config, local)
    source, facts = config.source, TEACHERS.get(key)
    papers = facts is not None and facts.network == config.network
    licence = licence_of(source)
    unset = papers and source is None
    return {
        "name": key,
        "view": teacher_view(key, config),
        "kind": config.network,
        "dim": shape.dim,
        "source": _in_words(key, config),
        "license": OWN_CHECKPOINT if unset else licence.name,
        "non_commercial": licence.non_commercial,
        "weights": config.weights,
        "ready": local.ready,
        "missing": local.why or None,
        "cost_per_clip": 0.0 if config.network == PRECOMPUTED else shape.gflop,
        "reconstruction": facts is not None and papers and facts.reconstruction,
        "random": source is not None and source.kind == "random",
    }


def _in_words(key: str, config: TeacherConfig) -> str:
    source, facts = config.source, TEACHERS.get(key)
    if config.network == PRECOMPUTED:
        return "features made elsewhere, read from files"
    if config.is_own:
        return "a class of your own"
    rebuilt = facts is not None and facts.network == config.network and facts.reconstruction
    if source is not None and source.kind == "random":
        return f"RANDOM {config.network}, untrained" + (", in the place of a reconstruction" if rebuilt else "")
    if source is not None and source.shipped:
        note = "trained on the demo's rendered clips"
        return f"{note}; {facts.note}" if facts is not None and rebuilt else note
    return facts.note if facts is not None and facts.network == config.network else ""
