"""Released checkpoints of the reference implementation, and the geometry that a state dict implies.

A released `.pyth` is a dict of `epoch`, `model_state` (names with the prefix `model.`), `optimizer_state` and
`cfg` (the configuration as text). Without that prefix the names are those of `TimeSformer`.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import WeightsError
from .timesformer import MLP_RATIO

PREFIX = "model."
HEAD_WIDTH = 64


class ReleaseMetadata(TypedDict):
    """What a released checkpoint says about itself; `epoch` counts from 0, `config` is YAML text."""

    epoch: int
    config: str


def read_release_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], ReleaseMetadata]:
    """State dict (CPU tensors as stored, names without `model.`) and metadata of a released `.pyth`.

    The optimiser state is left on disk. Only tensors and plain values are ever unpickled. WeightsError,
    naming the file and what is missing or unknown, when it cannot be read or is not laid out as described
    above.
    """
    path = Path(path)
    stored = load_tensors(path)
    missing = [name for name in ("epoch", "model_state", "cfg") if name not in stored]
    if missing:
        raise WeightsError(f"{path}: not a released checkpoint, it has no {', '.join(missing)}")
    epoch, config = stored["epoch"], stored["cfg"]
    if type(epoch) is not int or not isinstance(config, str):
        kinds = f"{type(epoch).__name__} and {type(config).__name__}"
        raise WeightsError(f"{path}: epoch and cfg must be a whole number and text, they are {kinds}")
    state = tensor_dict(stored["model_state"], f"{path}: model_state")
    bare = [name for name in state if not name.startswith(PREFIX)]
    if bare or not state:
        raise WeightsError(f"{path}: names in model_state must start with {PREFIX!r}; not so: {listed(bare)}")
    named = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in state.items()}
    check_names(named, str(path))
    return named, ReleaseMetadata(epoch=epoch, config=config)


def read_release_weights(path: str | Path) -> tuple[dict[str, Tensor], int | None]:
    """State dict (CPU tensors, names without `model.`) and epoch of a `.pyth`, or of a file of weights alone.

    For merged networks, which are no checkpoint of a training: `model_state`, or the tensors themselves, with or
    without the prefix; the epoch is None where the file has none. WeightsError as for `read_release_checkpoint`.
    """
    path = Path(path)
    stored = load_tensors(path)
    if {"epoch", "model_state", "cfg"} <= stored.keys():
        state, metadata = read_release_checkpoint(path)
        return state, metadata["epoch"]
    state = tensor_dict(stored.get("model_state", stored), str(path))
    named = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in state.items()}
    if len(named) != len(state):
        raise WeightsError(f"{path}: names with and without {PREFIX!r} stand for the same entry")
    check_names(named, str(path))
    return named, None


def geometry_from_state(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    *,
    projection: str = "student",
    drop_path: float = 0.1,
) -> dict[str, Any]:
    """The keywords of the `TimeSformer` whose state dict this is.

    What shapes do not tell are arguments: `heads` (default: width / 64 where that is whole), the name of a
    single projection (stored as `proj_layer`, whosever it is), and the drop-path rate. WeightsError names
    missing or unknown entries and shapes that contradict each other, and asks for `heads` where it cannot be
    told.
    """
    depth = check_names(state, "state dict")
    width, patch = _shape(state, "cls_token", 3)[2], _shape(state, "patch_embed.proj.weight", 4)[3]
    frames, classes = _shape(state, "time_embed", 3)[1], _shape(state, "head.weight", 2)[0]
    patches = _shape(state, "pos_embed", 3)[1] - 1
    sizes = {name: _shape(state, f"{name}.weight", 2)[0] for name in _projections(state)}
    wanted = parameter_shapes(depth, sizes, width, patch, patches, frames, classes)
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(wanted[name])}"
        for name, tensor in state.items()
        if tuple(tensor.shape) != wanted[name]
    ]
    if wrong:
        raise WeightsError(f"state dict: shapes contradict each other: {listed(wrong)}")
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise WeightsError(f"state dict: pos_embed holds {patches} patches, which is no square grid")
    if heads is None and width % HEAD_WIDTH:
        raise WeightsError(f"the number of heads cannot be told from width {width}: state it (heads=...)")
    return {
        "image_size": math.isqrt(patches) * patch,
        "patch_size": patch,
        "num_frames": frames,
        "width": width,
        "depth": depth,
        "heads": width // HEAD_WIDTH if heads is None else heads,
        "num_classes": classes,
        "projections": {
            (projection if name == "proj_layer" else name.removeprefix("proj_layers.")): size
            for name, size in sizes.items()
        },
        "drop_path": drop_path,
    }


def parameter_shapes(
    depth: int,
    projections: Mapping[str, int],
    width: int = 1,
    patch: int = 1,
    patches: int = 1,
    frames: int = 1,
    classes: int = 1,
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a TimeSformer; `projections` by layer name (`proj_layer`, ...)."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + patches, width),
        "time_embed": (1, frames, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linear = {"head": (classes, width), **{name: (size, width) for name, size in projections.items()}}
    for block in (f"blocks.{index}." for index in range(depth)):
        for norm in ("norm1", "temporal_norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for attention in ("attn", "temporal_attn"):
            linear |= {
                f"{block}{attention}.qkv": (3 * width, width),
                f"{block}{attention}.proj": (width, width),
            }
        linear[f"{block}temporal_fc"] = (width, width)
        linear[f"{block}mlp.fc1"] = (MLP_RATIO * width, width)
        linear[f"{block}mlp.fc2"] = (width, MLP_RATIO * width)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def check_names(state: Iterable[str], where: str) -> int:
    """The depth of a TimeSformer state dict; WeightsError names what is missing or unknown in it."""
    names = set(state)
    indices = {int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}
    depth = max(indices, default=0) + 1
    if depth > len(names):
        raise WeightsError(f"{where}: block {depth - 1} is there, but most blocks before it are not")
    wanted = set(parameter_shapes(depth, dict.fromkeys(_projections(names), 1)))
    missing, unknown = sorted(wanted - names), sorted(names - wanted)
    if missing or unknown:
        raise WeightsError(
            f"{where}: not a TimeSformer state dict; missing: {listed(missing)}; unknown: {listed(unknown)}"
        )
    return depth


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a `.safetensors` file on the CPU, and its metadata; WeightsError when it cannot be read."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path}: cannot be read as safetensors: {error}") from error


def load_tensors(path: Path) -> dict[str, Any]:
    """The dict stored in a torch or safetensors file, on the CPU; WeightsError when it cannot be read."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path)[0])
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path}: cannot be read as a file of weights alone: {reason[0]}") from error
    if not isinstance(stored, dict):
        raise WeightsError(f"{path}: holds a {type(stored).__name__}, not a dict")
    return stored


def tensor_dict(value: object, where: str) -> dict[str, Tensor]:
    """`value` itself when it maps names to floating-point tensors; WeightsError otherwise."""
    if not isinstance(value, Mapping):
        raise WeightsError(f"{where}: is a {type(value).__name__}, not a state dict")
    bad = [
        str(name)
        for name, tensor in value.items()
        if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point())
    ]
    if bad:
        raise WeightsError(f"{where}: these entries are no floating-point tensors: {listed(bad)}")
    return dict(value)


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message: the first few and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    shape = state[name].shape
    if len(shape) != dims:
        raise WeightsError(f"state dict: {name} {list(shape)} should have {dims} dimensions")
    return shape


def _projections(names: Iterable[str]) -> list[str]:
    """`proj_layer` and `proj_layers.<name>` as far as there are, in order of name."""
    found = (re.match(r"proj_layer(?=\.)|proj_layers\.[^.]+(?=\.)", name) for name in names)
    return sorted({match[0] for match in found if match})
