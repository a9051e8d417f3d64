"""Released `.pyth` checkpoints: taken in as a folder that `uniego.load` opens, and written from one."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..errors import MissingInputError, UsageError, WeightsError
from ..models import TimeSformer, geometry_from_state, read_release_checkpoint
from ..models.release import HEAD_WIDTH, PREFIX, listed
from ..pipeline import files
from ..pipeline.config import AugmentConfig, EvaluateConfig, SamplingConfig
from ..pipeline.progress import say
from .batches import ClipReader, Protocol
from .encoder import read_model, write_model
from .model_export import NewFolder, refuse_filled

_TOLD = ("width", "depth", "image_size", "patch_size", "num_frames", "num_classes")
_PUBLISHED = 224
"""Image size that the published short sides belong to."""


def import_checkpoint(
    file: Path,
    out: Path,
    *,
    heads: int | None = None,
    classes: Path | None = None,
    policy: str = "window",
    views: int = 1,
    crops: int = 3,
    like: Path | None = None,
) -> dict[str, Any]:
    """Write the network of a released checkpoint as a folder `out`; returns its geometry.

    Sizes are told by the shapes, but for `heads` (None: width / 64). `classes`: a JSON list or a text file of names, a
    line each, in the order of the labels. `policy`, `views`, `crops`: how clips are looked at; the short sides are the
    published ones, in proportion to the network's image size. `like`: a folder or checkpoint whose names and shapes it
    must have. Raises `WeightsError` naming the entries that are missing, unknown, of another shape or not finite,
    `UsageError` for options that do not fit the checkpoint.
    """
    refuse_filled(out)
    state, metadata = read_release_checkpoint(file)
    width = state["cls_token"].shape[-1]
    if heads is None and width % HEAD_WIDTH:
        raise UsageError(f"{file}: the number of heads cannot be told from width {width}: state it with --heads N")
    geometry = geometry_from_state(state, heads)
    if like is not None:
        _refuse_unlike(file, geometry, state, like)
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{file}: entries that are not finite numbers: {listed(broken)}")
    model = TimeSformer(**geometry)
    names = _class_names(classes, geometry["num_classes"])
    model.load_state_dict(state)
    protocol = Protocol(views, crops)
    with NewFolder(out) as folder:
        write_model(folder, model, model.state_dict(), _reader(geometry, policy), protocol, names)
    source = "stated" if heads is not None else f"width / {HEAD_WIDTH}"
    sizes = ", ".join(f"{name} {geometry[name]}" for name in _TOLD)
    say(f"{file}: epoch {metadata['epoch']}, {len(state)} tensors; {sizes}, heads {geometry['heads']} ({source})")
    say(f"wrote {out}; looks at clips by the {policy} policy, {views} x {crops} views x crops (see config.json)")
    return geometry


def export_checkpoint(model: Path, file: Path) -> None:
    """Write a network's folder as a `.pyth` in the released layout: epoch, model_state, optimizer_state, cfg.

    The optimiser's state is empty, the epoch 0, and `cfg` names the network's own sizes only. Raises `UsageError` where
    the file exists.
    """
    if file.exists():
        raise UsageError(f"--out {file} exists: name a new file")
    network, config = read_model(model)
    g = config["geometry"]
    files.write_bytes(file, pyth_bytes(network.state_dict(), g))
    say(f"wrote {file}: {len(network.state_dict())} tensors, {g['heads']} heads (the file does not say)")


def pyth_bytes(state: Mapping[str, Tensor], geometry: Mapping[str, Any], epoch: int = 0) -> bytes:
    """A checkpoint in the released layout, without an optimiser's state; `epoch` counts from 0."""
    written = {
        "DATA": {"NUM_FRAMES": geometry["num_frames"], "TRAIN_CROP_SIZE": geometry["image_size"]},
        "MODEL": {"NUM_CLASSES": geometry["num_classes"]},
    }
    content: dict[str, Any] = {
        "epoch": epoch,
        "model_state": {f"{PREFIX}{name}": tensor for name, tensor in state.items()},
        "optimizer_state": {},
        "cfg": yaml.safe_dump(written),
    }
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _refuse_unlike(file: Path, geometry: dict[str, Any], state: dict[str, Any], like: Path) -> None:
    """Raise `WeightsError` with the entries in which a checkpoint differs from another network."""
    other = read_release_checkpoint(like)[0] if like.is_file() else read_model(like)[0].state_dict()
    missing, unknown = sorted(other.keys() - state.keys()), sorted(state.keys() - other.keys())
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(other[name].shape)}"
        for name in sorted(state.keys() & other.keys())
        if state[name].shape != other[name].shape
    ]
    if missing or unknown or shapes:
        raise WeightsError(
            f"{file} is not of the network in {like}; missing: {listed(missing)}; unknown: {listed(unknown)}; "
            f"other shapes: {listed(shapes)}"
        )


def _reader(geometry: dict[str, Any], policy: str) -> ClipReader:
    """The released preprocessing, for the size of a network."""
    augment, evaluate, sampling = AugmentConfig(), EvaluateConfig(), SamplingConfig()
    size = geometry["image_size"]
    low, high, single = (
        max(size, round(side * size / _PUBLISHED)) for side in (*augment.short_side, evaluate.single_short_side)
    )
    return ClipReader(
        num_frames=geometry["num_frames"],
        image_size=size,
        policy=policy,
        rate=sampling.rate,
        short_side=(low, high),
        flip=augment.flip,
        mean=augment.mean,
        std=augment.std,
        single_short_side=single,
        backend="pyav",
        seed=0,
    )


def _class_names(path: Path | None, count: int) -> tuple[str, ...]:
    """The names of the classes, none where no file says."""
    if path is None:
        return ()
    if not path.is_file():
        raise MissingInputError(f"--classes {path}: no such file")
    text = path.read_text(encoding="utf-8-sig")
    names: Sequence[Any] = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix == ".json":
        try:
            names = json.loads(text)
        except ValueError as error:
            raise UsageError(f"--classes {path}: no JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"--classes {path}: must hold a list of names")
    if len(names) != count or len(set(names)) != count:
        raise UsageError(f"--classes {path}: {len(set(names))} different names, the checkpoint has {count} classes")
    return tuple(names)
