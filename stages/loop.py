"""The training loop that proxies, merge and student share: accumulate, step, log, save, continue.

After any stop the same call continues at the last checkpoint; on a CPU at a fixed number of threads the result
equals an undisturbed run's bit for bit, because nothing but (seed, epoch, step) decides about a step.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UniegoError
from ..pipeline import files
from ..pipeline.config import CheckpointConfig
from ..pipeline.progress import Meter, count, say, warn
from ..pipeline.signals import StopFlag
from . import checkpoints
from .batches import Batch

Batches = Callable[[int, int], Iterator[Batch]]  # (epoch, step) to start from -> micro-batches to the end


class Task(ABC):
    """What is trained: tensors, an optimiser, and the loss of a micro-batch."""

    title: str
    optimizer: torch.optim.Optimizer

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
        self._continue()
        self._log = _Log(self.folder, self.position)
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
        finally:
            self._log.flush()
        return self.position

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
                checkpoints.replace_tensors(self.folder / "best.safetensors", self.task.tensors())
        self.position.epoch, self.position.step = self.position.epoch + 1, 0

    def _save_if_due(self) -> None:
        if self.flag.requested is not None:
            self._save()
            self.flag.check()
        limits = self.plan.checkpoint
        steps_due = limits.every_steps is not None and self.position.total(self.plan) % limits.every_steps == 0
        if steps_due or time.monotonic() - self._saved_at >= limits.every_seconds:
            self._save()

    def _save(self) -> None:
        self._log.flush()
        position, total = self.position, self.position.total(self.plan)
        self._saved_at = time.monotonic()
        if self._saved_total == total:
            return
        tensors = self.task.tensors()
        checkpoints.check_finite(tensors, f"{self.task.title} at epoch {position.epoch}, step {position.step}")
        state = {
            "epoch": position.epoch,
            "step": position.step,
            "best_score": position.best_score,
            "best_epoch": position.best_epoch,
            "scaler": self._scaler.state_dict(),
        }
        checkpoints.save(self.folder / "checkpoints", total, tensors, self.task.optimizer, state)
        self._saved_total = total

    def _continue(self) -> None:
        checkpoint = checkpoints.load_newest(self.folder / "checkpoints")
        if checkpoint is None:
            return
        self.task.restore(checkpoint.tensors)
        self.task.optimizer.load_state_dict(checkpoint.optimizer)
        state = checkpoint.state
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.position = Position(state["epoch"], state["step"], state["best_score"], state["best_epoch"])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of "fp32", "bf16" or "fp16"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


class _Log:
    """metrics.jsonl (one line per step) and failures.jsonl (one line per clip that could not be decoded).

    Terms stay on the device until `flush`, so that logging does not make the device wait at every step.
    """

    def __init__(self, folder: Path, position: Position) -> None:
        self._path, self._failures_path = folder / "metrics.jsonl", folder / "failures.jsonl"
        self._pending: list[tuple[dict[str, Any], list[dict[str, Tensor]]]] = []
        self._clips_in_epoch = position.step  # a resumed epoch had clips before
        self._seen: set[str] = set()
        self.note = ""
        if self._failures_path.exists():
            records, _ = files.read_json_lines(self._failures_path)
            self._seen = {record["clip_id"] for record in records}
        if self._path.exists():
            self._keep_before(position)

    def _keep_before(self, position: Position) -> None:
        """Drop the lines of what was done after the checkpoint and will be done again."""
        records, _ = files.read_json_lines(self._path)
        here = (position.epoch, position.step)
        kept = [r for r in records if (r["epoch"], r.get("step", math.inf)) < here]
        files.write_bytes(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def step(self, entry: dict[str, Any], terms: list[dict[str, Tensor]], seconds: float, waited: float) -> None:
        """Remember one step."""
        entry["clips_per_s"] = round(entry["clips"] / max(seconds, 1e-9), 3)
        entry["data_wait"] = round(waited / max(seconds, 1e-9), 3)
        self._clips_in_epoch += entry["clips"]
        self._pending.append((entry, terms))

    def flush(self) -> None:
        """Write what is pending. Raises `UniegoError` when a loss is not a finite number."""
        pending, self._pending = self._pending, []
        lines = []
        for entry, terms in pending:
            names = list(terms[0]) if terms else []
            means = {name: torch.stack([t[name].float() for t in terms]).mean().item() for name in names}
            lines.append(json.dumps({**entry, "loss": None, **means}) + "\n")
            self._check(entry, means)
        if lines:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write("".join(lines))
            self.note = f"loss {json.loads(lines[-1])['loss'] or 0.0:.4f}"

    def _check(self, entry: Mapping[str, Any], means: Mapping[str, float]) -> None:
        if not all(math.isfinite(value) for value in means.values()):
            raise UniegoError(
                f"the loss is not a finite number at epoch {entry['epoch']}, step {entry['step']}: {dict(means)}; "
                "lower the learning rate or use precision fp32 or bf16, and start this part anew with --overwrite"
            )

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")

    def failures(self, batch: Batch) -> None:
        """Report clips that could not be decoded, each once."""
        for failure in batch.failures:
            if failure.clip_id not in self._seen:
                self._seen.add(failure.clip_id)
                warn(f"clip {failure.clip_id} left out: {failure.message}")
                files.append_line(self._failures_path, json.dumps(failure._asdict()))

    def end_epoch(self, epoch: int) -> None:
        """Refuse to go on when a whole epoch had no clip."""
        if self._clips_in_epoch == 0:
            raise UniegoError(f"no clip of epoch {epoch} could be decoded; see {self._failures_path}")
        self._clips_in_epoch = 0
