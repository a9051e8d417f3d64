"""What the student starts from: the merged proxies, their average, one of them, or image weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MissingInputError
from ..models import TimeSformer
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from .encoder import WEIGHTS
from .training import fresh_model, initial_proxy


def initial_student(run: Run, projections: Mapping[str, int], proxies: Sequence[str]) -> TimeSformer:
    """The student as `distill.init` says; `projections` (name: width) always start anew, from the run's seed."""
    kind, _, key = run.config.distill.init.partition(":")
    if kind == "imagenet":
        if run.config.student.init is None:
            warn("student.init is null: the student starts from random weights, which is for trying things out only")
        return initial_proxy(run, projections)
    model = fresh_model(run, projections)
    if kind == "merged":
        state = _weights(run.merge_folder.path / "merged.safetensors", "uniego distill --overwrite")
    else:
        state = average(run, [key] if kind == "proxy" else proxies)
    _take_start(model, state)
    return model


@torch.no_grad()
def average(run: Run, proxies: Sequence[str]) -> dict[str, Tensor]:
    """The uniform average of trained proxies, without their projections; one of them is in memory at a time."""
    total: dict[str, Tensor] = {}
    for key in proxies:
        path = run.proxy_folder(key).path / "model" / WEIGHTS
        for name, tensor in _weights(path, f"uniego train-proxies --teacher {key} --overwrite").items():
            if not name.startswith("proj_layer"):
                total[name] = total[name].add_(tensor) if name in total else tensor
    return {name: tensor.div_(len(proxies)) for name, tensor in total.items()}


def _weights(path: Path, command: str) -> dict[str, Tensor]:
    if not path.exists():
        raise MissingInputError(f"the weights to start from are gone: no {path}; run `{command}`")
    return load_file(path)


def _take_start(model: TimeSformer, state: Mapping[str, Tensor]) -> None:
    """Everything but the projections comes from the start."""
    result = model.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("proj_layer")]
    if missing or result.unexpected_keys:
        raise MissingInputError(
            f"the weights to start from do not fit the student: missing {missing[:5]}, "
            f"unexpected {result.unexpected_keys[:5]}; run `uniego distill --overwrite`"
        )
