"""How long a training is, in which portions it goes, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import UniegoError
from ..pipeline.config import CheckpointConfig


@dataclass(frozen=True)
class Plan:
    """How long, in which portions, where. `batch` is the number of clips of a step, for what is shown."""

    epochs: int
    steps_per_epoch: int
    accumulate: int
    batch: int
    checkpoint: CheckpointConfig
    device: torch.device
    precision: str = "fp32"
    compile: bool = False
    log_every: int = 10
    tensorboard: bool = False
    snapshots: int = 0  # of the task's tensors that are kept on the way, besides that of the start

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise UniegoError(
                f"the train split has fewer clips than one global batch of {self.batch}, so that no step would be "
                "made; lower global_batch and micro_batch of this stage's `train` section, or add clips"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch


@dataclass
class Position:
    """How far training is: `step` steps of `epoch` are done; the best validation so far."""

    epoch: int = 0
    step: int = 0
    best_score: float | None = None
    best_epoch: int | None = None

    def total(self, plan: Plan) -> int:
        """Optimiser steps done."""
        return self.epoch * plan.steps_per_epoch + self.step
