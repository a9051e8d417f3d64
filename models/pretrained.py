"""Start a TimeSformer from image weights: a 2-D vision transformer, or another TimeSformer.

From an image ViT (arXiv 2010.11929) spatial attention and its norm are also copied into the temporal
branch, whose `temporal_fc` is left alone: in a fresh network it is zero, so that the video network starts
as the image network with its CLS residuals averaged over frames (TimeSformer, arXiv 2102.05095). Position
tables of another resolution are resized to the nearest entry in two dimensions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import WeightsError
from .release import PREFIX, listed, load_tensors, tensor_dict
from .timesformer import TimeSformer, resize_positions, resize_times

_HUGGING_FACE_NAMES = (
    (r"^vit\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.", r".attn.\1\2."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
_WRAPPERS = ("model_state", "state_dict", "model")


@dataclass(frozen=True)
class ImageWeightsReport:
    """What `load_image_weights` did, by the network's names (of `ignored`, those that it has)."""

    source: str  # "vit", "vit-huggingface" or "timesformer"
    loaded: list[str]
    resized: list[str]  # those of `loaded` whose table had another size
    unchanged: list[str]  # parameters of the network that kept their values
    ignored: list[str]  # entries of the source left out on purpose: another head, pooling, projections

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self)


def read_image_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict in a file (`.safetensors`, or a torch file of weights) or in a `save_pretrained` folder.

    Tensors are on the CPU, as stored, under the names in the file, less a prefix `model.` that all of them
    share. A torch file may wrap its state dict as `model_state`, `state_dict` or `model`. WeightsError
    names the file when it is absent, cannot be read without running code, or holds no state dict.
    """
    path = Path(path)
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise WeightsError(f"{path}: the folder holds neither {names[0]} nor {names[1]}")
        path = found[0]
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        try:
            state: object = load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path}: cannot be read as safetensors: {error}") from error
    else:
        stored = load_tensors(path)
        wrapped = [name for name in _WRAPPERS if isinstance(stored.get(name), Mapping)]
        state = stored[wrapped[0]] if wrapped else stored
    tensors = tensor_dict(state, str(path))
    if tensors and all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def load_image_weights(model: TimeSformer, state: Mapping[str, Tensor]) -> ImageWeightsReport:
    """Start `model` from the state dict of an image ViT or of a TimeSformer, and say what was taken.

    An image ViT is known by timm's names or Hugging Face's (`ViTModel`, `ViTForImageClassification`); its
    patch weights may be flattened to [D, 3 * p * p]. A TimeSformer gives its temporal layers too, and its
    time table is resized to the nearest frame. The head is taken when source and network have equally many
    classes; projections never.

    All or nothing: WeightsError, naming the entries, when one is missing, unknown or of the wrong shape, and
    the network is then untouched. Stored floating-point types are converted to the network's.
    """
    source, named = _recognise(dict(state))
    own = dict(model.named_parameters())
    ignored = _left_out(named, own)
    values = {name: tensor for name, tensor in named.items() if name not in ignored}
    if source != "timesformer":
        values |= _temporal_copies(values)
    tables: list[str] = [name for name in ("pos_embed", "time_embed") if name in values]
    resized = [name for name in tables if _resize(name, values, own)]
    if "patch_embed.proj.weight" in values and values["patch_embed.proj.weight"].ndim == 2:
        values["patch_embed.proj.weight"] = _unflatten(values["patch_embed.proj.weight"], own)
    _check(values, own, source)
    with torch.no_grad():
        for name, tensor in values.items():
            own[name].copy_(tensor)
    return ImageWeightsReport(
        source=source,
        loaded=[name for name in own if name in values],
        resized=resized,
        unchanged=[name for name in own if name not in values],
        ignored=sorted(ignored),
    )


def _recognise(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The kind of source, and its tensors under TimeSformer's names."""
    if "time_embed" in state or any(".temporal_attn." in name for name in state):
        return "timesformer", state
    if any(name.removeprefix("vit.").startswith("embeddings.") for name in state):
        return "vit-huggingface", _from_hugging_face(state)
    return "vit", state


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face names to timm's; query, key and value become one `qkv`."""
    renamed = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in _HUGGING_FACE_NAMES:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise WeightsError(f"two entries stand for {new}, one of them is {name}")
        renamed[new] = tensor
    queries = [name for name in renamed if re.search(r"\.attn\.(query|q)\.", name)]
    for query in queries:
        start, letter, part = re.split(r"\.(query|q)\.", query)
        letters = ("query", "key", "value") if letter == "query" else ("q", "k", "v")
        three = [f"{start}.{each}.{part}" for each in letters]
        if all(name in renamed for name in three):
            renamed[f"{start}.qkv.{part}"] = torch.cat([renamed.pop(name) for name in three])
    return renamed


def _left_out(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Source entries that the network has no use for: a head for other classes, a pooler, projections."""
    ignored = {name for name in named if re.match(r"(pooler\.dense|proj_layer|proj_layers\.[^.]+)\.", name)}
    if "head.weight" in named and named["head.weight"].shape[:1] != own["head.weight"].shape[:1]:
        ignored |= {"head.weight", "head.bias"} & set(named)
    return ignored


def _temporal_copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Temporal attention and its norm, copied from the spatial ones."""
    pattern = re.compile(r"^(blocks\.\d+\.)(attn|norm1)\.")
    return {pattern.sub(r"\1temporal_\2.", name): t for name, t in values.items() if pattern.match(name)}


def _resize(name: str, values: dict[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Bring a position or time table to the network's size; True when it had another."""
    table, wanted = values[name], own[name].shape[1]
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] == wanted:
        return False
    if name == "time_embed":
        values[name] = resize_times(table.double(), wanted)
        return True
    patches = table.shape[1] - 1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise WeightsError(f"pos_embed {list(table.shape)}: its {patches} patches form no square grid")
    side = math.isqrt(wanted - 1)
    values[name] = resize_positions(table.double(), (side, side))
    return True


def _unflatten(weight: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Flattened patch weights [D, 3 * p * p] as [D, 3, p, p]; as they are when they do not fit."""
    shape = own["patch_embed.proj.weight"].shape
    return weight.reshape(shape) if weight.shape == (shape[0], shape[1:].numel()) else weight


def _check(values: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """WeightsError unless the values cover the network but for what its source cannot know."""
    free = r"head\.|proj_layers?\." + ("" if source == "timesformer" else r"|time_embed$|.*\.temporal_fc\.")
    missing = [name for name in own if name not in values and not re.match(free, name)]
    missing += [name for name in ("head.weight", "head.bias") if name not in values and _half_head(values)]
    unknown = [name for name in values if name not in own]
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in values.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if missing or unknown or wrong:
        raise WeightsError(
            f"these weights ({source}) do not fit the network; missing: {listed(missing)}; "
            f"unknown: {listed(unknown)}; of another shape: {listed(wrong)}"
        )


def _half_head(values: Mapping[str, Tensor]) -> bool:
    return ("head.weight" in values) != ("head.bias" in values)
