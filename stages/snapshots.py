"""A network on its way through training, kept for analysis: FOLDER/snapshots/step-….safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..pipeline import files
from .checkpoints import replace_tensors

_NAME = "snapshots"


def is_due(step: int, steps: int, number: int) -> bool:
    """Whether one is kept after `step` of `steps` steps: at the start, and after each `number`-th part of them."""
    return number > 0 and step in {round(part * steps / number) for part in range(number + 1)}


def keep(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Write the snapshot of a step whole, in the place of an earlier one."""
    files.make_dir(folder / _NAME)
    replace_tensors(folder / _NAME / f"step-{step:09d}.safetensors", tensors)


def find(folder: Path) -> dict[int, Path]:
    """The snapshots of a training, by step."""
    return {int(path.stem.removeprefix("step-")): path for path in sorted((folder / _NAME).glob("step-*.safetensors"))}


def forget_after(folder: Path, step: int) -> None:
    """Remove those of steps that will be made again."""
    for number, path in find(folder).items():
        if number > step:
            path.unlink()
