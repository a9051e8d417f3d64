"""Clips as tensors: which frames, which crop, and micro-batches of them in the order of training.

Everything random comes from (seed, epoch, clip), so workers may decode in any order.
"""

from __future__ import annotations

import multiprocessing
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UsageError
from ..pipeline import sampling
from ..pipeline.augment import draw_train, test_clip, train_clip
from ..pipeline.clips import Clip, View
from ..pipeline.config import RunConfig, StudentConfig
from ..pipeline.decode import ClipLook, Decoded, DecodeJob
from ..pipeline.poses import PoseError
from ..pipeline.randomness import clip_stream, order
from ..pipeline.signals import ignore_in_child
from ..pipeline.video import VideoError, open_video, segment


class ClipFailure(NamedTuple):
    """A clip that could not be read: it is reported and left out, never replaced."""

    clip_id: str
    reason: str
    message: str


class Sample(NamedTuple):
    """One clip: its position in the list of clips, and what its reader gives (float32, see `ClipReader`)."""

    position: int
    video: Tensor


class Batch(NamedTuple):
    """A micro-batch. The tensors hold the clips that could be decoded; their number may be smaller than asked.

    rows: positions in the list of clips; indices int64 [b]: the same on the device; videos float32 [b, …] (skeletons
    where the network reads those); failures of the others.
    """

    rows: tuple[int, ...]
    indices: Tensor
    videos: Tensor
    failures: tuple[ClipFailure, ...]

    @classmethod
    def of(cls, rows: Sequence[int], videos: Tensor, failures: Sequence[ClipFailure] = ()) -> Batch:
        """A batch of the clips at `rows`."""
        return cls(tuple(rows), torch.tensor(rows, dtype=torch.int64), videos, tuple(failures))

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        indices, videos = (tensor.to(device, non_blocking=True) for tensor in (self.indices, self.videos))
        return self._replace(indices=indices, videos=videos)


class Protocol(NamedTuple):
    """How a clip is looked at without augmentation: temporal views, and 1 or 3 crops of each."""

    views: int
    crops: int


SINGLE = Protocol(views=1, crops=1)


class Reader(typing.Protocol):
    """Reads a clip the way a network sees it, float32. Picklable; raises `VideoError` or `PoseError`."""

    def train(self, clip: Clip, epoch: int) -> Tensor:
        """One augmented look, a function of (seed, epoch, clip)."""

    def test(self, clip: Clip, protocol: Protocol = SINGLE) -> Tensor:
        """All looks of the protocol, stacked: [views * crops, …]."""


@dataclass(frozen=True)
class ClipReader:
    """Reads one view of a clip the way the student and the proxies see the ego view. Picklable."""

    num_frames: int
    image_size: int
    policy: str
    rate: int
    short_side: tuple[int, int]
    flip: float
    mean: float
    std: float
    single_short_side: int
    backend: str
    seed: int
    view: View = "ego"

    @classmethod
    def from_config(cls, config: RunConfig, view: View = "ego", network: StudentConfig | None = None) -> ClipReader:
        """The reader of a run for a network (None: the student); short sides keep their ratio to its image size."""
        network = network or config.student
        low, high, single = (
            round(side * network.image_size / config.student.image_size)
            for side in (*config.augment.short_side, config.evaluate.single_short_side)
        )
        return cls(
            num_frames=network.num_frames,
            image_size=network.image_size,
            policy=config.sampling.policy,
            rate=config.sampling.rate,
            short_side=(low, high),
            flip=config.augment.flip,
            mean=config.augment.mean,
            std=config.augment.std,
            single_short_side=single,
            backend=config.video.backend,
            seed=config.seed,
            view=view,
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ClipReader:
        """The reader that `dataclasses.asdict` stored."""
        low, high = stored["short_side"]
        return cls(**{**stored, "short_side": (low, high)})

    def train(self, clip: Clip, epoch: int) -> Tensor:
        """One augmented view, float32 [3, T, S, S]. Raises `VideoError`."""
        rng = clip_stream(self.seed, epoch, clip.clip_id, "augment")
        start, phase = rng.random(2)
        draw = draw_train(rng, self.flip)
        frames = self.frames(clip, [(float(start), float(phase))])[0]
        return train_clip(frames, draw, short_side=self.short_side, size=self.image_size, mean=self.mean, std=self.std)

    def test(self, clip: Clip, protocol: Protocol = SINGLE) -> Tensor:
        """All views and crops of the protocol, float32 [views * crops, 3, T, S, S]. Raises `VideoError`."""
        return self._looks(self.frames(clip, self._positions(protocol)), protocol)

    def job(self, clip: Clip, protocol: Protocol = SINGLE) -> DecodeJob:
        """What a decoder process has to do for `looks`. Raises `UsageError` for a clip without this view's video."""
        look = ClipLook(self._views(self._positions(protocol)))
        return DecodeJob(str(self._path(clip)), clip.start_s, clip.end_s, (), self.backend, look)

    def looks(self, decoded: Decoded, protocol: Protocol = SINGLE) -> Tensor:
        """What `test` gives, out of what the clip's job gave. Raises `VideoError`."""
        if decoded.error is not None:
            raise decoded.error
        assert decoded.frames is not None
        assert decoded.numbers is not None
        assert decoded.rows is not None
        return self._looks(arranged(decoded.frames, np.searchsorted(decoded.numbers, decoded.rows)), protocol)

    def test_frames(self, video: npt.NDArray[np.uint8], fps: float, protocol: Protocol = SINGLE) -> Tensor:
        """The same of a clip given as its frames uint8 [T, H, W, 3], RGB, at `fps` frames per second."""
        wanted, rows = self._wanted(len(video), fps, True, self._positions(protocol))
        return self._looks(arranged(video[wanted], rows), protocol)

    def _positions(self, protocol: Protocol) -> list[tuple[float, float]]:
        """(start, phase) of the views."""
        return [(self._test_start(view, protocol.views), 0.5) for view in range(protocol.views)]

    def _looks(self, views: Sequence[npt.NDArray[np.uint8]], protocol: Protocol) -> Tensor:
        looks = [
            test_clip(
                frames,
                crop=crop,
                crops=protocol.crops,
                size=self.image_size,
                single_short_side=self.single_short_side,
                mean=self.mean,
                std=self.std,
            )
            for frames in views
            for crop in range(protocol.crops)
        ]
        return torch.stack(looks)

    def _test_start(self, view: int, views: int) -> float:
        return sampling.test_fraction(view, views) if self.policy == "window" else sampling.fit_fraction(view, views)

    def frames(self, clip: Clip, positions: Sequence[tuple[float, float]]) -> list[npt.NDArray[np.uint8]]:
        """Frames uint8 [T, H, W, 3] for every (start, phase), fractions in [0, 1]; one decoding pass for all."""
        with open_video(self._path(clip), self.backend) as video:
            info = video.info
            first, end = segment(info, clip.start_s, clip.end_s)
            wanted, rows = self._wanted(end - first, info.fps, info.has_duration, positions)
            frames = video.frames((wanted + first).tolist())
        return arranged(frames, rows)

    def _wanted(
        self, count: int, fps: float, has_duration: bool, positions: Sequence[tuple[float, float]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Frames of a clip of `count` that the positions ask for, each once, int64 [n]; and per position its T rows."""
        picks = self._views(positions).picks(count, fps, has_duration)
        wanted, where = np.unique(picks, return_inverse=True)
        return wanted, where.reshape(picks.shape)

    def _views(self, positions: Sequence[tuple[float, float]]) -> sampling.Views:
        return sampling.Views(self.policy, self.num_frames, self.rate, tuple(positions))

    def _path(self, clip: Clip) -> Path:
        path = clip.video(self.view)
        if path is None:
            raise UsageError(f"clip {clip.clip_id} names no {self.view} video: leave it out")
        return path


def arranged(frames: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.uint8]]:
    """`frames[row]` for each of the rows; what is in order already is not copied."""
    whole = np.arange(len(frames))
    return [frames if np.array_equal(row, whole) else frames[row] for row in rows]


class _Clips(Dataset[Sample | ClipFailure]):
    """Clips by (epoch, position); epoch -1 stands for the un-augmented protocol."""

    def __init__(self, reader: Reader, clips: Sequence[Clip], protocol: Protocol | None) -> None:
        self.reader, self.clips, self.protocol = reader, clips, protocol

    def __getitem__(self, key: tuple[int, int]) -> Sample | ClipFailure:
        epoch, index = key
        clip = self.clips[index]
        try:
            if self.protocol is None:
                return Sample(index, self.reader.train(clip, epoch))
            return Sample(index, self.reader.test(clip, self.protocol))
        except (VideoError, PoseError) as error:
            return ClipFailure(clip.clip_id, error.reason, str(error))


def collate(items: Sequence[Sample | ClipFailure]) -> Batch:
    """A micro-batch out of its clips."""
    samples = [item for item in items if isinstance(item, Sample)]
    failures = tuple(item for item in items if isinstance(item, ClipFailure))
    videos = torch.stack([s.video for s in samples]) if samples else torch.empty(0)
    return Batch.of([s.position for s in samples], videos, failures)


def training_order(
    clips: Sequence[Clip],
    *,
    seed: int,
    epochs: int,
    global_batch: int,
    micro_batch: int,
    start: tuple[int, int] = (0, 0),
    share: tuple[int, int] = (0, 1),
) -> Iterator[list[tuple[int, int]]]:
    """Micro-batches of (epoch, position) from optimiser step `start` = (epoch, step) on.

    An epoch is the clips in the order of (seed, epoch), cut into whole global batches; the rest is dropped.
    share: (r, W) gives of each step's micro-batches those numbered r, r + W, … which is none in a small step.
    """
    first, world = share
    ids = [clip.clip_id for clip in clips]
    steps = len(clips) // global_batch
    first_epoch, first_step = start
    for epoch in range(first_epoch, epochs):
        positions = order(seed, epoch, ids)
        begin = first_step * global_batch if epoch == first_epoch else 0
        for at in range(begin, steps * global_batch, micro_batch):
            if (at % global_batch) // micro_batch % world == first:
                yield [(epoch, int(index)) for index in positions[at : at + micro_batch]]


def protocol_order(count: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """All positions in the order of the table, `batch` at a time."""
    for at in range(0, count, batch):
        yield [(-1, index) for index in range(at, min(at + batch, count))]


def load(
    reader: Reader,
    clips: Sequence[Clip],
    batches: Iterable[list[tuple[int, int]]],
    *,
    protocol: Protocol | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Decode `batches` in their order. `protocol` None: training views; else un-augmented ones.

    With workers, a few batches are decoded ahead in processes of their own, which ignore stop signals.
    """
    options: dict[str, Any] = {}
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        options = {"multiprocessing_context": context, "worker_init_fn": _start_worker, "prefetch_factor": 2}
    loader: DataLoader[Sample | ClipFailure] = DataLoader(
        _Clips(reader, clips, protocol),
        batch_sampler=_Ordered(batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader's own draw for its workers must not touch the global stream
        **options,
    )
    yield from loader


class _Ordered:
    """Batches as a sampler: the loader asks for an iterator once."""

    def __init__(self, batches: Iterable[list[tuple[int, int]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def _start_worker(worker: int) -> None:
    ignore_in_child()
    torch.set_num_threads(1)
