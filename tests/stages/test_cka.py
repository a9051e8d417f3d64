"""Debiased linear CKA against the formula on n x n kernels, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from uniego.errors import UniegoError
from uniego.stages.cka import Features, HsicSums, Product, Similarity, compare_all, hsic

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, eq. 4, word for word."""
    n = len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    k.fill_diagonal_(0.0), l.fill_diagonal_(0.0)
    one = torch.ones(n, dtype=torch.float64)
    parts = (
        torch.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
    )
    return float(parts / (n * (n - 3)))


def naive_cka(x: Tensor, y: Tensor) -> float:
    return naive_hsic(x, y) / math.sqrt(naive_hsic(x, x) * naive_hsic(y, y))


def compare(features: dict[str, Features], batch: int = 4096) -> dict[tuple[str, str], Similarity]:
    return compare_all(
        {name: part.present for name, part in features.items()},
        lambda products: {product: hsic(product, features, CPU, batch) for product in products},
    )


def cka(x: Tensor, y: Tensor, batch: int = 4096) -> float:
    whole = torch.ones(len(x), dtype=torch.bool)
    return compare({"x": Features(x, whole), "y": Features(y, whole)}, batch)["x", "y"].cka


@pytest.mark.parametrize(("n", "p", "q"), [(4, 3, 2), (5, 1, 7), (23, 4, 6), (60, 30, 5), (40, 70, 90)])
def test_equals_the_formula_on_kernels(n: int, p: int, q: int) -> None:
    """Also where features outnumber clips, and with a mean that is large beside the spread."""
    x = drawn(n, p, seed=n)
    y = torch.cat((x, drawn(n, q, seed=n + 1)), 1)[:, -q:] + 3.0
    sums = HsicSums()
    sums.add(x, y)
    assert sums.value() == pytest.approx(naive_hsic(x, y), rel=1e-9, abs=1e-12)
    if n > 5:
        assert cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-9)


@pytest.mark.parametrize("batch", [1, 3, 7, 50])
def test_batches_do_not_matter(batch: int) -> None:
    x, y = drawn(50, 6, seed=1), drawn(50, 9, seed=2)
    y[:, :4] += x[:, :4]
    assert cka(x, y, batch) == pytest.approx(cka(x, y), rel=1e-11)
    assert cka(x.float() + 1000, y.float(), batch) == pytest.approx(naive_cka(x, y), abs=1e-3), "a mean far away"


def test_of_itself_it_is_one_and_it_is_symmetric() -> None:
    x, y = drawn(30, 6, seed=1), drawn(30, 4, seed=2)
    assert cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, y) == pytest.approx(cka(y, x), rel=1e-12)


def test_rotations_scalings_and_shifts_do_not_matter() -> None:
    x = drawn(40, 6, seed=1)
    y = x @ drawn(6, 5, seed=2) + drawn(40, 5, seed=3)
    rotation = torch.linalg.qr(drawn(6, 6, seed=4)).Q
    wanted = cka(x, y)
    assert cka(x @ rotation, y) == pytest.approx(wanted, rel=1e-9)
    assert cka(x * 1e-3, 1e4 * y) == pytest.approx(wanted, rel=1e-9)
    assert cka(x + 7.0, y - 3.0) == pytest.approx(wanted, rel=1e-9)
    assert cka(x @ torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)), y) != pytest.approx(wanted, rel=1e-3)


def test_independent_features_give_about_nothing_however_wide_they_are() -> None:
    """Features outnumber the clips, so that the biased estimator sees likeness everywhere."""
    pairs = [(drawn(32, 64, seed=2 * s), drawn(32, 64, seed=2 * s + 1)) for s in range(60)]
    values = [cka(x, y) for x, y in pairs]
    assert abs(sum(values) / len(values)) < 0.03
    assert min(values) < 0 < max(values)
    x, y = (features - features.mean(0) for features in pairs[0])
    assert (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()) > 0.5


def test_clips_that_lack_one_are_left_out_and_counted() -> None:
    x, y, z = (drawn(20, 5, seed=s) for s in range(3))
    some = torch.arange(20) % 4 > 0
    x_with_holes = torch.where(some[:, None], x, torch.nan)
    whole = torch.ones(20, dtype=torch.bool)
    found = compare({"x": Features(x_with_holes, some), "y": Features(y, whole), "z": Features(z, whole)})
    assert found["x", "y"].clips == found["x", "x"].clips == 15
    assert found["x", "y"].cka == pytest.approx(naive_cka(x[some], y[some]), rel=1e-9)
    assert found["z", "y"].cka == pytest.approx(naive_cka(y, z), rel=1e-9)
    assert found["z", "y"].clips == 20


def test_where_it_is_not_defined_it_is_no_number() -> None:
    constant, x = torch.full((12, 3), 0.1), drawn(12, 4, seed=1)
    assert math.isnan(cka(constant, x))
    few = torch.arange(12) < 3
    whole = torch.ones(12, dtype=torch.bool)
    found = compare({"x": Features(x, few), "y": Features(x, whole), "z": Features(x, ~whole)})
    assert math.isnan(found["x", "y"].cka)
    assert found["x", "y"].clips == 3
    assert found["y", "z"] == Similarity(pytest.approx(math.nan, nan_ok=True), 0)


@pytest.mark.parametrize("odd", [0, 3])
def test_one_clip_that_differs_is_as_good_as_constant(odd: int) -> None:
    """Its centred kernel is zero: what rounding leaves of it must not become a number, whichever clip it is."""
    x, y = drawn(12, 4, seed=1), drawn(12, 5, seed=2)
    one_x, one_y = x[:1].repeat(12, 1), y[:1].repeat(12, 1)
    one_x[odd], one_y[odd] = x[1], y[1]
    assert math.isnan(cka(one_x, one_y))
    assert math.isnan(cka(one_x, x))


def test_numbers_that_are_not_finite_are_told() -> None:
    x = drawn(12, 4, seed=1)
    broken = x.clone()
    broken[3, 2] = math.inf
    with pytest.raises(UniegoError, match=r"not finite .* in y: no CKA"):
        cka(x, broken)


def test_products_that_pairs_share_are_wanted_once() -> None:
    """Those of a representation with itself, where pairs have the same clips."""
    whole, wanted = torch.ones(9, dtype=torch.bool), list[Product]()

    def compute(products: Sequence[Product]) -> dict[Product, float]:
        wanted.extend(products)
        return dict.fromkeys(products, 1.0)

    compare_all({"x": whole, "y": whole, "z": whole & (torch.arange(9) > 0), "none": ~whole}, compute)
    assert len(wanted) == len(set(wanted))
    pairs = sorted((product.one, product.other) for product in wanted)
    own = [("x", "x")] * 2 + [("y", "y")] * 2 + [("z", "z")]  # of nine clips and of eight
    assert pairs == sorted([*own, ("x", "y"), ("x", "z"), ("y", "z")])
