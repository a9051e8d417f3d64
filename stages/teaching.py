"""Which proxies teach whom: counted on the device while the student learns, kept in metrics.jsonl, read for reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..pipeline import files
from . import ranks


class Tally:
    """Counts of one epoch, int64 [C, R + 2]: how often each proxy taught a clip of each class, the clips, and those
    that nobody taught.

    What a step adds counts when the step is done (`keep`): one that is stopped in the middle is done again. Then it is
    summed over all processes, so that each holds the sums and any may save them. Nothing waits for the device.
    """

    def __init__(self, classes: int, proxies: int, device: torch.device) -> None:
        self.counts = torch.zeros(classes, proxies + 2, dtype=torch.int64, device=device)
        self._pending = torch.zeros_like(self.counts)
        self._extra = torch.arange(proxies, proxies + 2, device=device)  # columns of clips and untaught ones

    def add(self, labels: Tensor, proxy: Tensor, valid: Tensor) -> None:
        """Count a micro-batch: labels int64 [b], proxy int64 [b, S], which slots taught bool [b, S]."""
        columns = torch.cat((proxy, self._extra.expand(len(labels), -1)), dim=1)  # [b,S+2]
        places = labels.unsqueeze(1) * self.counts.shape[1] + columns
        untaught = ~valid.any(1, keepdim=True)
        amounts = torch.cat((valid, torch.ones_like(untaught), untaught), dim=1).long()
        self._pending.view(-1).scatter_add_(0, places.flatten(), amounts.flatten())

    def keep(self) -> None:
        """The step is done. All processes come here together."""
        self.counts += ranks.all_sum(self._pending)
        self._pending.zero_()

    def restore(self, counts: Tensor) -> None:
        """Take back saved counts."""
        self.counts.copy_(counts)
        self._pending.zero_()

    def close(self) -> list[list[int]]:
        """The epoch's counts [C][R + 2]; the next epoch begins at zero."""
        counts: list[list[int]] = self.counts.tolist()
        self.counts.zero_()
        return counts


def teaching_record(
    counts: Sequence[Sequence[int]], proxies: Sequence[str], agreement: Sequence[float | None]
) -> dict[str, Any]:
    """What metrics.jsonl keeps of an epoch's counts [C][R + 2], JSON-able; `EpochTeaching` says what the names mean."""
    return {
        "proxies": list(proxies),
        "agreement": list(agreement),
        "taught": [list(row[:-2]) for row in counts],
        "clips": [row[-2] for row in counts],
        "untaught": [row[-1] for row in counts],
    }


def agreement(present: Tensor, correct: Tensor) -> list[float | None]:
    """Share of the train clips that have each proxy's output in which it predicts the label; of bool [N, R].

    None for a proxy without any output.
    """
    outputs, right = present.sum(0).tolist(), correct.sum(0).tolist()
    return [hits / count if count else None for hits, count in zip(right, outputs, strict=True)]


class EpochTeaching(NamedTuple):
    """One epoch: who taught whom.

    agreement: per proxy the share of train clips that it is right about (None: it has no output). taught: int64 [C, R],
    how often a proxy taught a clip of a class; clips, untaught: int64 [C], clips seen, and those that nobody taught.
    """

    epoch: int
    proxies: tuple[str, ...]
    agreement: tuple[float | None, ...]
    taught: npt.NDArray[np.int64]
    clips: npt.NDArray[np.int64]
    untaught: npt.NDArray[np.int64]

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Per proxy its share of all teachings, float64 [R]; zeros when nobody taught."""
        total = self.taught.sum(0)
        shares: npt.NDArray[np.float64] = total / max(int(total.sum()), 1)
        return shares

    @property
    def untaught_share(self) -> float:
        """Share of the clips that nobody taught."""
        return int(self.untaught.sum()) / max(int(self.clips.sum()), 1)


def read_teaching(folder: Path) -> list[EpochTeaching]:
    """The epochs of a training in their order, out of metrics.jsonl in its folder; none where no proxy taught."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for record in files.read_json_lines(path)[0]:
        if "teaching" in record:
            kept = record["teaching"]
            counts = (np.array(kept[name], dtype=np.int64) for name in ("taught", "clips", "untaught"))
            found.append(EpochTeaching(record["epoch"], tuple(kept["proxies"]), tuple(kept["agreement"]), *counts))
    return found


def teaching_summary(epochs: Sequence[EpochTeaching], classes: Sequence[str]) -> list[str]:
    """Lines that say how it went: per proxy its share of the lessons in the first and the last epoch, and the rest."""
    if not epochs:
        return []
    first, last = epochs[0], epochs[-1]
    lines = []
    for r in np.argsort(-last.shares, kind="stable").tolist():
        known, most = last.agreement[r], int(last.taught[:, r].argmax())
        share = _over_time(first.shares[r], last.shares[r], first.epoch, last.epoch)
        parts = [
            f"{last.proxies[r]} gave {share} of the lessons",
            "has no output" if known is None else f"is right about {known:.0%} of its train clips",
        ]
        if last.taught[most, r] and most < len(classes):
            parts.append(f"taught {classes[most]} most")
        lines.append(", ".join(parts))
    untaught = _over_time(first.untaught_share, last.untaught_share, first.epoch, last.epoch)
    return [*lines, f"nobody taught {untaught} of the clips"]


def _over_time(before: float, after: float, first: int, last: int) -> str:
    return f"{after:.0%}" if first == last else f"{before:.0%} (epoch {first}) to {after:.0%} (epoch {last})"
