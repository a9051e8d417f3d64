"""Dense features: one embedding per step of an untrimmed video, from a window that slides over it.

What a window sees is in `pipeline.sliding`. Videos are decoded in stretches of windows, by processes that are watched
and run ahead of the network, also from one video to the next. A frame that several windows see is decoded and cropped
(the centre crop of the evaluation) once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models import TimeSformer
from ..pipeline import segmentation, sources
from ..pipeline.augment import test_clip
from ..pipeline.decode import Decoded, DecodeJob
from ..pipeline.decoders import Decoders
from ..pipeline.handoff import ahead
from ..pipeline.progress import Meter, warn
from ..pipeline.signals import StopFlag
from ..pipeline.sliding import Sliding, Windows
from ..pipeline.video import VideoError
from .batches import ClipFailure, ClipReader
from .encoder import lone_clip
from .loop import autocast

_STRETCH = 1 << 28  # bytes of the decoded frames of a stretch, and of their crops
_PICKS = 2048  # frames that the windows of a stretch name, at most: the numbers travel in one message
_AHEAD = 2  # batches that wait for the network

NON_FINITE = "non_finite"
Tokens = npt.NDArray[np.float32]
"""[steps, D], of a video."""


@dataclass(frozen=True)
class Slider:
    """Dense tokens by a network, which is on its device, in eval mode. `reader`: how it sees frames.

    `batch`: windows that go through the network together. `workers`: processes that decode; 0: none, and a file that
    crashes or hangs a decoder ends the work. `timeout_s`: seconds that a decoder has for a stretch, plus one per
    megabyte of its file.
    """

    model: TimeSformer
    reader: ClipReader
    sliding: Sliding
    precision: str = "fp32"
    batch: int = 16
    workers: int = 0
    timeout_s: float = 120.0

    def fingerprint(self, weights: str) -> dict[str, Any]:
        """What the tokens depend on besides the videos; `weights`: the hash of the network's file."""
        return {
            "weights": weights,
            "input": asdict(self.reader),
            "precision": self.precision,
            **asdict(self.sliding),
        }

    @torch.inference_mode()
    def tokens(self, videos: Mapping[str, Path], flag: StopFlag) -> Iterator[tuple[str, Tokens | VideoError]]:
        """Each video's name with its tokens, or why it does not decode.

        Memory is that of the decoded frames of two stretches per process (256 MB each, or one window). Raises
        `Stopped` when asked to stop.
        """
        stretches: list[_Stretch] = []
        for name, found in self._probed(videos, flag):
            if found.error is not None:
                yield name, found.error
            else:
                stretches += self._stretches(name, videos[name], found)
        jobs = _Jobs(self, stretches)
        with (
            Decoders(jobs, self.workers, timeout_s=self.timeout_s, waiting_bytes=_STRETCH) as decoders,
            closing(ahead(jobs.windows(decoders), _AHEAD, flag.check, decoders.close)) as batches,
        ):
            parts: list[Tensor] = []
            for stretch, windows in batches:
                flag.check()
                if isinstance(windows, VideoError):
                    parts = []
                    yield stretch.name, windows
                    continue
                with autocast(self.model.cls_token.device, self.precision):
                    token = self.model(windows.to(self.model.cls_token.device)).token
                parts.append(token.float().cpu())
                if sum(map(len, parts)) == stretch.steps:
                    yield stretch.name, torch.cat(parts).numpy()
                    parts = []

    def _probed(self, videos: Mapping[str, Path], flag: StopFlag) -> Iterator[tuple[str, Decoded]]:
        """What every video says about itself."""
        jobs = (DecodeJob(str(path), None, None, (), self.reader.backend) for path in videos.values())
        with Decoders(jobs, min(1, self.workers), timeout_s=self.timeout_s) as decoders:
            for name, found in zip(videos, decoders, strict=True):
                flag.check()
                yield name, found

    def _stretches(self, name: str, path: Path, found: Decoded) -> list[_Stretch]:
        """A video's windows in portions whose frames have room."""
        assert found.shape is not None
        frames, fps = self.reader.num_frames, found.shape.fps
        steps, step_s = self.sliding.steps(found.last_s, fps), self.sliding.seconds(fps)
        bytes_a_frame = max(3 * found.shape.height * found.shape.width, 12 * self.reader.image_size**2)  # or its crop
        room = _STRETCH // bytes_a_frame
        overlapping = ((room - 1) / fps - self.sliding.window_s) / step_s  # windows that share their frames
        length = max(1, min(_PICKS // frames, max(room // frames, int(overlapping))))
        starts = [*range(0, steps, length), steps]
        return [_Stretch(name, path, begin, stop, max(0, begin - length), steps) for begin, stop in pairwise(starts)]


class _Stretch(NamedTuple):
    """The windows begin..stop of a video of `steps` windows; those from `known` on are in the stretch before."""

    name: str
    path: Path
    begin: int
    stop: int
    known: int
    steps: int


class _Jobs:
    """The decoding of stretches; those of a video that failed are not asked for any more."""

    def __init__(self, slider: Slider, stretches: list[_Stretch]) -> None:
        self._slider, self._stretches = slider, iter(stretches)
        self._asked: deque[_Stretch] = deque()
        self._broken: set[str] = set()

    def __iter__(self) -> Iterator[DecodeJob]:
        reader = self._slider.reader
        for stretch in self._stretches:
            if stretch.name not in self._broken:
                self._asked.append(stretch)
                look = Windows(self._slider.sliding, reader.num_frames, stretch.begin, stretch.stop, stretch.known)
                yield DecodeJob(str(stretch.path), None, None, (), reader.backend, look)

    def windows(self, decoders: Decoders) -> Iterator[tuple[_Stretch, Tensor | VideoError]]:
        """Batches of a video's windows, float32 [b, 3, T, S, S], or why there are no more of them."""
        held: dict[int, Tensor] = {}  # frames as the network sees them, float32 [3, S, S]
        waiting: list[Tensor] = []
        for decoded in decoders:
            stretch = self._asked.popleft()
            if stretch.name in self._broken:
                continue
            if stretch.begin == 0:
                held, waiting = {}, []
            if decoded.error is not None:
                self._broken.add(stretch.name)
                yield stretch, decoded.error
                continue
            assert decoded.rows is not None
            seen = set(decoded.rows.ravel().tolist())
            held = {number: crop for number, crop in held.items() if number in seen} | self._crops(decoded)
            for row in decoded.rows.tolist():
                waiting.append(torch.stack([held[number] for number in row], 1))
                if len(waiting) == self._slider.batch:
                    yield stretch, torch.stack(waiting)
                    waiting = []
            if stretch.stop == stretch.steps and waiting:
                yield stretch, torch.stack(waiting)

    def _crops(self, decoded: Decoded) -> dict[int, Tensor]:
        """The decoded frames by their numbers."""
        reader = self._slider.reader
        assert decoded.frames is not None
        assert decoded.numbers is not None
        return {
            number: test_clip(
                picture[None],
                size=reader.image_size,
                single_short_side=reader.single_short_side,
                mean=reader.mean,
                std=reader.std,
            )[:, 0]
            for number, picture in zip(decoded.numbers.tolist(), decoded.frames, strict=True)
        }


def video_identities(videos: Mapping[str, Path]) -> dict[str, str]:
    """What tells each video from another one of the same name, wherever it lies."""
    clips = {name: lone_clip(path, f"{name}{path.suffix}") for name, path in videos.items()}
    seen = sources.measure(list(clips.values()))
    return {name: sources.identity(clip, seen) for name, clip in clips.items()}


def write_dense(slider: Slider, videos: Mapping[str, Path], out: Path, flag: StopFlag) -> list[ClipFailure]:
    """Write OUT/features/<name>.npy, float32 [D, T], for every video that is not there yet, in their order.

    Returns the videos that could not be decoded, or whose tokens are not finite (`NON_FINITE`). The caller sees to it
    that what lies in `out` was made with the same network and settings (see `Slider.fingerprint`).
    """
    left = {name: path for name, path in videos.items() if not segmentation.features_path(out, name).exists()}
    failures: list[ClipFailure] = []
    with Meter("dense features", len(videos), unit="videos", resumed=len(videos) - len(left)) as meter:
        for name, found in slider.tokens(left, flag):
            if isinstance(found, VideoError):
                warn(f"video {name} left out: {found}")
                failures.append(ClipFailure(name, found.reason, str(found)))
            elif not np.isfinite(found).all():
                warn(f"video {name} left out: the network's tokens of it are not finite numbers")
                failures.append(ClipFailure(name, NON_FINITE, "the network's output is not finite"))
            else:
                segmentation.write_features(out, name, found)
            meter.advance(1)
    return failures
