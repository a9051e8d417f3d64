"""Everything that one process needs to compute shards; in a process of its own it is set up from a `Job`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache import ClipIndex, FeatureStore, RowStatus
from ...errors import FingerprintMismatch, UniegoError, fingerprint_difference
from ...models.teachers import Teacher, build_teacher
from ...pipeline import files
from ...pipeline.clips import Clip
from ...pipeline.config import RunConfig
from ...pipeline.progress import Meter
from ...pipeline.rundir import Run
from ...pipeline.signals import StopFlag
from ..compute import made_with, maker, prepare
from ..extract_plan import Piece
from ..extract_stores import fingerprint
from ..extraction import extract_shards
from ..precision import precision_of
from ..targets import row_keys, teacher_path
from ..train_teacher import in_force


@dataclass(frozen=True)
class Job:
    """What a process elsewhere is told of an extraction; small, and without arrays.

    `fingerprints`: by teacher; `rows`: hash of the rows of the run's clips; `threads`: of the arithmetic, the same
    in all processes, since the bytes may depend on it.
    """

    root: str
    config: RunConfig
    fingerprints: Mapping[str, Mapping[str, Any]]
    rows: str
    threads: int
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @classmethod
    def of(cls, run: Run, stores: Mapping[str, FeatureStore], rows: npt.NDArray[np.int64], keys: Sequence[str]) -> Job:
        """The job of computing what these teachers still need."""
        fingerprints = {key: stores[key].fingerprint for key in keys}
        return cls(str(run.root.resolve()), run.config, fingerprints, _hash(rows), torch.get_num_threads())


@dataclass(frozen=True)
class Workplace:
    """The networks, and the stores that this process writes to. `clips`: the run's clips by row."""

    run: Run
    index: ClipIndex
    clips: Mapping[int, Clip]
    teachers: Mapping[str, Teacher]
    stores: Mapping[str, FeatureStore]
    device: torch.device

    @classmethod
    def open(cls, job: Job, task: str, device: str | None = None) -> Workplace:
        """Set it up in this process; `task` names its ledgers, `device` counts instead of `compute.device`.

        Raises what building a teacher raises, and `UniegoError` where this process sees other clips or teachers than
        the one that planned the work.
        """
        config = job.config
        if device is not None:
            config = config.model_copy(update={"compute": config.compute.model_copy(update={"device": device})})
        run = Run(Path(job.root), config)
        place = prepare(config.compute)
        torch.set_num_threads(job.threads)
        index, clips = ClipIndex.open(run.cache_root), run.table().clips
        rows = index.rows(row_keys(run, clips))
        if _hash(rows) != job.rows:
            raise UniegoError(
                f"{run.root}: the table or its files changed while the extraction ran; run the same command again"
            )
        teachers = {key: build_teacher(key, in_force(run, key)) for key in job.fingerprints}
        for key, teacher in teachers.items():
            teacher.precision = precision_of(job.fingerprints[key])
            different = fingerprint_difference(job.fingerprints[key], fingerprint(run, teacher))
            if different:
                advice = "All machines need the same weights and the same versions; mend this one."
                raise FingerprintMismatch(f"teacher {key} of the machine that planned", different, advice)
        made = maker(made_with(config, place))
        stores = {key: FeatureStore.open(teacher_path(run, key), index, task, made) for key in teachers}
        return cls(run, index, dict(zip(rows.tolist(), clips, strict=True)), teachers, stores, place)

    def extract(self, piece: Piece, flag: StopFlag, meter: Meter) -> None:
        """Compute and write a piece; see `extract_shards`."""
        clips = piece.choose(self.clips)
        extract_shards(self.run, piece.pending, self.index, clips, self.teachers, self.stores, self.device, flag, meter)

    def unwritten(self, piece: Piece) -> Piece:
        """What of a piece nobody has written yet; clips that are tried again count as unwritten."""
        if piece.rows is not None:
            return piece
        left = {}
        for shard, keys in piece.pending.items():
            rows = [row for row in self.index.shard_rows(shard) if row in self.clips]
            if pending := tuple(key for key in keys if self.stores[key].pending(rows)):
                left[shard] = pending
        return Piece(left)

    def count(self, piece: Piece) -> tuple[int, int]:
        """(clips, failed features) of a piece that is written."""
        chosen = piece.choose(self.clips)
        clips = failed = 0
        for shard, keys in piece.pending.items():
            rows = [row for row in self.index.shard_rows(shard) if row in chosen]
            clips += len(rows)
            failed += sum(int((self.stores[key].status(rows) == RowStatus.FAILED).sum()) for key in keys)
        return clips, failed


def _hash(rows: npt.NDArray[np.int64]) -> str:
    return files.hash_bytes(rows.tobytes())
