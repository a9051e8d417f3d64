"""Accuracy of classifiers out of raw scores: top-k, mean over classes, a row per class, the confusion matrix.

N clips, C classes. Scores float [N, C], labels int64 [N] in 0..C-1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int64]


class Accuracies(NamedTuple):
    """Percent. With five classes or fewer every clip counts as right in the top 5."""

    top1: float
    top5: float
    mean_class_accuracy: float


class ClassRow(NamedTuple):
    """One class: its clips, how often it was predicted, percent of its clips found (recall) and of its predictions
    that are right (precision); None where there is nothing to divide by."""

    clips: int
    predicted: int
    recall: float | None
    precision: float | None


def label_ranks(logits: Tensor, labels: Tensor) -> Ints:
    """Rank of each clip's label among the classes, 1 = best, int64 [N]; of equal scores the lower class comes first."""
    own = logits.gather(1, labels.unsqueeze(1))  # [N,1]
    before = (logits == own).cumsum(1).gather(1, labels.unsqueeze(1)).squeeze(1) - 1
    ranks: Ints = (1 + (logits > own).sum(1) + before).numpy()
    return ranks


def accuracies(ranks: Ints, labels: Ints, counts: Ints | None = None) -> Accuracies:
    """Top-1, top-5 and mean class accuracy of N >= 1 clips; `counts` [N]: how often each of them counts (None: once).

    The mean over classes takes those that have clips.
    """
    weights = np.ones(len(ranks)) if counts is None else counts.astype(np.float64)
    first, five = weights * (ranks == 1), weights * (ranks <= 5)
    clips = np.bincount(labels, weights)
    found = np.bincount(labels, first)
    mean = (found[clips > 0] / clips[clips > 0]).mean()
    total = weights.sum()
    return Accuracies(*(100.0 * float(x) for x in (first.sum() / total, five.sum() / total, mean)))


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """How many clips of class i (row) were taken for class j (column), int64 [C, C]."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_table(matrix: Ints) -> list[ClassRow]:
    """A row per class of a confusion matrix [C, C]."""
    clips, predicted, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    return [
        ClassRow(int(n), int(p), _percent(r, n), _percent(r, p))
        for n, p, r in zip(clips, predicted, right, strict=True)
    ]


def _percent(part: np.int64, whole: np.int64) -> float | None:
    return 100.0 * int(part) / int(whole) if whole else None
