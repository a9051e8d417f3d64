"""TensorBoard event files beside metrics.jsonl (`compute.tensorboard`): the same numbers, for its pages.

metrics.jsonl is what counts. The event file is made anew from it when a training goes on, so that no step is in it
twice; the times in it are then those of going on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError

EVENTS = "tensorboard"
"""The folder, in that of a training."""

_POSITION = ("epoch", "step")


def require_tensorboard() -> None:
    """Raise `UsageError` where the writer of event files is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UsageError(
            "compute.tensorboard needs tensorboardX: pip install 'uniego[tensorboard]', or set compute.tensorboard to "
            "false; metrics.jsonl is written anyway"
        )


class EventFile:
    """The event file of one training in `folder`, of records as metrics.jsonl has them; `epoch` is steps per epoch."""

    def __init__(self, folder: Path, epoch: int) -> None:
        from tensorboardX import SummaryWriter

        self._epoch = epoch
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder), write_to_disk=True)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records, and have them in the file."""
        for record in records:
            step = record["epoch"] * self._epoch + record.get("step", self._epoch - 1)  # a validation ends its epoch
            for name, value in scalars(record):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the thread that writes."""
        self._writer.close()


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record by name, those of a mapping in it as "mapping/name"; its position is none of them."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not (name in _POSITION and not prefix):
            yield prefix + name, float(value)
