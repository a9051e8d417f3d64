"""Learning rate as a function of the fractional epoch."""

from __future__ import annotations

import math

from ..pipeline.config import OptimizerConfig, ScheduleConfig


def learning_rate(epoch: float, optimizer: OptimizerConfig, schedule: ScheduleConfig, *, epochs: int) -> float:
    """Rate at `epoch` (0 at the start, `epochs` at the end; fractions within an epoch).

    Steps hold from their epoch on, boundary included. The cosine is end + (base - end)(1 + cos(pi e / E)) / 2.
    The warm-up is linear from `warmup_lr` to the schedule's value at the end of the warm-up.
    """
    if epoch < schedule.warmup_epochs:
        target = _scheduled(schedule.warmup_epochs, optimizer, schedule, epochs)
        return schedule.warmup_lr + (target - schedule.warmup_lr) * epoch / schedule.warmup_epochs
    return _scheduled(epoch, optimizer, schedule, epochs)


def _scheduled(epoch: float, optimizer: OptimizerConfig, schedule: ScheduleConfig, epochs: int) -> float:
    if schedule.kind == "cosine":
        swing = (math.cos(math.pi * epoch / epochs) + 1.0) * 0.5
        return schedule.end_lr + (optimizer.lr - schedule.end_lr) * swing
    reached = [factor for step, factor in zip(schedule.steps, schedule.factors, strict=True) if epoch >= step]
    return optimizer.lr * reached[-1]
