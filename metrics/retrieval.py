"""Exact retrieval by cosine similarity, in blocks: average precision and the first hit of every query.

Q queries, G items of the gallery, D width. Nothing approximates: every query is compared with every item, and every
item is ranked. Memory is that of both sets and of one block of rows, whatever Q is.
"""

from __future__ import annotations

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
_CELL = 48  # bytes of working memory per query and item, at most; a test compares
_BLOCK = {"cpu": 1 << 28, "cuda": 1 << 33}  # bytes of a block of rows


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
    block: int | None = None,
) -> Ranking:
    """Rank the gallery [G, D] for every query [Q, D] by cosine, float32, on the device of `gallery`.

    `relevance`: int64 ids of queries [Q] and items [G]; equal ids are relevant to each other. `skip`: ids likewise;
    items with the query's id are left out of its ranking (itself, or all of its video). Of equal cosines the item
    that stands first in the gallery comes first. A row of zeros has cosine 0 to everything. `block`: bytes of working
    memory (None: 256 MB, on a GPU 8 GB); at least one query is ranked at a time, of 48 bytes per item. Blocks of other
    sizes give cosines that differ in the last bit, so that near ties may change places.

    Raises `UsageError` for shapes that do not fit, and for numbers that are not finite.
    """
    _check(queries, gallery, relevance, skip)
    device = gallery.device
    items = F.normalize(gallery.float(), dim=1)
    ids, out = relevance[1].to(device), None if skip is None else skip[1].to(device)
    rows = max(1, (block or _BLOCK.get(device.type, 1 << 28)) // (_CELL * max(len(gallery), 1)))
    parts: list[tuple[Tensor, ...]] = []
    for at in range(0, len(queries), rows):
        part = slice(at, at + rows)
        cosines = F.normalize(queries[part].to(device).float(), dim=1) @ items.T  # [b,G]
        left = None if skip is None or out is None else skip[0][part].to(device)[:, None] == out
        parts.append(_rank_block(cosines, relevance[0][part].to(device)[:, None] == ids, left, nearest))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return Ranking(*columns)


def _rank_block(cosines: Tensor, relevant: Tensor, left: Tensor | None, nearest: int) -> tuple[Tensor, ...]:
    """Rank [b, G] cosines of relevant [b, G] items without those `left` out: the columns of a `Ranking`."""
    if left is not None:
        cosines.masked_fill_(left, -torch.inf)
        relevant = relevant & ~left
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    hits = relevant.gather(1, order)
    total = hits.sum(1)
    best = order[:, :nearest].masked_fill(cosines[:, :nearest] == -torch.inf, -1)
    similarity = cosines[:, :nearest].clone()
    del cosines, order
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device, dtype=torch.int32)
    precision = hits.cumsum(1, dtype=torch.int32).double().div_(places).mul_(hits).sum(1) / total  # 0/0: NaN
    first = torch.where(total > 0, hits.int().argmax(1) + 1, 0)
    return precision, first, total, best, similarity


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
