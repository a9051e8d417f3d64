"""Which shards are still to be computed, and by which teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..models.teachers import Teacher
from ..pipeline.clips import Clip
from ..pipeline.rundir import Run
from .extract_options import Share
from .extract_outlook import Outlook
from .targets import row_keys


class Piece(NamedTuple):
    """Shards that are computed in one go: shard -> its teachers. `rows`: only these clips; None: all of the run's."""

    pending: dict[int, tuple[str, ...]]
    rows: frozenset[int] | None = None

    def choose(self, clips: Mapping[int, Clip]) -> Mapping[int, Clip]:
        """The clips that are computed, by row."""
        return clips if self.rows is None else {row: clips[row] for row in sorted(self.rows)}

    def split(self, most: int) -> list[Piece]:
        """The same in pieces of at most so many shards."""
        shards = list(self.pending)
        groups = [shards[start : start + most] for start in range(0, len(shards), most)]
        return [Piece({shard: self.pending[shard] for shard in group}, self.rows) for group in groups]

    def deal(self, hands: int) -> list[Piece]:
        """The same dealt out, a shard at a time, to so many; some may get nothing."""
        shards = list(self.pending)
        dealt = [shards[hand::hands] for hand in range(hands)]
        return [Piece({shard: self.pending[shard] for shard in hand}, self.rows) for hand in dealt]


@dataclass(frozen=True)
class Plan:
    """The rows of the run's clips, in the table's order, and the pieces of work that are left of this share."""

    index: ClipIndex
    rows: npt.NDArray[np.int64]
    clips: dict[int, Clip]
    share: Share
    pieces: list[Piece]

    @classmethod
    def of(
        cls, run: Run, index: ClipIndex, stores: Mapping[str, FeatureStore], share: Share, retry_failed: bool
    ) -> Plan:
        """Shards that are not written, and apart from them the clips that are left of shards which another run began.

        With `retry_failed` also the failed clips of each teacher. Such clips are computed alone, so that what is stored
        for their neighbours keeps its bytes.
        """
        clips = run.table().clips
        rows = index.rows(row_keys(run, clips))
        shards = rows // index.rows_per_shard
        pending: dict[int, tuple[str, ...]] = {}
        alone: list[Piece] = []
        for key, store in stores.items():
            status = store.status(rows)
            mine = {shard for shard in store.pending(rows) if share.has(shard)}
            begun = mine & set(shards[(status != RowStatus.PENDING) & (rows >= 0)].tolist())
            for shard in mine - begun:
                pending[shard] = (*pending.get(shard, ()), key)
            left = (status == RowStatus.PENDING) & np.isin(shards, list(begun))
            if retry_failed:
                left |= (status == RowStatus.FAILED) & [share.has(shard) for shard in shards.tolist()]
            if left.any():
                alone.append(
                    Piece(dict.fromkeys(np.unique(shards[left]).tolist(), (key,)), frozenset(rows[left].tolist()))
                )
        first = [Piece(dict(sorted(pending.items())))] if pending else []
        return cls(index, rows, dict(zip(rows.tolist(), clips, strict=True)), share, [*first, *alone])

    @property
    def share_rows(self) -> npt.NDArray[np.int64]:
        """Rows of this share's clips."""
        shards = self.rows // self.index.rows_per_shard
        mine: npt.NDArray[np.int64] = self.rows[shards % self.share.count == self.share.index]
        return mine

    def count(self, piece: Piece) -> int:
        """Clips of this run in a piece, as the meter counts them."""
        chosen = piece.choose(self.clips)
        return sum(row in chosen for shard in piece.pending for row in self.index.shard_rows(shard))

    @property
    def todo(self) -> int:
        """Clips that are computed."""
        return sum(self.count(piece) for piece in self.pieces)

    @property
    def keys(self) -> list[str]:
        """Teachers that have work."""
        return list(dict.fromkeys(key for piece in self.pieces for keys in piece.pending.values() for key in keys))

    def outlook(self, run: Run, teachers: Mapping[str, Teacher]) -> Outlook:
        """What the pieces will take."""
        outlook = Outlook()
        for piece in self.pieces:
            chosen = piece.choose(self.clips)
            for shard, keys in piece.pending.items():
                mine = [chosen[row] for row in self.index.shard_rows(shard) if row in chosen]
                outlook.add(run, mine, [teachers[key] for key in keys], len(self.index.shard_rows(shard)))
        return outlook
