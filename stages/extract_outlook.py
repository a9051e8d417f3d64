"""What an extraction will take, before it begins: clips, hours of video, files, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..models.teachers import Teacher
from ..pipeline.clips import Clip, View
from ..pipeline.durations import header_seconds
from ..pipeline.rundir import Run
from .extract_stores import row_bytes
from .targets import row_keys

_SAMPLED = 8  # files whose headers are read for the hours of video


@dataclass
class Outlook:
    """What an extraction will take: clips and how long they last by view, shards, files, bytes before compression."""

    clips: int = 0
    shards: int = 0
    files: int = 0
    bytes: int = 0
    watched: list[tuple[Clip, Sequence[View]]] = field(default_factory=list)

    def add(self, run: Run, clips: Sequence[Clip], teachers: Sequence[Teacher], rows: int, shards: int = 1) -> None:
        """Take in `shards` shards with so many rows of which `clips` are computed by these teachers."""
        self.clips += len(clips)
        self.shards += shards
        self.files += 2 * shards * len(teachers)  # features, and the state of each row
        self.bytes += rows * sum(row_bytes(run, teacher) for teacher in teachers)
        views: list[View] = sorted({teacher.view for teacher in teachers if teacher.reads in {"frames", "clip"}})
        self.watched += [(clip, views) for clip in clips]

    def seconds(self) -> float | None:
        """About how many seconds of video are watched, each view counted; None where no file says how long it is.

        Segments are known from the table; of whole files a few say how long they are, and stand for the others.
        """
        known, unknown = 0.0, []
        for clip, views in self.watched:
            for path in filter(None, (clip.video(view) for view in views)):
                if clip.end_s is not None:
                    known += clip.end_s - (clip.start_s or 0.0)
                else:
                    unknown.append((path, clip.start_s or 0.0))
        sampled = unknown[:: max(1, len(unknown) // _SAMPLED)][:_SAMPLED]
        found = [max(0.0, whole - start) for path, start in sampled if (whole := header_seconds(path)) is not None]
        if unknown and not found:
            return known or None
        return known + len(unknown) * (statistics.fmean(found) if found else 0.0)


def foresee(
    run: Run,
    index: ClipIndex | None,
    teachers: Mapping[str, Teacher],
    open_store: Callable[[Teacher], FeatureStore | None],
    rows_per_shard: int,
) -> Outlook:
    """What an extraction would take that has not been planned: nothing is written. For all tasks together."""
    clips = run.table().clips
    rows = np.full(len(clips), -1, np.int64) if index is None else index.rows(row_keys(run, clips))
    groups: dict[tuple[str, ...], list[int]] = {}
    left = np.zeros((len(teachers), len(clips)), np.bool_)
    for place, teacher in enumerate(teachers.values()):
        store = open_store(teacher) if index is not None else None
        left[place] = True if store is None else store.status(rows) == RowStatus.PENDING
    for column in np.flatnonzero(left.any(axis=0)):
        keys = tuple(key for key, wanted in zip(teachers, left[:, column], strict=True) if wanted)
        groups.setdefault(keys, []).append(int(column))
    outlook = Outlook()
    for keys, columns in groups.items():
        mine = [clips[column] for column in columns]
        shards = -(-len(mine) // rows_per_shard)
        outlook.add(run, mine, [teachers[key] for key in keys], len(mine), shards)
    return outlook
