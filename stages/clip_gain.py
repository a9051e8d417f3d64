"""What a clip store would bring a training from videos: measured on a few of its clips, and said once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..pipeline.augment import Frames, draw_train, shrink, train_clip
from ..pipeline.clips import Clip
from ..pipeline.jpeg import decode, encode
from ..pipeline.progress import count, say
from ..pipeline.rundir import Run
from ..pipeline.video import VideoError, open_video, segment
from .batches import ClipReader

_CLIPS = 3
_RUNS = 3


class Gain(NamedTuple):
    """Median seconds that one core takes for a training view, out of the video and out of stored images."""

    clips: int
    video: float
    images: float


def offer_clip_store(run: Run, clips: Sequence[Clip]) -> None:
    """Say what `uniego prepare-clips` would bring, where training reads videos; nothing is kept."""
    if run.config.clips.source == "store":
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gain = measure_gain(run, clips)
    finally:
        torch.set_num_threads(threads)
    if gain is None:
        return
    say(
        f"data: one core takes {1e3 * gain.video:.0f} ms for a training view out of a video and would take "
        f"{1e3 * gain.images:.0f} ms out of a clip store, {gain.video / gain.images:.1f} times less "
        f"({count(gain.clips, 'clip')} tried); where data_wait in metrics.jsonl is high, "
        f"`{run.command('prepare-clips')}` makes one"
    )


def measure_gain(run: Run, clips: Sequence[Clip]) -> Gain | None:
    """Time training views of a few clips, both ways in turn; None where none of them can be read.

    The images are the frames that the video gave, stored as `uniego prepare-clips` would; only reading a few hundred
    kilobytes from a disk is not in the time. An open file's table of frames is known, as it is after a first epoch.
    """
    reader = ClipReader.from_config(run.config)
    video, images, tried = [], [], 0
    for clip in clips[:: max(1, len(clips) // _CLIPS)][:_CLIPS]:
        try:
            stored = _stored(run, clip)
            reader.train(clip, 0)
        except VideoError:
            continue
        tried += 1
        for epoch in range(_RUNS):
            video.append(_time(partial(reader.train, clip, epoch)))
            images.append(_time(partial(_view, reader, *stored)))
    return Gain(tried, statistics.median(video), statistics.median(images)) if tried else None


def _stored(run: Run, clip: Clip) -> tuple[list[bytes], tuple[int, int]]:
    """As many images of a clip as a view takes, and their height and width."""
    config = run.config
    with open_video(clip.ego_path, config.video.backend) as video:
        first, end = segment(video.info, clip.start_s, clip.end_s)
        picks = np.linspace(first, end - 1, config.student.num_frames).astype(np.int64)
        frames: Frames = shrink(video.frames(picks.tolist()), config.clips.short_side)
    return [encode(frame, config.clips.quality) for frame in frames], (frames.shape[1], frames.shape[2])


def _view(reader: ClipReader, images: list[bytes], size: tuple[int, int]) -> Tensor:
    draw = draw_train(np.random.default_rng(0))
    return train_clip(
        decode(images, *size),
        draw,
        short_side=reader.short_side,
        size=reader.image_size,
        mean=reader.mean,
        std=reader.std,
    )


def _time(work: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
