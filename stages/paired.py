"""Two ways of training compared over the same seeds: mean, standard deviation, exact paired sign-flip test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UsageError

EXACT = 20
"""Most pairs of which all 2^n sign flips are counted."""
FLIPS = 100_000
"""Random flips above that."""
_SLACK = 1e-9  # of the sum of |differences|: sums of the same numbers in another order count as equal
_BLOCK = 1 << 14  # random flips that are in memory at once


class Summary(NamedTuple):
    """Mean and standard deviation (n - 1; None for fewer than two values) of n values; None where there is none."""

    n: int
    mean: float | None
    sd: float | None


class Comparison(NamedTuple):
    """Mean of n paired differences and the p-value of `sign_flip_test`; `exact`: all flips were counted."""

    n: int
    difference: float | None
    p: float | None
    exact: bool


def summarise(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation."""
    if not values:
        return Summary(0, None, None)
    array = np.asarray(values, np.float64)
    return Summary(len(array), float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def compare(values: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """`values` against `baseline`, pair by pair; without a pair nothing is known. Raises `UsageError`."""
    if len(values) != len(baseline):
        raise UsageError(f"paired values: {len(values)} and {len(baseline)} are not as many")
    if not values:
        return Comparison(0, None, None, True)
    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    p = sign_flip_test(differences.tolist())
    return Comparison(len(differences), float(differences.mean()), p, len(differences) <= EXACT)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of Fisher's randomisation test for paired differences (The Design of Experiments, 1935, §21).

    Under the hypothesis that a pair's two members are alike, the sign of each of n differences is a fair coin. p is
    the share of sign patterns whose |sum| is at least the observed one; ties count as "at least", so that p is never
    below 2 / 2^n, and 1 where all differences are zero. A zero keeps its place and changes nothing. Up to `EXACT`
    differences all 2^n patterns are counted; above, `FLIPS` drawn ones (generator seeded with 0) and the observed one.
    Raises `UsageError` for none, or for values that are not finite.
    """
    values = np.asarray(differences, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise UsageError("a sign-flip test needs at least one difference, and finite ones")
    least = abs(values.sum()) - _SLACK * np.abs(values).sum()
    if len(values) <= EXACT:
        sums = np.zeros(1)
        for value in values[1:]:  # the first sign is fixed: flipping all of them leaves |sum| as it is
            sums = np.concatenate((sums + value, sums - value))
        return float((np.abs(sums + values[0]) >= least).mean())
    rng, hits = np.random.default_rng(0), 1
    for start in range(0, FLIPS, _BLOCK):
        signs = rng.integers(0, 2, (min(_BLOCK, FLIPS - start), len(values))) * 2.0 - 1.0
        hits += int((np.abs(signs @ values) >= least).sum())
    return hits / (FLIPS + 1)
