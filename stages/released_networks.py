"""Released checkpoints as networks of a run: of its student's sizes and its table's classes, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import UsageError, WeightsError
from ..models import TimeSformer
from ..models.release import listed, read_release_checkpoint, read_release_weights
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from .imported import sha256
from .training import fresh_model

Reader = Callable[[Path], tuple[dict[str, Tensor], int | None]]
"""A file's tensors by name, and its epoch."""


class Network(NamedTuple):
    """A network's tensors, the network, what its file is."""

    tensors: dict[str, Tensor]
    model: TimeSformer
    content: dict[str, Any]


def fitting_network(
    run: Run,
    file: Path,
    heads: int | None,
    projection: str | None,
    width: int | None = None,
    read: Reader | None = None,
) -> Network:
    """A checkpoint as a network of the student's sizes and the table's classes.

    `projection`: what its one projection is called (None: it has none), `width`: what that must have (None: any).
    Raises `WeightsError` naming every entry that is missing, unknown, of another shape or type, or not finite.
    """
    student = run.config.student
    if heads is not None and heads != student.heads:
        raise UsageError(f"--heads {heads}, but student.heads is {student.heads}: the student is one of these networks")
    state, epoch = (read or strictly)(file)
    found = state["proj_layer.weight"].shape[0] if "proj_layer.weight" in state else None
    size = None if projection is None else width or found
    model = fresh_model(run, {} if projection is None or size is None else {projection: size})
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    common = sorted(state.keys() & wanted.keys())
    shapes = [
        f"{name} {_described(state[name])} instead of {_described(wanted[name])}"
        for name in common
        if _described(state[name]) != _described(wanted[name])
    ]
    if missing or unknown or shapes:
        raise WeightsError(
            f"{file} is no network of this run (student.* in run.yaml, {run.table().num_classes} classes); missing: "
            f"{listed(missing)}; unknown: {listed(unknown)}; others: {listed(shapes)}"
        )
    broken = [name for name in common if not state[name].isfinite().all()]
    if broken:
        raise WeightsError(f"{file}: holds numbers that are not finite: {listed(broken)}")
    say(f"{file}: {len(state)} tensors{'' if epoch is None else f', epoch {epoch}'}; {student.heads} heads are assumed")
    return Network(state, model, {"weights": sha256(file), "epoch": epoch})


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def strictly(file: Path) -> tuple[dict[str, Tensor], int | None]:
    state, metadata = read_release_checkpoint(file)
    return state, metadata["epoch"]


def without_projection(file: Path) -> tuple[dict[str, Tensor], int | None]:
    state, epoch = read_release_weights(file)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("proj_layer")}
    if len(kept) < len(state):
        say(f"{file}: its projection is left out; the student's starts anew")
    return kept, epoch


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest number among `folder`/checkpoints/*.pyth, or else the only `folder`/*.pyth."""
    numbered = {
        int(match[1]): path
        for path in (folder / "checkpoints").glob("*.pyth")
        if (match := re.search(r"(\d+)\.pyth$", path.name))
    }
    if numbered:
        return numbered[max(numbered)]
    lone = sorted([*folder.glob("*.pyth"), *(folder / "checkpoints").glob("*.pyth")])
    if len(lone) > 1:
        raise UsageError(f"{folder}: which of {listed(path.name for path in lone)} is the proxy? Leave one there")
    return lone[0] if lone else None
