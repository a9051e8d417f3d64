"""Temporal action segmentation: frame accuracy, edit score, segmental F1, as the field computes them.

Definitions of MS-TCN (arXiv 1903.01945) and its followers, with these rules where they crash or disagree:
- a segment is a maximal run of one label, frames [start, end); background runs are taken out after the runs are made;
- edit of two empty lists of segments is 100;
- a predicted segment where the truth has none at all counts as a false positive;
- precision, recall or F1 of 0/0 is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import UsageError

OVERLAPS = (0.10, 0.25, 0.50)

Label = str | int


class Run(NamedTuple):
    """A segment: frames start..end (exclusive) of one label."""

    label: Label
    start: int
    end: int


def runs(labels: Sequence[Label], background: Iterable[Label] = ()) -> list[Run]:
    """The segments of a sequence of frame labels, those of background classes left out."""
    borders = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    ends = [*borders, len(labels)] if labels else []
    out = frozenset(background)
    return [Run(labels[a], a, b) for a, b in zip([0, *borders], ends, strict=False) if labels[a] not in out]


def edit_score(predicted: Sequence[Run], truth: Sequence[Run]) -> float:
    """100 * (1 - Levenshtein distance of the two lists of labels / length of the longer one)."""
    longest = max(len(predicted), len(truth))
    if not longest:
        return 100.0
    row = list(range(len(truth) + 1))
    for i, segment in enumerate(predicted, 1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(truth, 1):
            change = diagonal + (segment.label != wanted.label)
            diagonal = row[j]
            row[j] = min(change, row[j] + 1, row[j - 1] + 1)
    return 100.0 * (1 - row[-1] / longest)


def match(predicted: Sequence[Run], truth: Sequence[Run], overlap: float) -> tuple[int, int, int]:
    """True positives, false positives, false negatives of one video at an overlap threshold (inclusive).

    In the order of time each predicted segment picks the segment of its class with the greatest intersection over
    union (the first of equals). It is right if that is at least `overlap` and nobody had that segment before.
    """
    hit = [False] * len(truth)
    for segment in predicted:
        shares = [_overlap(segment, wanted) for wanted in truth]
        best = max(range(len(truth)), key=shares.__getitem__, default=None)
        if best is not None and shares[best] >= overlap and not hit[best]:
            hit[best] = True
    right = sum(hit)
    return right, len(predicted) - right, len(truth) - right


def _overlap(a: Run, b: Run) -> float:
    """Intersection over union in frames; -1 for other classes."""
    if a.label != b.label:
        return -1.0
    return max(0, min(a.end, b.end) - max(a.start, b.start)) / (max(a.end, b.end) - min(a.start, b.start))


@dataclass
class SegmentationScores:
    """Collects videos; `metrics` at any time. `background`: classes that are no segments."""

    background: frozenset[Label] = frozenset()
    frames: int = 0
    right: int = 0
    edits: list[float] = field(default_factory=list)
    counts: dict[float, list[int]] = field(default_factory=lambda: {overlap: [0, 0, 0] for overlap in OVERLAPS})

    def add(self, predicted: Sequence[Label], truth: Sequence[Label]) -> None:
        """One video's frame labels. Raises `UsageError` for sequences of different lengths, or empty ones."""
        if len(predicted) != len(truth) or not truth:
            raise UsageError(
                f"{len(predicted)} predicted frames for {len(truth)}: as many are wanted, and at least one"
            )
        self.frames += len(truth)
        self.right += sum(a == b for a, b in zip(predicted, truth, strict=True))
        found, wanted = runs(predicted, self.background), runs(truth, self.background)
        self.edits.append(edit_score(found, wanted))
        for overlap, counts in self.counts.items():
            for place, number in enumerate(match(found, wanted, overlap)):
                counts[place] += number

    def metrics(self) -> dict[str, Any]:
        """mof (frames of all videos, background included), edit (mean over videos), f1@10, f1@25, f1@50 (of sums over
        all videos), percent; None without a video."""
        if not self.edits:
            return {
                "mof": None,
                "edit": None,
                **{f"f1@{round(100 * overlap)}": None for overlap in OVERLAPS},
                "videos": 0,
            }
        f1 = {f"f1@{round(100 * overlap)}": f1_score(*counts) for overlap, counts in self.counts.items()}
        mof, edit = 100.0 * self.right / self.frames, sum(self.edits) / len(self.edits)
        return {"mof": mof, "edit": edit, **f1, "videos": len(self.edits), "frames": self.frames}


def f1_score(right: int, wrong: int, missed: int) -> float:
    """100 * harmonic mean of precision and recall; 0 where nothing is right."""
    return 200.0 * right / (2 * right + wrong + missed) if right else 0.0
