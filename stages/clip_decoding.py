"""Clips decoded for the clip store: one clip, many of them in processes, and what it costs."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..cache import Failure
from ..cache.clip_format import pack_clip
from ..cache.clip_store import Record
from ..errors import UniegoError
from ..pipeline.augment import shrink
from ..pipeline.clips import Clip
from ..pipeline.config import RunConfig
from ..pipeline.jpeg import encode
from ..pipeline.sampling import thinned
from ..pipeline.signals import StopFlag, end_with_parent, ignore_in_child
from ..pipeline.video import VideoError, open_video, segment

_PROBES = 3
_PROBE_FRAMES = 48
_PATIENCE = 0.2  # seconds between two looks at the stop flag


@dataclass(frozen=True)
class ClipEncoder:
    """Makes the record of a clip. Picklable."""

    short_side: int
    quality: int
    fps: float | None
    backend: str

    @classmethod
    def from_config(cls, config: RunConfig) -> ClipEncoder:
        """As the run asks for."""
        clips = config.clips
        return cls(clips.short_side, clips.quality, clips.fps, config.video.backend)

    def record(self, clip: Clip, most: int | None = None) -> Record:
        """The clip's frames as images, in one decoding pass; or why there are none. `most`: only the first so many.

        A frame that does not decode fails the clip. Errors of the machine (`OSError`) pass.
        """
        try:
            with open_video(clip.ego_path, self.backend) as video:
                info = video.info
                first, end = segment(info, clip.start_s, clip.end_s)
                frames = thinned(end - first, info.fps, self.fps)[:most]
                images = _Images(len(frames), self)
                video.each(frames + first, images.keep)
        except VideoError as error:
            return Record(failure=Failure(clip.clip_id, error.reason, str(error.args[2])))
        data = pack_clip(
            images.data,
            frames,
            length=end - first,
            fps=info.fps,
            has_duration=info.has_duration,
            size=images.size,
        )
        return Record(data)


class _Images:
    def __init__(self, count: int, encoder: ClipEncoder) -> None:
        self.data, self.size, self._encoder = [b""] * count, (0, 0), encoder

    def keep(self, place: int, picture: npt.NDArray[np.uint8]) -> None:
        small = shrink(picture[None], self._encoder.short_side)[0]
        self.size = small.shape[0], small.shape[1]
        self.data[place] = encode(small, self._encoder.quality)


class Cost(NamedTuple):
    """What clips take, measured on `probes` of them: seconds of one core and bytes, per second of video."""

    probes: int
    length: float  # seconds, of a clip whose row does not say
    seconds_per_s: float
    bytes_per_s: float

    def seconds(self, clips: Sequence[Clip]) -> float:
        """Seconds of one core."""
        return self.seconds_per_s * self._length(clips)

    def bytes(self, clips: Sequence[Clip]) -> float:
        """Bytes in the store."""
        return self.bytes_per_s * self._length(clips)

    def _length(self, clips: Sequence[Clip]) -> float:
        return sum(self.length if c.end_s is None else c.end_s - (c.start_s or 0.0) for c in clips)


def probe(encoder: ClipEncoder, clips: Sequence[Clip], flag: StopFlag) -> Cost:
    """Try the beginnings of a few clips, evenly taken; clips that do not decode tell nothing. Raises `Stopped`."""
    tried, length, taken, kept, shown = 0, 0.0, 0.0, 0, 0.0
    for clip in clips[:: max(1, len(clips) // _PROBES)][:_PROBES]:
        flag.check()
        started = time.monotonic()
        record = encoder.record(clip, _PROBE_FRAMES)
        if record.failure is not None:
            continue
        with open_video(clip.ego_path, encoder.backend) as video:
            first, end = segment(video.info, clip.start_s, clip.end_s)
            frames = thinned(end - first, video.info.fps, encoder.fps)
        seconds = (end - first) / video.info.fps
        tried, taken, kept = tried + 1, taken + time.monotonic() - started, kept + len(record.data)
        length, shown = length + seconds, shown + seconds * min(len(frames), _PROBE_FRAMES) / len(frames)
    if not tried:
        return Cost(0, 0.0, 0.0, 0.0)
    return Cost(tried, length / tried, taken / shown, kept / shown)


def decoded(encoder: ClipEncoder, clips: Sequence[Clip], workers: int, flag: StopFlag) -> Iterator[Record]:
    """The records of the clips in their order, made in `workers` processes (0: in this one).

    A bounded number of them is held at a time. Raises `Stopped` soon after being asked to stop, also within a clip
    where there are processes; these are killed then, since nothing of theirs is worth keeping.
    """
    if not workers:
        for clip in clips:
            flag.check()
            yield encoder.record(clip)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield from _ahead(pool, encoder, clips, 2 * workers, flag)
    except BrokenProcessPool as error:
        raise UniegoError(
            "a decoding process died, which is mostly for want of memory: lower compute.workers; the same "
            "command continues"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()


def _ahead(
    pool: ProcessPoolExecutor, encoder: ClipEncoder, clips: Sequence[Clip], most: int, flag: StopFlag
) -> Iterator[Record]:
    waiting: deque[Future[Record]] = deque()
    for clip in clips:
        waiting.append(pool.submit(encoder.record, clip))
        if len(waiting) >= most:
            yield _patiently(waiting.popleft(), flag)
    while waiting:
        yield _patiently(waiting.popleft(), flag)


def _patiently(future: Future[Record], flag: StopFlag) -> Record:
    while True:
        flag.check()
        try:
            return future.result(_PATIENCE)
        except TimeoutError:
            if future.done():  # the error is the clip's own
                raise


def _start_worker() -> None:
    ignore_in_child()
    end_with_parent()
    torch.set_num_threads(1)
