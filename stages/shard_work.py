"""The features of shards of clips: decode each view once, prepare for every teacher, run the networks in batches.

Three things happen at once: processes decode, one thread prepares, and the caller's thread runs the networks. They
run ahead of each other within bounds, also from one shard into the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import Failure, RowStatus, fits
from ..errors import UniegoError
from ..models.teachers import Teacher
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.decode import DecodeJob
from ..pipeline.decoders import Decoders
from ..pipeline.handoff import Ended, Handoff
from ..pipeline.progress import warn
from ..pipeline.signals import StopFlag
from .inputs import Prepared, clip_pose, decode_jobs, prepare_all, prepare_clip

__all__ = ["Prepared", "ShardResult", "ShardWork", "clip_pose", "prepare_clip"]

ShardResult = tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.uint8], list[Failure]]
"""Values, status per row and failures, as `FeatureStore.write_shard` takes them."""

Planned = tuple[range, Sequence[Teacher]]
"""The rows of a shard and the teachers that go over it."""

T = TypeVar("T")
_PAUSES = (0.1, 0.5, 2.0)  # seconds
_AHEAD = 4  # prepared clips that wait for the networks
_LOOK = 2.0  # seconds between looks at the stop flag while nothing comes


class ShardWork:
    """Computes shards; a context manager, whose processes and thread end with it.

    Batches never cross a shard, and what is stored for a clip does not depend on which other teachers run.
    """

    def __init__(self, config: RunConfig, clips: Mapping[int, Clip]) -> None:
        self._config, self._clips = config, clips
        self._planned: list[Planned] = []
        self._stream: _Stream | None = None
        self._sizes: dict[str, int] = {}  # clips per pass that a teacher has memory for, where fewer than configured

    def __enter__(self) -> ShardWork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def plan(self, shards: Sequence[Planned]) -> None:
        """Say which shards `run` will be asked for, in this order: decoding then runs ahead from one to the next."""
        self._end()
        self._planned = list(shards)
        self._stream = _Stream(self._config, self._clips, self._planned)

    def run(self, rows: range, teachers: Sequence[Teacher], flag: StopFlag) -> dict[str, ShardResult]:
        """Features of the clips in `rows` by every teacher. Raises `Stopped` and drops the shard when asked to stop.

        Rows of clips that are not this run's stay pending. Clips that cannot be read or whose features are not
        finite are failed, each with its reason; a feature of another shape than the teacher promised is an error.
        Raises `OSError` or `MemoryError` where the machine keeps failing, `UniegoError` where not even one clip fits
        into the GPU's memory: neither is the clips' fault.
        """
        outcomes = {t.key: _Outcome(t, rows, self._config, self._sizes) for t in teachers}
        for row, prepared in self.inputs(rows, teachers, flag):
            for key, item in prepared.items():
                outcomes[key].take(row, self._clips[row], item)
        for outcome in outcomes.values():
            outcome.flush()
        return {key: outcome.result() for key, outcome in outcomes.items()}

    def inputs(
        self, rows: range, teachers: Sequence[Teacher], flag: StopFlag
    ) -> Iterator[tuple[int, dict[str, Prepared]]]:
        """(row, input for each teacher) of the clips in `rows`, in order. Raises `Stopped` when asked to stop."""
        if not self._planned:
            self.plan([(rows, teachers)])
        if self._planned.pop(0) != (rows, teachers):
            raise ValueError(f"rows {rows} are not next in the plan")
        assert self._stream is not None
        for _ in range(sum(row in self._clips for row in rows)):
            item = self._stream.next(flag)
            flag.check()
            yield item

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._planned = None, []


class _Stream:
    """Prepared clips of the planned shards, in order, made ahead by a thread and the decoders it reads from."""

    def __init__(self, config: RunConfig, clips: Mapping[int, Clip], shards: Sequence[Planned]) -> None:
        self._backend, self._clips, self._shards = config.video.backend, clips, tuple(shards)
        teachers = [teacher for _, some in self._shards for teacher in some]
        self._device = teachers[0].device if teachers else torch.device("cpu")
        self._ready = Handoff[tuple[int, dict[str, Prepared]]](_AHEAD)
        self._decoders = Decoders(
            self._jobs(),
            config.compute.workers,
            timeout_s=config.extract.decode_timeout_s,
            waiting_bytes=config.extract.frames_gb * 1e9,
        )
        self._thread = threading.Thread(target=self._prepare, name="prepare", daemon=True)
        self._thread.start()

    def next(self, flag: StopFlag) -> tuple[int, dict[str, Prepared]]:
        """The next clip; raises what preparing it raised, and `Stopped` while nothing comes."""
        while True:
            try:
                return self._ready.get(_LOOK)
            except TimeoutError:
                flag.check()

    def close(self) -> None:
        """End the processes and the thread."""
        self._ready.leave()
        self._decoders.close()
        self._thread.join()

    def _each(self) -> Iterator[tuple[int, Clip, Sequence[Teacher]]]:
        for rows, teachers in self._shards:
            for row in rows:
                if row in self._clips:
                    yield row, self._clips[row], teachers

    def _jobs(self) -> Iterator[DecodeJob]:
        for _, clip, teachers in self._each():
            yield from decode_jobs(clip, teachers, self._backend).values()

    def _prepare(self) -> None:
        """The thread: on a GPU in a stream of its own, so that copies and resizing overlap with the networks."""
        try:
            with _own_stream(self._device) as stream:
                for row, clip, teachers in self._each():
                    views = decode_jobs(clip, teachers, self._backend)
                    decoded = {view: next(self._decoders) for view in views}
                    prepared = self._with_room(partial(prepare_all, clip, teachers, decoded, self._device))
                    if stream is not None:
                        stream.synchronize()  # the networks' stream may use it from here on
                    self._ready.put((row, prepared))
            self._ready.finish()
        except Ended:
            pass  # nobody wants more
        except BaseException as error:  # for whoever waits
            self._ready.finish(error)

    def _with_room(self, act: Callable[[], T]) -> T:
        """Do it, and where the GPU's memory does not do, again when the networks' batches are through."""
        for pause in _PAUSES:
            try:
                return act()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                time.sleep(pause)
        try:
            return act()
        except torch.OutOfMemoryError as error:
            raise UniegoError(
                f"{self._device} has no memory left for preparing one clip; set a smaller extract.batch_clips, or end "
                "what else runs there; what is finished is kept"
            ) from error


@contextmanager
def _own_stream(device: torch.device) -> Iterator[Any]:
    """A thread's GPU work goes into a stream of its own, which is given; None on a CPU."""
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield stream


class _Outcome:
    """One teacher's rows of a shard, as they come."""

    def __init__(self, teacher: Teacher, rows: range, config: RunConfig, sizes: dict[str, int]) -> None:
        self._teacher, self._rows, self._dtype = teacher, rows, config.cache.dtype
        self._most, self._sizes = config.extract.batch_clips, sizes
        self._values = np.full((len(rows), teacher.rows, teacher.dim), np.nan, dtype=self._dtype)
        self._status = np.full(len(rows), RowStatus.PENDING, dtype=np.uint8)
        self._failures: list[Failure] = []
        self._batch: list[tuple[int, Clip, Tensor]] = []

    def take(self, row: int, clip: Clip, item: Prepared) -> None:
        """Take one clip's input; the network runs when a batch has come together."""
        if isinstance(item, Tensor):
            self._batch.append((row - self._rows.start, clip, item))
            if len(self._batch) >= self._most:
                self.flush()
        elif item is None:
            self._status[row - self._rows.start] = RowStatus.ABSENT
        else:
            self._fail(row - self._rows.start, item)

    def flush(self) -> None:
        """Run the network on what has come together."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        features = self._features([item for _, _, item in batch])  # [b, T, D]
        storable = fits(features, self._dtype)
        for (place, clip, _), feature, good in zip(batch, features, storable, strict=True):
            if good:
                self._values[place] = feature
                self._status[place] = RowStatus.DONE
            else:
                self._fail(place, Failure(clip.clip_id, "non_finite", self._why(feature)))

    def result(self) -> ShardResult:
        """What is written."""
        return {"features": self._values}, self._status, self._failures

    def _features(self, batch: Sequence[Tensor]) -> npt.NDArray[np.float32]:
        """[b, T, D] float32; with half as many clips a pass, from now on, when the device's memory does not do.

        Inputs are held until the features are on the CPU, so that the preparing thread cannot reuse their memory.
        """
        parts: list[npt.NDArray[np.float32]] = []
        done = 0
        while done < len(batch):
            part = batch[done : done + self._sizes.get(self._teacher.key, self._most)]
            features = _tried(self._teacher, part)
            if features is None:
                self._shrink(len(part))
            else:
                parts.append(features)
                done += len(part)
        return np.concatenate(parts)

    def _shrink(self, size: int) -> None:
        key, device = self._teacher.key, self._teacher.device
        if size == 1:
            raise UniegoError(
                f"teacher {key!r} runs out of memory on {device} with a single clip; end what else runs there, set "
                "compute.device=cpu, or extract this teacher alone with --teacher; what is finished is kept"
            )
        self._sizes[key] = size // 2
        warn(f"{key}: out of memory on {device} with {size} clips a pass; going on with {size // 2}")
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _fail(self, place: int, failure: Failure) -> None:
        self._status[place] = RowStatus.FAILED
        self._failures.append(failure)

    def _why(self, feature: npt.NDArray[np.float32]) -> str:
        if np.isfinite(feature).all():
            return f"the feature reaches {np.abs(feature).max():.3g}, beyond {self._dtype}; use cache.dtype float32"
        return "the network's output is not finite"


def _tried(teacher: Teacher, batch: Sequence[Tensor]) -> npt.NDArray[np.float32] | None:
    """Features [b, T, D], or None when memory ran out; what the attempt held is free again on return."""
    try:
        return teacher.features(batch).cpu().numpy()
    except torch.OutOfMemoryError:
        return None
