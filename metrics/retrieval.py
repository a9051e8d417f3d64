"""Exact retrieval by cosine similarity, in blocks: average precision and the first hit of every query.

Q queries, G items of the gallery, D width. Nothing approximates: every query is compared with every item. The gallery
is not sorted: the rank of a relevant item is one more than the items before it, and one pass over the gallery counts
them for all relevant items at once. Memory is that of both sets and of one block of cosines, whatever Q is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from .bootstrap import bootstrap

RECALL_AT = (1, 5, 10)
BLOCK = 1 << 28  # bytes of a block of cosines
ROW = 48  # bytes of working memory per item, at most, while one query's items are ranked; a test compares


@dataclass(frozen=True)
class Ranking:
    """What was found, per query.

    precision: average precision float64 [Q], NaN for a query that nothing in the gallery is relevant to. first: rank
    of the first relevant item int64 [Q], from 1; 0: none. relevant: how many items are, int64 [Q]. nearest: places in
    the gallery of the best items int64 [Q, K], best first; -1: the query has fewer. similarity: their cosines,
    float32 [Q, K].
    """

    precision: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    relevant: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.int64]
    similarity: npt.NDArray[np.float32]

    def metrics(self, *, resamples: int = 0, seed: int = 0) -> dict[str, Any]:
        """map and r@1, r@5, r@10 in percent over the queries that have a relevant item, and how many there are.

        r@k is the share of queries with a relevant item among the first k. `resamples` > 0 adds "interval": 95 %
        bootstrap intervals over queries. All are None when no query has a relevant item.
        """
        counted = self.relevant > 0
        names = ("map", *(f"r@{k}" for k in RECALL_AT))
        found: dict[str, Any] = {"queries": int(counted.sum()), "without_relevant": int((~counted).sum())}
        if not counted.any():
            return {**dict.fromkeys(names), **found}
        columns = [self.precision[counted], *(self.first[counted] <= k for k in RECALL_AT)]
        table = 100.0 * np.stack(columns, axis=1).astype(np.float64)  # [q,4]
        found |= dict(zip(names, table.mean(0).tolist(), strict=True))
        if resamples:
            ranges = bootstrap(lambda n: n @ table / n.sum(), len(table), resamples=resamples, seed=seed)
            found["interval"] = dict(zip(names, ranges.tolist(), strict=True))
        return found


@torch.inference_mode()
def rank(
    queries: Tensor,
    gallery: Tensor,
    relevance: tuple[Tensor, Tensor],
    skip: tuple[Tensor, Tensor] | None = None,
    *,
    nearest: int = 10,
    block: int = BLOCK,
    between: Callable[[], object] = lambda: None,
) -> Ranking:
    """Rank the gallery [G, D] for every query [Q, D] by cosine, float32, on the device of `gallery`.

    `relevance`: int64 ids of queries [Q] and items [G]; equal ids are relevant to each other. `skip`: ids likewise;
    items with the query's id are left out of its ranking (itself, or all of its video). Of equal cosines the item
    that stands first in the gallery comes first. A row of zeros has cosine 0 to everything. `block`: bytes of cosines
    that are in memory at once; those of one query are at least, and ranking it takes 48 bytes per item besides. Blocks
    of other sizes give cosines that differ in the last bit, so that near ties may change places. `between` is called
    before every block, and may raise.

    Raises `UsageError` for shapes that do not fit, and for numbers that are not finite.
    """
    _check(queries, gallery, relevance, skip)
    device = gallery.device
    items = F.normalize(gallery.float(), dim=1)
    ids, out = relevance[1].to(device), None if skip is None else skip[1].to(device)
    rows = max(1, block // (4 * len(gallery)))
    found: list[_Row] = []
    for at in range(0, len(queries), rows):
        between()
        part = slice(at, at + rows)
        cosines = F.normalize(queries[part].to(device).float(), dim=1) @ items.T  # [b,G]
        asked = relevance[0][part].to(device)
        own = None if skip is None else skip[0][part].to(device)
        for i, row in enumerate(cosines):
            left = None if own is None or out is None else out == own[i]
            found.append(_rank_row(row, ids == asked[i], left, nearest))
    precision, first, relevant, best, similarity = zip(*found, strict=True)
    return Ranking(
        np.array(precision, np.float64),
        np.array(first, np.int64),
        np.array(relevant, np.int64),
        torch.stack(best).cpu().numpy(),
        torch.stack(similarity).cpu().numpy(),
    )


_Row = tuple[float, int, int, Tensor, Tensor]


def _rank_row(cosines: Tensor, relevant: Tensor, left: Tensor | None, nearest: int) -> _Row:
    """A query's line of a `Ranking`: its cosines [G], changed in place, which items are relevant, which `left` out."""
    if left is not None:
        cosines.masked_fill_(left, -torch.inf)
        relevant = relevant & ~left
    keys = sort_keys(cosines)
    top = keys.topk(min(nearest, len(keys))).values
    places = len(keys) - 1 - (top & 0xFFFFFFFF)
    similarity = cosines[places]
    best = places.masked_fill(similarity == -torch.inf, -1)
    wanted = keys[relevant].sort().values  # [R], worst first
    count = len(wanted)
    if not count:
        return float("nan"), 0, 0, best, similarity
    worse = torch.searchsorted(wanted, keys)  # [G], how many relevant items each item is better than
    better = torch.bincount(worse, minlength=count + 1).flip(0).cumsum(0)[:count]  # [R], best first
    ranks = (better + 1).double()
    precision = (torch.arange(1, count + 1, device=ranks.device) / ranks).mean()
    return float(precision), int(better[0]) + 1, count, best, similarity


def sort_keys(cosines: Tensor) -> Tensor:
    """int64 [..., G], all different in a row: greater for a greater cosine, and of equal ones for the first in the row.

    The bits of a float, read as an integer, are in the floats' order once those of negative ones are turned over. The
    lower half of a key is G - 1 less its place.
    """
    bits = (cosines + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32
    return ordered.add_(torch.arange(cosines.shape[-1] - 1, -1, -1, device=cosines.device))


def _check(
    queries: Tensor, gallery: Tensor, relevance: tuple[Tensor, Tensor], skip: tuple[Tensor, Tensor] | None
) -> None:
    if (
        queries.ndim != 2
        or gallery.ndim != 2
        or queries.shape[1] != gallery.shape[1]
        or not len(queries)
        or not len(gallery)
    ):
        raise UsageError(
            f"queries [Q, D] and gallery [G, D] wanted, not empty; got {[*queries.shape]}, {[*gallery.shape]}"
        )
    for first, second in filter(None, (relevance, skip)):
        if first.shape != queries.shape[:1] or second.shape != gallery.shape[:1]:
            raise UsageError(
                f"ids must be [{len(queries)}] and [{len(gallery)}], not {[*first.shape]}, {[*second.shape]}"
            )
    for name, values in (("queries", queries), ("gallery", gallery)):
        if not values.isfinite().all():
            raise UsageError(f"the embeddings of the {name} are not finite numbers")
