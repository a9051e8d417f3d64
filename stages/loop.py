"""The training loop that proxies, merge and student share: accumulate, step, log, save, continue.

After any stop the same call continues at the last checkpoint; on a CPU at a fixed number of threads the result
equals an undisturbed run's bit for bit, because nothing but (seed, epoch, step) decides about a step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniegoError
from ..pipeline.config import CheckpointConfig
from ..pipeline.progress import Meter, count, say, warn
from ..pipeline.signals import StopFlag
from . import utilisation
from .batches import Batch
from .checkpoints import Checkpoints, replace_tensors
from .steplog import StepLog

Batches = Callable[[int, int], Iterator[Batch]]  # (epoch, step) to start from -> micro-batches to the end


class Task(ABC):
    """What is trained: tensors, an optimiser, and the loss of a micro-batch."""

    title: str
    optimizer: torch.optim.Optimizer
    flops_per_clip: float | None = None  # of a forward and a backward pass; None: not counted

    @abstractmethod
    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Terms of one micro-batch, 0-dim each; "loss" is the one that is minimised, the others are logged."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""

    @abstractmethod
    def rate(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""

    def before_step(self) -> None:
        """Called when a step's gradients are complete, before the optimiser uses them."""

    def after_step(self) -> None:
        """Called when the optimiser has changed the tensors."""

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def validate(self) -> dict[str, float] | None:
        """Metrics on the val split, "score" among them (greater is better); None: there is no such split."""
        return None


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
    log_every: int = 10

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


@dataclass
class Loop:
    """One training in one folder (checkpoints/, metrics.jsonl, failures.jsonl, best.safetensors)."""

    task: Task
    plan: Plan
    folder: Path
    flag: StopFlag
    position: Position = field(default_factory=Position)

    def run(self, batches: Batches) -> Position:
        """Train to the end, from the newest checkpoint on. Raises `Stopped` after saving when asked to stop."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._scaler = torch.amp.GradScaler(self.plan.device.type, enabled=self.plan.precision == "fp16")
        self._checkpoints = Checkpoints(self.folder / "checkpoints")
        self._continue()
        self._log = StepLog(self.folder, (self.position.epoch, self.position.step), self._utilisation)
        self._saved_at = time.monotonic()
        plan, resumed = self.plan, self.position.total(self.plan)
        self._saved_total = resumed if resumed else None
        say(
            f"{self.task.title}: {count(plan.epochs, 'epoch')} of {count(plan.steps_per_epoch, 'step')} of "
            f"{plan.batch} clips, on {plan.device} in {plan.precision}; {count(plan.steps - resumed, 'step')} left"
        )
        try:
            with Meter(self.task.title, plan.steps * plan.batch, resumed=resumed * plan.batch) as meter:
                stream = batches(*self._next_step())
                self._run(stream, meter)
            self._checkpoints.wait()
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self._checkpoints.wait()
            raise
        finally:
            self._log.flush()
        return self.position

    def _utilisation(self, rate: float) -> str:
        return utilisation.describe(rate, self.task.flops_per_clip, self.plan.device, self.plan.precision)

    def _next_step(self) -> tuple[int, int]:
        if self.position.step == self.plan.steps_per_epoch:
            return self.position.epoch + 1, 0
        return self.position.epoch, self.position.step

    def _run(self, stream: Iterator[Batch], meter: Meter) -> None:
        while self.position.epoch < self.plan.epochs:
            while self.position.step < self.plan.steps_per_epoch:
                self._step(stream)
                self.position.step += 1
                meter.advance(self.plan.batch, self._log.note)
                self._save_if_due()
            self._end_epoch()

    def _step(self, stream: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` micro-batches."""
        started = time.monotonic()
        waited, clips, terms = 0.0, 0, []
        rate = self.task.rate(self.position.epoch + self.position.step / self.plan.steps_per_epoch)
        for group in self.task.optimizer.param_groups:
            group["lr"] = rate
        for _ in range(self.plan.accumulate):
            self._stop_if_asked()  # what this step has accumulated is done again
            asked = time.monotonic()
            batch = next(stream)
            waited += time.monotonic() - asked
            self._log.failures(batch)
            if batch.rows:
                clips += len(batch.rows)
                terms.append(self._backward(batch))
        if terms:  # a step of which no clip could be decoded changes nothing
            self.task.before_step()
            self._scaler.step(self.task.optimizer)
            self._scaler.update()
            self.task.after_step()
            self.task.zero_grad()
        entry = {"epoch": self.position.epoch, "step": self.position.step, "lr": rate, "clips": clips}
        self._log.step(entry, terms, time.monotonic() - started, waited)
        if (self.position.step + 1) % self.plan.log_every == 0:
            self._log.flush()

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        device = self.plan.device
        moved = batch.to(device)
        with autocast(device, self.plan.precision):
            terms = self.task.loss(moved, self.position.epoch)
        share = len(batch.rows) / (len(batch.rows) + len(batch.failures))  # clips count alike, whatever fails
        self._scaler.scale(terms["loss"] * (share / self.plan.accumulate)).backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    def _end_epoch(self) -> None:
        """Save, validate, go on to the next epoch."""
        self._log.flush()
        self._log.end_epoch(self.position.epoch)
        self._save()
        scores = self.task.validate()
        if scores is not None:
            self._log.write({"epoch": self.position.epoch, "validation": scores})
            best = self.position.best_score
            if best is None or scores["score"] > best:
                self.position.best_score, self.position.best_epoch = scores["score"], self.position.epoch
                replace_tensors(self.folder / "best.safetensors", self.task.tensors())
        self.position.epoch, self.position.step = self.position.epoch + 1, 0

    def _save_if_due(self) -> None:
        self._stop_if_asked()
        limits = self.plan.checkpoint
        steps_due = limits.every_steps is not None and self.position.total(self.plan) % limits.every_steps == 0
        if steps_due or time.monotonic() - self._saved_at >= limits.every_seconds:
            self._save()

    def _stop_if_asked(self) -> None:
        """Raise `Stopped` when asked to stop, after the whole steps so far are saved."""
        if self.flag.asked():
            self._save()
            self._checkpoints.wait()
            self.flag.check()

    def _save(self) -> None:
        self._log.flush(durable=True)
        position, total = self.position, self.position.total(self.plan)
        self._saved_at = time.monotonic()
        if self._saved_total == total:
            return
        state = {
            "epoch": position.epoch,
            "step": position.step,
            "best_score": position.best_score,
            "best_epoch": position.best_epoch,
            "scaler": self._scaler.state_dict(),
            "arithmetic": self._arithmetic(),
        }
        self._checkpoints.save(total, self.task.tensors(), self.task.optimizer, state)
        self._saved_total = total

    def _continue(self) -> None:
        checkpoint = self._checkpoints.load()
        if checkpoint is None:
            return
        self.task.restore(checkpoint.tensors)
        _restore_optimizer(self.task.optimizer, checkpoint.optimizer)
        state = checkpoint.state
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.position = Position(state["epoch"], state["step"], state["best_score"], state["best_epoch"])
        before, now = state["arithmetic"], self._arithmetic()
        changes = [f"{name} {before[name]} then, {now[name]} now" for name in now if before[name] != now[name]]
        if changes:
            warn(f"{self.task.title} goes on with other arithmetic ({', '.join(changes)}): results differ by rounding")

    def _arithmetic(self) -> dict[str, Any]:
        """What the last bits of a result depend on besides the settings."""
        device = self.plan.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


_WAYS = ("foreach", "fused", "capturable", "differentiable")


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take back an optimiser's state. In which way it computes is its own affair, not the checkpoint's."""
    ways = [{way: group[way] for way in _WAYS if way in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, own in zip(optimizer.param_groups, ways, strict=True):
        group.update(own)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of "fp32", "bf16" or "fp16"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
