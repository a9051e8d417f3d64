"""How many clips make a shard: measured on a few clips before a cache is planned, fixed from then on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..cache import suggested_rows
from ..models.teachers import Teacher
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.progress import say
from ..pipeline.signals import StopFlag
from .shard_work import ShardWork

_TIMED = 4
_LONG = 30.0  # seconds: a first clip that takes longer is measurement enough


def measured_rows(config: RunConfig, teachers: int, clips: int, seconds: Callable[[], float]) -> int:
    """`cache.rows_per_shard`, or what so many clips and their measured time suggest; says what was chosen and why.

    `seconds` measures how long a clip takes; few clips are not worth it.
    """
    if config.cache.rows_per_shard is not None:
        return config.cache.rows_per_shard
    most = suggested_rows(clips)
    if most <= suggested_rows(0):
        return most
    taken = seconds()
    rows = suggested_rows(clips, taken)
    say(
        f"extract-teachers: {rows} clips per shard ({taken:.2g} s a clip with {teachers} teachers, so about "
        f"{rows * taken / 60:.1f} minutes a shard); fixed from now on, cache.rows_per_shard sets another number"
    )
    return rows


def seconds_per_clip(config: RunConfig, teachers: Sequence[Teacher], clips: Sequence[Clip], flag: StopFlag) -> float:
    """Seconds that a clip takes through all teachers, decoding included, after a first one to warm up."""
    step = max(1, len(clips) // (_TIMED + 1))
    probes = dict(enumerate(clips[::step][: _TIMED + 1]))
    with ShardWork(config, probes) as work:
        started = time.monotonic()
        work.run(range(1), teachers, flag)
        first = time.monotonic() - started
        if first > _LONG or len(probes) < 2:
            return first
        started = time.monotonic()
        work.run(range(1, len(probes)), teachers, flag)
        return (time.monotonic() - started) / (len(probes) - 1)
