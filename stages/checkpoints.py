"""Checkpoints: a new folder, fsynced, renamed into place; the last two are kept.

A checkpoint holds everything that training needs to continue: the task's tensors, the optimiser's state and the
position (epoch, step). There is no random state in it: draws are functions of (seed, epoch, clip).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import IntegrityError, UniegoError
from ..pipeline import files
from ..pipeline.progress import warn

KEEP = 2
_DAMAGE = (OSError, ValueError, KeyError, SafetensorError, IntegrityError)
_TENSORS = ("task.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors by name on the CPU, the optimiser's `state_dict`, and plain numbers."""

    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint of optimiser step `step` and remove all but the last two; a whole one is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    if final.exists() and _is_whole(final):
        return
    for left in folder.glob(".step-*.partial"):  # of a process that was killed: the caller holds the folder's lock
        shutil.rmtree(left)
    partial = folder / f".step-{step:09d}.partial"
    partial.mkdir()
    moments, numbers = _split_optimizer(optimizer.state_dict())
    for name, content in zip(_TENSORS, (tensors, moments), strict=True):
        save_tensors(partial / name, content)
    hashes = {name: files.hash_file(partial / name) for name in _TENSORS}
    files.write_json(partial / "state.json", {"state": dict(state), "optimizer": numbers, "hashes": hashes})
    files.sync_dir(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    files.sync_dir(folder)
    for old in _steps(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning. None: there is none.

    Raises `IntegrityError` when there are checkpoints and every one of them is damaged.
    """
    steps = _steps(folder)
    for path in reversed(steps):
        try:
            return _load(path)
        except _DAMAGE as error:
            warn(f"checkpoint {path} is damaged ({error}); trying the one before it")
    if steps:
        raise IntegrityError(f"every checkpoint in {folder} is damaged; start this part anew with --overwrite")
    return None


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise `UniegoError` naming tensors that hold NaN or infinity: nothing that is not a number is ever kept."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UniegoError(
            f"{what}: {len(bad)} tensors are not finite numbers ({', '.join(bad[:3])}); lower the learning rate or use "
            "precision fp32 or bf16, and start this part anew with --overwrite"
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and fsync it. The same content gives the same bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(content, path, dict(metadata) if metadata else None)
    with path.open("r+b") as handle:
        if metadata:
            _sort_metadata(handle)
        os.fsync(handle.fileno())


def _sort_metadata(handle: BinaryIO) -> None:
    """Put the metadata in order: the library writes it in one that changes from process to process.

    The file begins with the header's length (8 bytes, little-endian) and the header as JSON, spaces at its end.
    """
    length = int.from_bytes(handle.read(8), "little")
    header = json.loads(handle.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > length:
        raise UniegoError(f"the header of {handle.name} cannot be put in order; this is a fault of uniego")
    handle.seek(8)
    handle.write(text.ljust(length))


def replace_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole and durably, in the place of an older one."""
    partial = path.with_name(f".{path.name}.partial")
    save_tensors(partial, tensors, metadata)
    partial.replace(path)
    files.sync_dir(path.parent)


def _is_whole(path: Path) -> bool:
    try:
        _load(path)
    except _DAMAGE:
        return False
    return True


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.exists() else []


def _load(path: Path) -> Checkpoint:
    saved = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for name in _TENSORS:
        if files.hash_file(path / name) != saved["hashes"][name]:
            raise IntegrityError(f"{name} differs from what was written")
    tensors, moments = (load_file(path / name) for name in _TENSORS)
    return Checkpoint(tensors, _join_optimizer(moments, saved["optimizer"]), saved["state"])


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors and JSON-able numbers."""
    moments: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                moments[f"{index}.{name}"] = value
            elif value is not None:
                numbers.setdefault(str(index), {})[name] = value
    return moments, {"numbers": numbers, "param_groups": state["param_groups"]}


def _join_optimizer(moments: Mapping[str, Tensor], saved: Mapping[str, Any]) -> dict[str, Any]:
    entries: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in saved["numbers"].items()}
    for key, tensor in moments.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = tensor
    return {"state": entries, "param_groups": saved["param_groups"]}
