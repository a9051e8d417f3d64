"""How alike two representations of the same clips are: debiased linear CKA, exact from sums over any batches.

    CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))        Kornblith et al., arXiv 1905.00414

HSIC is the unbiased estimator of Song et al. (Feature selection via dependence maximization, JMLR 2012, eq. 4) for
linear kernels K = X X', L = Y Y', whose diagonals are set to zero:

    [ tr(K L) + sum(K) sum(L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2) ] / (n (n-3))

It is written with products of features instead of products of clips, so that nothing of size n x n is made, and it is
not the mean of a batch's estimates (Nguyen et al., arXiv 2010.15327) but that of all clips at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UniegoError
from ..pipeline.files import hash_bytes

LEAST_CLIPS = 4
"""Fewer have no debiased HSIC."""
_ROUNDING = 1e-13  # of the size of what HSIC is the difference of: below it nothing is known but that it is small


class Features(NamedTuple):
    """One representation of N clips: floating point [N, D], and which clips have it, bool [N]."""

    values: Tensor
    present: Tensor


class HsicSums:
    """Sums over clips, float64, of two representations of widths p and q. `add` batches, then ask for `value`."""

    def __init__(self) -> None:
        self.clips = 0
        self._sums: list[Tensor] = []
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows of a batch, [b, p] and [b, q], on one device. Where both lie does not matter to HSIC: the first row
        becomes the origin, so that sums do not cancel."""
        if not len(x):
            return
        x, y = x.double(), y.double()
        if self._origin is None:
            self._origin = x[0], y[0]
        x, y = x - self._origin[0], y - self._origin[1]
        k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741  (the diagonals, as in the formula)
        sums = [x.T @ y, x.sum(0), y.sum(0), k.sum(), l.sum(), l @ x, k @ y, k @ l]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.clips += len(x)

    def value(self) -> float:
        """The debiased HSIC; NaN of fewer than four clips, 0 where only rounding is left: a representation in which
        at most one clip differs has none, and its rounding would make any likeness."""
        n = self.clips
        if n < LEAST_CLIPS:
            return math.nan
        cross, x, y, k, l, lx, ky, kl = self._sums  # noqa: E741
        trace = cross.square().sum() - kl
        totals = (x @ x - k) * (y @ y - l)
        product = x @ cross @ y - x @ lx - y @ ky + kl
        value = trace + totals / ((n - 1) * (n - 2)) - 2 * product / (n - 2)
        size = cross.square().sum() + kl + (x @ x + k) * (y @ y + l) / ((n - 1) * (n - 2))
        size = size + 2 * ((x @ cross @ y).abs() + (x @ lx).abs() + (y @ ky).abs() + kl) / (n - 2)
        return 0.0 if value.abs() <= _ROUNDING * size else float(value / (n * (n - 3)))


class Product(NamedTuple):
    """The HSIC of two representations over the clips that have both of `among`."""

    one: str
    other: str
    among: tuple[str, str]


class Similarity(NamedTuple):
    """CKA of a pair, NaN where it is not defined, and of how many clips."""

    cka: float
    clips: int


def hsic(
    product: Product,
    features: Mapping[str, Features],
    device: torch.device,
    batch: int = 4096,
    check: Callable[[], None] = lambda: None,
) -> float:
    """The debiased HSIC of a product's clips, in memory that a batch of rows on the device bounds.

    How many rows go there at a time (`batch`) does not matter. `check` is called in between, and may raise. Raises
    `UniegoError` for numbers that are not finite in a clip that is present.
    """
    sums, (first, second) = HsicSums(), product.among
    rows = (features[first].present.cpu() & features[second].present.cpu()).nonzero().flatten()
    for at in torch.split(rows, batch):
        check()
        sums.add(*(_rows(features[name].values, at).to(device) for name in product[:2]))
    value = sums.value()
    if sums.clips >= LEAST_CLIPS and not math.isfinite(value):
        where = product.one if product.one == product.other else f"{product.one} or {product.other}"
        raise UniegoError(f"numbers that are not finite (or too large for float64) in {where}: no CKA")
    return value


def compare_all(
    present: Mapping[str, Tensor], compute: Callable[[Sequence[Product]], Mapping[Product, float]]
) -> dict[tuple[str, str], Similarity]:
    """CKA of every pair of representations, each over the clips that have both.

    `present`: bool [N] by name. `compute` gives the HSIC of every product that is wanted, wherever that is done; what
    pairs over the same clips share is wanted once.
    """
    counts: dict[tuple[str, str], int] = {}
    parts: dict[tuple[str, str], tuple[Product, Product, Product]] = {}
    wanted: dict[tuple[str, str, str], Product] = {}
    for one, other in combinations_with_replacement(present, 2):
        shared = present[one].cpu() & present[other].cpu()
        counts[one, other] = int(shared.sum())
        if counts[one, other] < LEAST_CLIPS:
            continue
        clips = hash_bytes(shared.numpy().tobytes())
        own_one, own_other, cross = (
            wanted.setdefault((*pair, clips), Product(*pair, (one, other)))
            for pair in ((one, one), (other, other), (one, other))  # so that an error names one of the two
        )
        parts[one, other] = own_one, own_other, cross
    values = compute(list(wanted.values()))
    found: dict[tuple[str, str], Similarity] = {}
    for pair, count in counts.items():
        cka = math.nan
        if pair in parts:
            first, second, both = (values[product] for product in parts[pair])
            if first * second > 0:
                cka = both / math.sqrt(first * second)
        found[pair] = found[pair[::-1]] = Similarity(cka, count)
    return found


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Rows in order; where they follow each other they are not copied."""
    first, last = int(rows[0]), int(rows[-1])
    return values[first : last + 1] if last - first + 1 == len(rows) else values[rows.to(values.device)]
