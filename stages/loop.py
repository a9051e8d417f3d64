"""The training loop that proxies, merge and student share: accumulate, step, log, save, continue.

After any stop the same call continues at the last checkpoint; on a CPU at a fixed number of threads the result
equals an undisturbed run's bit for bit, because nothing but (seed, epoch, step) decides about a step.

Of W processes (`ranks`) each takes its share of a step's micro-batches. Gradients are summed once, at the step's end,
where all also agree on whether to stop and to save. They hold the same tensors all the time; the first writes.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Stopped
from ..pipeline.progress import Meter, count, say, warn
from ..pipeline.signals import StopFlag
from . import ranks, snapshots, utilisation
from .batches import Batch, ClipFailure
from .checkpoints import Checkpoints, replace_tensors, restore_optimizer
from .compute import autocast
from .events import EVENTS, EventFile
from .gradients import mean_over_ranks, sum_gradients
from .plan import Plan, Position
from .steplog import StepLog

__all__ = ["Batches", "Loop", "Plan", "Position", "Task", "autocast"]

Batches = Callable[[int, int], Iterator[Batch]]
"""(epoch, step) to start from -> micro-batches to the end; of each step those that fall to this process."""


class Task(ABC):
    """What is trained: tensors, an optimiser, and the loss of a micro-batch."""

    title: str
    optimizer: torch.optim.Optimizer
    flops_per_clip: float | None = None  # of a forward and a backward pass; None: not counted
    needs_whole_step: bool = False  # whether `open_step` must see a step's micro-batches before the first `loss`

    @abstractmethod
    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Terms of one micro-batch, 0-dim each; "loss" is the one that is minimised, the others are logged."""

    def compile(self, batch: int, precision: str) -> None:
        """Compile the network for micro-batches of `batch` clips, where that can be done."""
        warn(f"{self.title}: compute.compile concerns video networks (TimeSformer); this one is trained as it is")

    def open_step(self, batches: Sequence[Batch], epoch: int) -> None:
        """Called before the first `loss` of a step with all of this process's micro-batches, on the device.

        There may be none, of a process that has no share in the step; all processes call it.
        """

    def trained(self) -> list[Tensor]:
        """The tensors whose gradients `loss` leaves, in an order that is the same in every process."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def statistics(self) -> list[Tensor]:
        """Tensors that a forward pass changes, and of which processes keep their mean."""
        return []

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `checkpoint` gave."""

    def checkpoint(self) -> dict[str, Tensor]:
        """What `restore` needs; more than `tensors` where a task keeps things that are not the result."""
        return self.tensors()

    @abstractmethod
    def rate(self, epoch: float) -> float:
        """Learning rate at a fractional epoch."""

    def before_step(self) -> None:
        """Called when a step's gradients are complete, before the optimiser uses them."""

    def after_step(self) -> None:
        """Called when the optimiser has changed the tensors, in every process of the training."""

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def end_epoch(self) -> dict[str, Any] | None:
        """What metrics.jsonl is to keep of the epoch that is done; its checkpoint is written before."""
        return None

    def validate(self) -> dict[str, float] | None:
        """Metrics on the val split, "score" among them (greater is better); None: there is no such split."""
        return None


@dataclass
class _Share:
    """What one process has of a step."""

    clips: int = 0
    waited: float = 0.0  # seconds, for data
    failures: list[ClipFailure] = field(default_factory=list)


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
        self._stop = self._due = False  # as agreed at the end of the last step
        writes_events = self.plan.tensorboard and ranks.rank() == 0
        events = EventFile(self.folder / EVENTS, self.plan.steps_per_epoch) if writes_events else None
        self._log = StepLog(self.folder, (self.position.epoch, self.position.step), self._utilisation, events)
        self._saved_at = time.monotonic()
        plan, resumed = self.plan, self.position.total(self.plan)
        self._saved_total = resumed if resumed else None
        if ranks.world() > plan.accumulate:
            warn(
                f"{ranks.world()} processes for {plan.accumulate} micro-batches of a step: the others have nothing to "
                "do; lower micro_batch or take fewer"
            )
        if plan.compile:
            self.task.compile(plan.batch // plan.accumulate, plan.precision)
        if ranks.rank() == 0:
            snapshots.forget_after(self.folder, resumed)
        self._keep_snapshot()
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
            try:
                if ranks.world() == 1:  # others may not come any more, and what is pending is done again
                    self._log.flush()
            finally:
                self._log.close()
        return self.position

    def _utilisation(self, rate: float) -> str:
        return utilisation.describe(
            rate / ranks.world(), self.task.flops_per_clip, self.plan.device, self.plan.precision
        )

    def _next_step(self) -> tuple[int, int]:
        if self.position.step == self.plan.steps_per_epoch:
            return self.position.epoch + 1, 0
        return self.position.epoch, self.position.step

    def _run(self, stream: Iterator[Batch], meter: Meter) -> None:
        while self.position.epoch < self.plan.epochs:
            while self.position.step < self.plan.steps_per_epoch:
                self._step(stream)
                self.position.step += 1
                self._keep_snapshot()
                meter.advance(self.plan.batch, self._log.note)
                self._save_if_due()
            self._end_epoch()

    def _step(self, stream: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` micro-batches, of which each process takes its share."""
        started = time.monotonic()
        rate = self.task.rate(self.position.epoch + self.position.step / self.plan.steps_per_epoch)
        for group in self.task.optimizer.param_groups:
            group["lr"] = rate
        share = _Share()
        taken = self._taken(stream, share)
        if self.task.needs_whole_step:
            taken = self._opened(list(taken))
        terms = [self._backward(batch) for batch in taken]
        clips = self._meet(share)
        if clips:  # a step of which no clip could be decoded changes nothing
            self.task.before_step()
            self._scaler.step(self.task.optimizer)
            self._scaler.update()
            self.task.after_step()
            self.task.zero_grad()
        entry = {"epoch": self.position.epoch, "step": self.position.step, "lr": rate, "clips": clips}
        self._log.step(entry, terms, time.monotonic() - started, share.waited)
        if (self.position.step + 1) % self.plan.log_every == 0:
            self._log.flush()

    def _taken(self, stream: Iterator[Batch], share: _Share) -> Iterator[Batch]:
        """This process's micro-batches of a step, on the device; without those of which no clip could be read."""
        for _ in range(ranks.rank(), self.plan.accumulate, ranks.world()):
            self._stop_if_asked()  # what this step has accumulated is done again
            asked = time.monotonic()
            batch = next(stream)
            share.waited += time.monotonic() - asked
            share.failures.extend(batch.failures)
            share.clips += len(batch.rows)
            if batch.rows:
                yield batch.to(self.plan.device)

    def _opened(self, taken: list[Batch]) -> Iterator[Batch]:
        """The same, after the task has seen them all."""
        with autocast(self.plan.device, self.plan.precision):
            self.task.open_step(taken, self.position.epoch)
        for batch in taken:
            self._stop_if_asked()
            yield batch

    def _meet(self, share: _Share) -> int:
        """Sum the gradients of all processes; the step's clips over all of them. What went wrong is told.

        Here they agree on stopping and saving. Nothing but numbers that the host has is waited for.
        """
        overdue = time.monotonic() - self._saved_at >= self.plan.checkpoint.every_seconds
        if ranks.world() == 1:
            self._due = overdue
            self._log.failures(share.failures)
            return share.clips
        trained = self.task.trained()
        asked, late = self.flag.asked(), overdue and ranks.rank() == 0
        numbers = [asked, late, share.clips, len(share.failures), *(t.grad is not None for t in trained)]
        stops, lates, clips, failures, *filled = ranks.sums(numbers)
        self._stop, self._due = stops > 0, lates > 0
        if failures:
            self._log.failures([failure for part in ranks.gathered(share.failures) for failure in part])
        if clips:
            sum_gradients(trained, filled)
            mean_over_ranks(self.task.statistics())
        return clips

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(self.plan.device, self.plan.precision):
            terms = self.task.loss(batch, self.position.epoch)
        share = len(batch.rows) / (len(batch.rows) + len(batch.failures))  # clips count alike, whatever fails
        self._scaler.scale(terms["loss"] * (share / self.plan.accumulate)).backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    def _keep_snapshot(self) -> None:
        """Before the checkpoint of the same step: whatever is continued from has its snapshots."""
        done = self.position.total(self.plan)
        if snapshots.is_due(done, self.plan.steps, self.plan.snapshots) and ranks.rank() == 0:
            snapshots.keep(self.folder, done, self.task.tensors())

    def _end_epoch(self) -> None:
        """Save, validate, go on to the next epoch."""
        self._log.flush()
        self._log.end_epoch(self.position.epoch)
        self._save()
        record = self.task.end_epoch()
        if record is not None:
            self._log.write({"epoch": self.position.epoch, **record})
        scores = ranks.from_first(self.task.validate)
        if scores is not None:
            self._log.write({"epoch": self.position.epoch, "validation": scores})
            best = self.position.best_score
            if best is None or scores["score"] > best:
                self.position.best_score, self.position.best_epoch = scores["score"], self.position.epoch
                if ranks.rank() == 0:
                    replace_tensors(self.folder / "best.safetensors", self.task.tensors())
        self.position.epoch, self.position.step = self.position.epoch + 1, 0

    def _save_if_due(self) -> None:
        self._stop_if_asked()
        limits = self.plan.checkpoint
        steps_due = limits.every_steps is not None and self.position.total(self.plan) % limits.every_steps == 0
        if steps_due or self._due:
            self._save()

    def _stop_if_asked(self) -> None:
        """Raise `Stopped` when asked to stop, after the whole steps so far are saved; several processes together."""
        if self._stop or (ranks.world() == 1 and self.flag.asked()):
            self._save()
            ranks.from_first(self._checkpoints.wait)
            self.flag.check()
            raise Stopped("stopped, since another rank was asked to; run the same command again to continue")

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
        self._checkpoints.save(total, self.task.checkpoint(), self.task.optimizer, state)
        self._saved_total = total

    def _continue(self) -> None:
        checkpoint = self._checkpoints.load()
        if checkpoint is None:
            return
        self.task.restore(checkpoint.tensors)
        restore_optimizer(self.task.optimizer, checkpoint.optimizer)
        state = checkpoint.state
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self.position = Position(state["epoch"], state["step"], state["best_score"], state["best_epoch"])
        before, now = {"ranks": 1, "compile": False, **state["arithmetic"]}, self._arithmetic()
        changes = [f"{name} {before[name]} then, {now[name]} now" for name in now if before[name] != now[name]]
        if changes:
            warn(f"{self.task.title} goes on with other arithmetic ({', '.join(changes)}): results differ by rounding")

    def _arithmetic(self) -> dict[str, Any]:
        """What the last bits of a result depend on besides the settings."""
        device = self.plan.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        return {
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "ranks": ranks.world(),
            "compile": self.plan.compile,
        }
