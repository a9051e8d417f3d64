"""Confidence intervals by the percentile bootstrap (Efron, 1979): items are drawn again, with replacement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Counts = npt.NDArray[np.int64]


def bootstrap(
    statistic: Callable[[Counts], npt.ArrayLike],
    items: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> npt.NDArray[np.float64]:
    """Intervals [M, 2] (low, high) of the M numbers that `statistic` gives, each from its `resamples` values.

    `statistic` gets how often each of the `items` was drawn, int64 [items] with sum `items`. The interval holds the
    share `level` of the values, the same share cut off on both sides. A function of the arguments alone. What is drawn
    must be independent of each other: clips of one video are not, so their interval is too narrow rather than too wide.
    Raises `UsageError` for numbers out of range.
    """
    if items < 1 or resamples < 1 or not 0 < level < 1:
        raise UsageError(f"bootstrap of {items} items, {resamples} resamples, level {level}: needs >= 1, >= 1, (0, 1)")
    rng = np.random.Generator(np.random.Philox(key=seed))
    values = [
        np.asarray(statistic(np.bincount(rng.integers(items, size=items), minlength=items)), np.float64)
        for _ in range(resamples)
    ]
    tail = (1 - level) / 2
    return np.quantile(np.stack(values), (tail, 1 - tail), axis=0).T
