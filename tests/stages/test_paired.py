"""Mean, deviation and the exact paired test, against counting by hand."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.errors import UsageError
from uniego.stages.paired import EXACT, compare, sign_flip_test, summarise


def by_hand(differences: list[int]) -> float:
    """All sign patterns of whole numbers, so that ties are exact."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= observed for value in sums) / len(patterns)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_the_p_value_is_that_of_counting(differences: list[int]) -> None:
    assert sign_flip_test(differences) == by_hand(differences)
    assert sign_flip_test([0.1 * d for d in differences]) == by_hand(differences)  # ties do not break by rounding
    assert sign_flip_test([-d for d in differences]) == by_hand(differences)


def test_the_smallest_p_value_and_the_largest() -> None:
    assert sign_flip_test([1.0, 2.0, 0.5, 3.0, 1.0, 2.0, 4.0, 0.1]) == 2 / 2**8
    assert sign_flip_test([2.5]) == 1.0
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_test([1.0, 0.0]) == 1.0  # a zero adds no evidence


def test_a_zero_difference_changes_nothing() -> None:
    assert sign_flip_test([1.0, 2.0, 3.0, -0.5, 0.0, 0.0]) == sign_flip_test([1.0, 2.0, 3.0, -0.5])


def test_above_twenty_pairs_the_share_is_estimated_and_repeats() -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, EXACT + 1)
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate((sums + value, sums - value))
    exact = float((np.abs(sums) >= abs(differences.sum()) - 1e-12).mean())
    estimated = sign_flip_test(differences.tolist())
    assert estimated == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 1e5))
    assert sign_flip_test(differences.tolist()) == estimated
    assert sign_flip_test([1.0] * 40) == 1 / 100_001  # never zero
    assert not compare([1.0] * 21, [0.0] * 21).exact


def test_summaries_and_comparisons() -> None:
    values, baseline = [70.0, 72.0, 77.0], [69.0, 72.0, 70.0]
    assert summarise(values) == (3, pytest.approx(73.0), pytest.approx(statistics.stdev(values)))
    assert summarise([5.0]) == (1, 5.0, None)
    assert summarise([]) == (0, None, None)
    found = compare(values, baseline)
    assert (found.n, found.exact) == (3, True)
    assert found.difference == pytest.approx(8 / 3)
    assert found.p == by_hand([1, 0, 7])
    assert compare([], []) == (0, None, None, True)


@pytest.mark.parametrize("wrong", [[], [1.0, float("nan")], [float("inf")]])
def test_what_cannot_be_tested_is_refused(wrong: list[float]) -> None:
    with pytest.raises(UsageError, match="finite"):
        sign_flip_test(wrong)
    with pytest.raises(UsageError, match="not as many"):
        compare([1.0], [])
