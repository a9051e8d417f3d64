"""The work inside one extraction process: shards are computed one after the other, each written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..models.teachers import Teacher
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .shard_work import ShardWork


def extract_shards(
    run: Run,
    pending: Mapping[int, Sequence[str]],
    index: ClipIndex,
    clips: Mapping[int, Clip],
    teachers: Mapping[str, Teacher],
    stores: Mapping[str, FeatureStore],
    device: torch.device,
    flag: StopFlag,
    meter: Meter,
) -> None:
    """Compute and write the shards of `pending` (shard -> keys of its teachers) in that order.

    `clips`: the run's clips by row. Teachers are moved to `device`. `meter` advances by the clips of each shard when
    that is written. Raises `Stopped` when asked to stop: the shard at hand is dropped.
    """
    for teacher in teachers.values():
        teacher.to(device)
    with ShardWork(run.config, clips) as work:
        for shard, keys in pending.items():
            rows = index.shard_rows(shard)
            results = work.run(rows, [teachers[key] for key in keys], flag)
            for key in keys:
                stores[key].write_shard(shard, *results[key])
            failed = sum(int((results[key][1] == RowStatus.FAILED).sum()) for key in keys)
            meter.advance(sum(row in clips for row in rows), f"{failed} features failed" if failed else "")
            flag.check()
