"""What a training writes about itself: metrics.jsonl (one line per step) and failures.jsonl (one per clip)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UniegoError
from ..pipeline import files
from ..pipeline.progress import warn
from . import ranks
from .batches import ClipFailure
from .events import EventFile

Utilisation = Callable[[float], str]  # clips per second -> what share of the peak that is, "" where not known


class _Step(NamedTuple):
    entry: dict[str, Any]
    names: tuple[str, ...]
    means: Tensor | None  # [terms], over this process's micro-batches, on the device
    portions: int  # how many micro-batches these are


Shares = list[tuple[tuple[str, ...], list[float], int]]  # per step: names of the terms, means, micro-batches


class StepLog:
    """The log of one training in `folder`, from `here` = (epoch, steps done) on.

    Terms stay on the device until `flush`, so that logging does not make the device wait at every step.
    `note` is the last state in words, for the progress line. Of several processes all call everything, and the first
    writes: terms are means over the micro-batches of all, the times are its own.
    """

    def __init__(
        self,
        folder: Path,
        here: tuple[int, int],
        utilisation: Utilisation = lambda rate: "",
        events: EventFile | None = None,
    ) -> None:
        self._path, self._failures_path = folder / "metrics.jsonl", folder / "failures.jsonl"
        self._utilisation, self._events = utilisation, events
        self._pending: list[_Step] = []
        self._seconds = self._waited = 0.0  # of the pending steps
        self._clips_in_epoch = here[1]  # a resumed epoch had clips before
        self._seen: set[str] = set()
        self.note = ""
        self._writes = ranks.rank() == 0
        if not self._writes:
            return
        if self._failures_path.exists():
            records, _ = files.read_json_lines(self._failures_path)
            self._seen = {record["clip_id"] for record in records}
        if self._path.exists():
            self._keep_before(here)

    def _keep_before(self, here: tuple[int, int]) -> None:
        """Drop the lines of what was done after the checkpoint and will be done again."""
        records, _ = files.read_json_lines(self._path)
        kept = [r for r in records if (r["epoch"], r.get("step", math.inf)) < here]
        files.write_bytes(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        if self._events is not None:
            self._events.write(kept)

    def step(self, entry: dict[str, Any], terms: list[dict[str, Tensor]], seconds: float, waited: float) -> None:
        """Remember one step: its terms per micro-batch, how long it took, and how long of that it waited for data."""
        names = tuple(terms[0]) if terms else ()
        rows = [torch.stack([term[name].float() for name in names]) for term in terms]
        self._pending.append(_Step(entry, names, torch.stack(rows).mean(0) if rows else None, len(rows)))
        self._clips_in_epoch += entry["clips"]
        self._seconds += seconds
        self._waited += waited

    def flush(self, *, durable: bool = False) -> None:
        """Write what is pending, `durable`: to the disk itself. Raises `UniegoError` for a loss that is no number.

        Clips per second and the share of time spent waiting for data are those of the lines written together.
        """
        pending, self._pending = self._pending, []
        started = time.monotonic()
        shares = ranks.gathered(_fetch(pending))  # waits for the device
        seconds = max(self._seconds + time.monotonic() - started, 1e-9)
        rate = sum(step.entry["clips"] for step in pending) / seconds
        speed = {"clips_per_s": round(rate, 3), "data_wait": round(self._waited / seconds, 3)}
        self._seconds = self._waited = 0.0
        records = []
        for step, *parts in zip(pending, *shares, strict=True):
            means = _joint(parts)
            _check(step.entry, means)
            records.append({**step.entry, **speed, "loss": None, **means})
        self._append(records, durable=durable)
        if records:
            loss = means.get("loss", 0.0)
            words = [f"loss {loss:.4f}", f"data wait {speed['data_wait']:.0%}", self._utilisation(rate)]
            self.note = ", ".join(filter(None, words))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self._append([record], durable=False)

    def close(self) -> None:
        """End what writes event files."""
        if self._events is not None:
            self._events.close()

    def _append(self, records: Sequence[Mapping[str, Any]], *, durable: bool) -> None:
        if self._events is not None and records:
            self._events.write(records)
        if not self._writes or (not records and not (durable and self._path.exists())):
            return
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write("".join(json.dumps(record) + "\n" for record in records))
            handle.flush()
            if durable:
                os.fsync(handle.fileno())

    def failures(self, failures: Sequence[ClipFailure]) -> None:
        """Report clips that could not be decoded, each once."""
        for failure in failures:
            if self._writes and failure.clip_id not in self._seen:
                self._seen.add(failure.clip_id)
                warn(f"clip {failure.clip_id} left out: {failure.message}")
                files.append_line(self._failures_path, json.dumps(failure._asdict()))

    def end_epoch(self, epoch: int) -> None:
        """Refuse to go on when a whole epoch had no clip."""
        if self._clips_in_epoch == 0:
            raise UniegoError(f"no clip of epoch {epoch} could be decoded; see {self._failures_path}")
        self._clips_in_epoch = 0


def _fetch(steps: list[_Step]) -> Shares:
    """This process's part of all steps, by one copy from the device."""
    means = [step.means for step in steps if step.means is not None]
    flat = iter(torch.cat(means).tolist()) if means else iter(())
    return [(step.names, [next(flat) for _ in step.names], step.portions) for step in steps]


def _joint(parts: Shares) -> dict[str, float]:
    """The means of one step over the micro-batches of all processes."""
    parts = [part for part in parts if part[2]]
    if len(parts) < 2:
        return dict(zip(parts[0][0], parts[0][1], strict=True)) if parts else {}
    total = sum(count for _, _, count in parts)
    names = parts[0][0]
    return {name: sum(means[i] * count for _, means, count in parts) / total for i, name in enumerate(names)}


def _check(entry: Mapping[str, Any], means: Mapping[str, float]) -> None:
    if not all(math.isfinite(value) for value in means.values()):
        raise UniegoError(
            f"the loss is not a finite number at epoch {entry['epoch']}, step {entry['step']}: {dict(means)}; "
            "lower the learning rate or use precision fp32 or bf16, and start this part anew with --overwrite"
        )
