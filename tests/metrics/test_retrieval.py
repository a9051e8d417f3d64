"""Retrieval: by hand, against torchmetrics, blocks of any size, ties, items left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional import retrieval as functional
from uniego.errors import UsageError
from uniego.metrics import Ranking, rank, retrieval


def make(seed: int, queries: int, items: int, classes: int = 4) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (queries,), generator=g), torch.randint(classes, (items,), generator=g)
    return torch.randn(queries, 8, generator=g), torch.randn(items, 8, generator=g), labels


def test_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 2.0]])
    labels = torch.tensor([0, 1, 0, 1])
    found = rank(gallery, gallery, (labels, labels), (torch.arange(4),) * 2, nearest=3)
    assert found.nearest.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    assert found.first.tolist() == [2, 3, 2, 2]
    assert found.precision.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1 / 2])
    metrics = found.metrics()
    assert (metrics["map"], metrics["r@1"], metrics["r@5"]) == pytest.approx((100 * 11 / 24, 0.0, 100.0))
    assert found.similarity[0, 0] == pytest.approx(0.9 / 0.82**0.5)


def test_torchmetrics_agrees() -> None:
    queries, gallery, (asked, has) = make(0, 30, 50, classes=7)
    has[has == 6] = 0  # nothing is relevant to queries of class 6
    found = rank(queries, gallery, (asked, has))
    cosines = 2 + torch.nn.functional.cosine_similarity(
        queries[:, None], gallery[None], dim=2
    )  # it ignores scores <= 0
    for i in range(30):
        target = has == asked[i]
        if not target.any():
            assert (np.isnan(found.precision[i]), found.first[i]) == (True, 0)
            continue
        wanted = functional.retrieval_average_precision(cosines[i], target)
        assert found.precision[i] == pytest.approx(float(wanted), abs=1e-6)
        for k in (1, 5, 10):
            hit = functional.retrieval_hit_rate(cosines[i], target, top_k=k)
            assert (found.first[i] <= k) == bool(hit)
    counted = found.metrics()
    assert counted["without_relevant"] == int((asked == 6).sum()) > 0
    assert counted["queries"] + counted["without_relevant"] == 30


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2))
def test_any_block_gives_the_same_and_left_out_items_might_as_well_not_be_there(
    seed: int, queries: int, items: int, group: int
) -> None:
    x, y, labels = make(seed, queries, items, classes=2)
    skip = torch.full((queries,), group), torch.arange(items) % 3
    whole, single = (rank(x, y, labels, skip, block=block) for block in (1 << 28, 1))
    kept = skip[1] != group
    same(whole, single)
    if kept.any():
        without = rank(x, y[kept], (labels[0], labels[1][kept]))
        np.testing.assert_array_equal(whole.first, without.first)
        np.testing.assert_allclose(whole.precision, without.precision)
    else:
        assert (whole.first == 0).all()
        assert (whole.nearest == -1).all()
        assert whole.metrics()["map"] is None


def same(a: Ranking, b: Ranking) -> None:
    np.testing.assert_array_equal(a.first, b.first)
    np.testing.assert_allclose(a.precision, b.precision)
    np.testing.assert_array_equal(a.relevant, b.relevant)


def test_of_equals_the_first_comes_first_and_zeros_are_far_from_everything() -> None:
    gallery = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = rank(gallery[1:3], gallery, (torch.zeros(2).long(), torch.tensor([1, 1, 0, 0])))
    assert found.nearest[:, :4].tolist() == [[1, 2, 0, 3]] * 2
    assert found.first.tolist() == [2, 2]


def test_intervals_hold_the_mean_and_repeat() -> None:
    x, y, labels = make(2, 60, 60)
    found = rank(x, y, labels)
    first, again = (found.metrics(resamples=200, seed=3) for _ in range(2))
    assert first == again
    for name, (low, high) in first["interval"].items():
        assert low <= first[name] <= high


def test_what_is_refused() -> None:
    x, y, labels = make(0, 3, 4)
    with pytest.raises(UsageError, match="not finite"):
        rank(x, y / 0, labels)
    with pytest.raises(UsageError, match="not empty"):
        rank(x, y[:, :2], labels)
    with pytest.raises(UsageError, match="ids must be"):
        rank(x, y, labels[::-1])


def test_keys_sort_as_the_numbers_do() -> None:
    values = torch.tensor([0.5, -0.5, 0.0, -0.0, 1.0, -torch.inf, 1e-30, -1e-30, 0.5])
    order = retrieval.sort_keys(values).argsort(descending=True)
    assert order.tolist() == values.argsort(descending=True, stable=True).tolist()


def test_working_memory_of_a_query_is_what_the_constant_says() -> None:
    """Nothing of size Q x G is held besides one block of cosines."""
    g = torch.Generator().manual_seed(0)
    cosines, labels = torch.randn(20_000, generator=g), torch.randint(3, (20_000,), generator=g)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        retrieval._rank_row(cosines, labels == 1, labels == 2, 10)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak <= retrieval.ROW * 20_000


def test_memory_is_bounded_however_many_queries_there_are() -> None:
    """2000 x 2000 in blocks of 64 kB: what is held beyond both sets is a block and a query's, far from 16 MB."""
    count, block = 2000, 1 << 16
    x, y, labels = make(0, count, count, classes=9)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        found = rank(x, y, labels, block=block, nearest=3)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    results = count * (3 * 12 + 2 * 64)  # the nearest of every query, each in a small tensor of its own
    assert 0 < peak <= 3 * y.numel() * 4 + 2 * block + retrieval.ROW * count + results
    plain = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    best = plain.argmax(1)
    assert (torch.from_numpy(found.nearest[:, 0]) == best).float().mean() > 0.999
