"""Checkpoints: a new folder, fsynced, renamed into place; the last two are kept.

A checkpoint holds everything that training needs to continue: the task's tensors, the optimiser's state and the
position (epoch, step). There is no random state in it: draws are functions of (seed, epoch, clip).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import IntegrityError, UniegoError
from ..pipeline import files
from ..pipeline.progress import warn
from . import ranks

KEEP = 2
_DAMAGE = (OSError, ValueError, KeyError, SafetensorError, IntegrityError)
_TENSORS = ("task.safetensors", "optimizer.safetensors")
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors by name on the CPU, the optimiser's `state_dict`, and plain numbers.

    `name` is that of its folder.
    """

    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    name: str = ""


class Checkpoints:
    """The checkpoints of one training, whose folder's lock the caller holds.

    `save` copies the state and returns; a thread writes it. What goes wrong there is raised by the next call.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._damaged: list[Path] = []
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def load(self) -> Checkpoint | None:
        """The newest one that is whole, see `load_newest`; of several processes all load what the first has found."""
        checkpoint: Checkpoint | None = None
        if ranks.rank() == 0:
            checkpoint, self._damaged = _newest(self.folder)
        found = checkpoint.name if checkpoint is not None else None
        name = ranks.from_first(lambda: found)
        if name is None or checkpoint is not None:
            return checkpoint
        try:
            return _load(self.folder / name)
        except _DAMAGE as error:
            raise IntegrityError(
                f"rank 0 continues at {self.folder / name}, which rank {ranks.rank()} cannot read ({error}): all "
                "machines must see the run's folder alike"
            ) from error

    def save(
        self, step: int, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Begin to write the checkpoint of optimiser step `step`, after the one before it is written.

        Of several processes the first writes.
        """
        if ranks.rank() > 0:
            return
        self.wait()
        copied = _copy(tensors, optimizer, state)
        self._writer = threading.Thread(target=self._write, args=(step, copied), name="checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Return when everything is written. Raises what went wrong."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, copied: Checkpoint) -> None:
        try:
            _write(self.folder, step, copied, self._damaged)
            self._damaged = []
        except BaseException as error:  # the training's own thread raises it
            self._error = error


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint of optimiser step `step` and remove all but the last two; a whole one is left as it is.

    Raises `UniegoError` for tensors that are not finite numbers, `OSError` where it cannot be written.
    """
    _write(folder, step, _copy(tensors, optimizer, state))


def _copy(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Checkpoint:
    """The state as it is now; training may go on."""
    saved = optimizer.state_dict()
    moments = {
        index: {name: _to_host(value) if isinstance(value, Tensor) else value for name, value in entries.items()}
        for index, entries in saved["state"].items()
    }
    groups = [dict(group) for group in saved["param_groups"]]
    return Checkpoint(
        {name: _to_host(tensor) for name, tensor in tensors.items()},
        {"state": moments, "param_groups": groups},
        json.loads(json.dumps(state)),
    )


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _write(folder: Path, step: int, copied: Checkpoint, damaged: Sequence[Path] = ()) -> None:
    """Write a checkpoint, and remove damaged ones and all but the last two."""
    final = folder / f"step-{step:09d}"
    if not (final.exists() and _is_whole(final)):
        _write_folder(folder, final, copied, damaged)
    for old in _steps(folder)[:-KEEP]:
        files.remove_tree(old)


def _write_folder(folder: Path, final: Path, copied: Checkpoint, damaged: Sequence[Path]) -> None:
    check_finite(copied.tensors, f"{final.name} of {folder.parent}")
    files.make_dir(folder)
    for left in folder.glob(".step-*.partial"):  # of a process that was killed
        files.remove_tree(left)
    partial = folder / f".{final.name}.partial"
    files.make_dir(partial)
    moments, numbers = _split_optimizer(copied.optimizer)
    hashes = {}
    for name, content in zip(_TENSORS, (copied.tensors, moments), strict=True):
        data = tensor_bytes(content)
        files.write_bytes(partial / name, data)
        hashes[name] = files.hash_bytes(data)
    numbered = {"state": copied.state, "optimizer": numbers}
    hashes[_STATE] = _hash_of(numbered)
    files.write_json(partial / _STATE, {**numbered, "hashes": hashes})
    for path in {*damaged, final}:
        files.remove_tree(path)
    files.operations.rename(partial, final)
    files.sync_dir(folder)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is passed over with a warning. None: there is none.

    Raises `IntegrityError` when there are checkpoints and every one of them is damaged.
    """
    return _newest(folder)[0]


def _newest(folder: Path) -> tuple[Checkpoint | None, list[Path]]:
    """The newest that is whole, and the damaged ones that are newer."""
    damaged: list[Path] = []
    for path in reversed(_steps(folder)):
        try:
            return _load(path), damaged
        except _DAMAGE as error:
            warn(f"checkpoint {path} is damaged ({error}); trying the one before it")
            damaged.append(path)
    if damaged:
        raise IntegrityError(f"every checkpoint in {folder} is damaged; start this part anew with --overwrite")
    return None, damaged


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise `UniegoError` naming tensors that hold NaN or infinity: nothing that is not a number is ever kept."""
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UniegoError(
            f"{what}: {len(bad)} tensors are not finite numbers ({', '.join(bad[:3])}); lower the learning rate or use "
            "precision fp32 or bf16, and start this part anew with --overwrite"
        )


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file. The same content gives the same bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(content, dict(metadata) if metadata else None)
    return _sort_metadata(data) if metadata else data


def _sort_metadata(data: bytes) -> bytes:
    """Put the metadata in order: the library writes it in one that changes from process to process.

    The file begins with the header's length (8 bytes, little-endian) and the header as JSON, spaces at its end.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > length:
        raise UniegoError("the header of a file of tensors cannot be put in order; this is a fault of uniego")
    return b"".join((data[:8], text.ljust(length), data[8 + length :]))


def replace_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole and durably, in the place of an older one."""
    files.write_bytes(path, tensor_bytes(tensors, metadata))


def _is_whole(path: Path) -> bool:
    try:
        _load(path)
    except _DAMAGE:
        return False
    return True


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.exists() else []


def _load(path: Path) -> Checkpoint:
    content = json.loads((path / _STATE).read_text(encoding="utf-8"))
    hashes = content.pop("hashes")
    if _hash_of(content) != hashes[_STATE]:
        raise IntegrityError(f"{_STATE} differs from what was written")
    parts = []
    for name in _TENSORS:
        data = (path / name).read_bytes()
        if files.hash_bytes(data) != hashes[name]:
            raise IntegrityError(f"{name} differs from what was written")
        parts.append(safetensors.torch.load(data))
    tensors, moments = parts
    return Checkpoint(tensors, _join_optimizer(moments, content["optimizer"]), content["state"], path.name)


def _hash_of(content: Mapping[str, Any]) -> str:
    return files.hash_bytes(json.dumps(content, sort_keys=True).encode())


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


_WAYS = ("foreach", "fused", "capturable", "differentiable")


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take back an optimiser's state. In which way it computes is its own affair, not the checkpoint's."""
    ways = [{way: group[way] for way in _WAYS if way in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, own in zip(optimizer.param_groups, ways, strict=True):
        group.update(own)
