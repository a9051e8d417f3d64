"""How much of what was asked for a store holds, and what became of the rest. Reads ledgers only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .ledger import Failure, RowStatus
from .store import FeatureStore


class Coverage(NamedTuple):
    """What became of `clips` clips: `missing` ones have no such input, `pending` ones were not tried yet."""

    clips: int
    done: int
    failed: int
    missing: int
    pending: int

    @property
    def share(self) -> float:
        """Clips with features among all of them, 0 to 1; those without an input count against it. 1 of no clips."""
        return self.done / self.clips if self.clips else 1.0


def count_rows(store: FeatureStore | None, rows: npt.NDArray[np.int64]) -> Coverage:
    """Coverage of rows of the clip index (-1: none). Without a store all are pending."""
    if store is None:
        return Coverage(len(rows), 0, 0, 0, len(rows))
    counts = np.bincount(store.status(rows), minlength=len(RowStatus))
    done, failed, missing, pending = (
        int(counts[code]) for code in (RowStatus.DONE, RowStatus.FAILED, RowStatus.ABSENT, RowStatus.PENDING)
    )
    return Coverage(len(rows), done, failed, missing, pending)


def failed_rows(store: FeatureStore, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, Failure]]:
    """(row, failure) of those of the rows that failed, in row order, one shard in memory at a time."""
    failed = np.sort(rows[store.status(rows) == RowStatus.FAILED])
    per_shard = store.index.rows_per_shard
    for shard in np.unique(failed // per_shard).tolist():
        entry = store.entry(shard)
        if entry is None:  # replaced in this very moment
            continue
        reasons = {failure.clip_id: failure for failure in entry.failures}
        start, keys = shard * per_shard, store.index.keys(shard)
        for row in failed[failed // per_shard == shard].tolist():
            failure = reasons.get(keys[row - start].clip_id)
            if failure is not None:
                yield row, failure
