"""Where a training's targets live: on its device, in memory, or mapped from a file under the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from ..cache.view import Fill, Part, mapped, resident
from ..models.droppath import to_device
from ..pipeline.config import ComputeConfig
from ..pipeline.progress import say, size_text
from .batches import Batch
from .compute import resolve_device

Place = Literal["device", "memory", "mapped"]
VIEW = "view"
"""Folder of a mapped view, inside that of the training which reads it; removed when that is done."""

_SHARE_OF_MEMORY = 0.5
_SHARE_OF_DEVICE = 0.25
_BLOCK = 4096  # rows that are hashed at a time


def choose_place(size: int, config: ComputeConfig) -> tuple[Place, int]:
    """(place, budget of memory in bytes) for so many bytes.

    What takes up to a quarter of what is free on a GPU goes there. Of the rest memory takes `compute.memory_gb`, or
    half of what is free; more is mapped.
    """
    device = resolve_device(config)
    budget = int(config.memory_gb * 1e9) if config.memory_gb is not None else int(free_memory() * _SHARE_OF_MEMORY)
    if device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] * _SHARE_OF_DEVICE:
        return "device", budget
    return "memory" if size <= budget else "mapped", budget


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group (v2) where there is one."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        (own,) = (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        for folder in (group / own.strip("/"), *(group / own.strip("/")).parents):
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                free = min(free, max(0, int(text) - int((folder / "memory.current").read_text())))
    except (OSError, ValueError):
        pass  # no control groups of this kind
    return free


def open_view(
    title: str, folder: Path, key: str, parts: Mapping[str, Part], fill: Fill, config: ComputeConfig
) -> dict[str, Tensor]:
    """Contiguous tensors filled by `fill`, where there is room; says where, and how many bytes they take.

    `folder` is that of the training, `key` the hash of what they are made from.
    """
    size = sum(part.bytes for part in parts.values())
    place, budget = choose_place(size, config)
    # on its way to a GPU, too, what memory has no room for lies in a file
    arrays = mapped(folder / VIEW, key, parts, fill) if size > budget else resident(parts, fill)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if place == "device":
        tensors = {name: tensor.to(resolve_device(config)) for name, tensor in tensors.items()}
    where = {
        "device": f"on {resolve_device(config)}",
        "memory": "in memory",
        "mapped": f"mapped from {folder / VIEW}, since the budget is {size_text(budget)} of memory",
    }
    say(f"{title}: {size_text(size)}, {where[place]}")
    return tensors


def content_hash(tensors: Mapping[str, Tensor], order: Sequence[int]) -> str:
    """Hash of the rows of named tensors [N, …] in `order`, bit for bit, wherever they live.

    SHA-256, which processors have instructions for: it keeps up with reading.
    """
    digest, rows = hashlib.sha256(), torch.tensor(order)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        for start in range(0, len(rows), _BLOCK):
            block = tensor[rows[start : start + _BLOCK].to(tensor.device)]
            digest.update(block.cpu().numpy().reshape(-1).data)
    return digest.hexdigest()


def take(tensor: Tensor, batch: Batch, columns: Tensor | None = None) -> Tensor:
    """The batch's rows [b, …] of a tensor [N, …] of all clips, on the batch's device, wherever the tensor lives.

    columns: int64 [b, S] on the CPU, to take only these entries of each row [P, …]. What is gathered in the host's
    memory travels to a GPU from pinned memory, so that neither waits for the other.
    """
    device = batch.indices.device
    if tensor.device == device:
        rows = batch.indices
        return tensor[rows] if columns is None else tensor[rows.unsqueeze(1), to_device(columns, device)]
    rows = torch.tensor(batch.rows)
    return to_device(tensor[rows] if columns is None else tensor[rows.unsqueeze(1), columns], device)
