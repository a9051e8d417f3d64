"""The work inside one extraction process: shards are computed one after the other, and written by a thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import torch

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..models.teachers import Teacher
from ..pipeline.clips import Clip
from ..pipeline.handoff import Ended, Handoff
from ..pipeline.progress import Meter
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .shard_work import ShardResult, ShardWork


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

    `clips`: the run's clips by row. Teachers are moved to `device`. The stores belong to this function while it runs:
    a thread of its own writes to them, one finished shard while the next is computed. `meter` advances by the clips of
    each shard when that is written. Raises `Stopped` when asked to stop: the shard at hand is dropped, finished ones
    are written first. Errors of `ShardWork.run` and of writing end the work in the same way.
    """
    for teacher in teachers.values():
        teacher.to(device)
    planned = [(shard, index.shard_rows(shard), [teachers[key] for key in keys]) for shard, keys in pending.items()]
    with _Writer(stores, meter) as writer, ShardWork(run.config, clips) as work:
        work.plan([(rows, some) for _, rows, some in planned])
        for shard, rows, some in planned:
            results = work.run(rows, some, flag)
            writer.put(_Finished(shard, sum(row in clips for row in rows), results))
            flag.check()


class _Finished(NamedTuple):
    """A computed shard: its number, how many of the run's clips it has, and what each teacher's store is to get."""

    shard: int
    clips: int
    results: dict[str, ShardResult]


class _Writer:
    """A thread that writes finished shards; one may wait for it. Its errors are raised by `put` and at the end."""

    def __init__(self, stores: Mapping[str, FeatureStore], meter: Meter) -> None:
        self._stores, self._meter = stores, meter
        self._finished = Handoff[_Finished](1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="writer")

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.finish()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def put(self, finished: _Finished) -> None:
        """Hand over a shard to be written; raises what went wrong with an earlier one."""
        self._finished.put(finished)

    def _write(self) -> None:
        try:
            while True:
                shard, clips, results = self._finished.get()
                for key, result in results.items():
                    self._stores[key].write_shard(shard, *result)
                failed = sum(int((status == RowStatus.FAILED).sum()) for _, status, _ in results.values())
                self._meter.advance(clips, f"{failed} features failed" if failed else "")
        except Ended:
            pass
        except BaseException as error:
            self._error = error
            self._finished.leave(error)
