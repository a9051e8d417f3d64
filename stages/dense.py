"""Dense features: one embedding per step of an untrimmed video, from a window that slides over it.

Step i stands for the time from i * step to (i + 1) * step seconds; its window lies around the middle of that. The
network's T frames are those shown at the centres of T equal parts of the window; before the begin and after the end of
the video its first and last frame are repeated. A frame that several windows of a stretch see is decoded and cropped
(the centre crop of the evaluation) once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import FingerprintMismatch, UniegoError, UsageError, fingerprint_difference
from ..models import TimeSformer
from ..pipeline import files, segmentation
from ..pipeline.augment import test_clip
from ..pipeline.progress import Meter, warn
from ..pipeline.signals import StopFlag
from ..pipeline.video import Video, VideoError, VideoInfo, open_video
from .batches import ClipFailure, ClipReader
from .encoder import Encoder
from .loop import autocast

_HELD = 1 << 28  # bytes of frames that wait for their windows
_BATCH = 16  # windows that go through the network together


@dataclass(frozen=True)
class Sliding:
    """A window of `window_s` seconds that moves by `step_s` seconds, or by `every` frames of the video.

    Raises `UsageError` unless one of the two is given, and all is positive.
    """

    window_s: float
    step_s: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        step = self.step_s if self.every is None else self.every
        if (self.step_s is None) == (self.every is None):
            raise UsageError("a sliding window moves by step_s seconds or by every so many frames: give one of them")
        if step is None or not (0 < self.window_s < math.inf and 0 < step < math.inf):
            raise UsageError(f"window ({self.window_s} s) and step ({step}) must be positive numbers")

    def seconds(self, info: VideoInfo) -> float:
        """Length of a step."""
        return self.step_s if self.step_s is not None else (self.every or 1) / info.fps

    def steps(self, info: VideoInfo) -> int:
        """How many features a video has: its length in steps, rounded up."""
        length = float(info.times[-1]) + 1 / info.fps
        return max(1, math.ceil(round(length / self.seconds(info), 6)))

    def picks(self, info: VideoInfo, frames: int) -> npt.NDArray[np.int64]:
        """Frames that each window looks at, int64 [steps, frames]."""
        middles = (np.arange(self.steps(info)) + 0.5) * self.seconds(info)
        parts = ((np.arange(frames) + 0.5) / frames - 0.5) * self.window_s
        shown = np.searchsorted(info.times, middles[:, None] + parts + 1e-6, side="right") - 1
        return np.clip(shown, 0, info.frame_count - 1).astype(np.int64)


@torch.inference_mode()
def dense_tokens(
    model: TimeSformer, reader: ClipReader, path: Path, sliding: Sliding, flag: StopFlag, *, precision: str = "fp32"
) -> npt.NDArray[np.float32]:
    """Tokens of a video's windows, float32 [steps, D]. `reader`: how the network sees frames.

    Decoded from front to back in stretches; at the border of two the decoder goes back to the last key frame. Memory
    is that of the frames of one stretch, at most 256 MB or those of one batch. Raises `VideoError` for a file that
    does not decode, `Stopped` when asked to stop, `UniegoError` for tokens that are not finite.
    """
    device = model.cls_token.device
    tokens: list[Tensor] = []
    with open_video(path, reader.backend) as video:
        picks = sliding.picks(video.info, reader.num_frames)
        frame_bytes = 12 * reader.image_size**2
        stretch = max(1, _HELD // (frame_bytes * reader.num_frames * _BATCH)) * _BATCH
        held: dict[int, Tensor] = {}
        for at in range(0, len(picks), _BATCH):
            flag.check()
            if at % stretch == 0:
                held = _stretch(video, reader, np.unique(picks[at : at + stretch]), held)
            windows = torch.stack([torch.stack([held[n] for n in row], 1) for row in picks[at : at + _BATCH].tolist()])
            with autocast(device, precision):
                tokens.append(model(windows.to(device)).token.float().cpu())
    joined: npt.NDArray[np.float32] = torch.cat(tokens).numpy()
    if not np.isfinite(joined).all():
        raise UniegoError(f"{path}: the network's tokens are not finite numbers: its training has failed")
    return joined


def _stretch(
    video: Video, reader: ClipReader, wanted: npt.NDArray[np.int64], held: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """The wanted frames as the network sees them, float32 [3, S, S] each; those already held are not decoded again."""
    fresh = np.array([n for n in wanted.tolist() if n not in held], dtype=np.int64)
    kept = {n: held[n] for n in wanted.tolist() if n in held}

    def keep(place: int, picture: npt.NDArray[np.uint8]) -> None:
        kept[int(fresh[place])] = test_clip(
            picture[None],
            size=reader.image_size,
            single_short_side=reader.single_short_side,
            mean=reader.mean,
            std=reader.std,
        )[:, 0]

    if len(fresh):
        video.each(fresh, keep)
    return kept


def write_dense(
    model: TimeSformer,
    reader: ClipReader,
    videos: Mapping[str, Path],
    out: Path,
    sliding: Sliding,
    flag: StopFlag,
    *,
    precision: str = "fp32",
) -> list[ClipFailure]:
    """Write OUT/features/<name>.npy, float32 [D, T], for every video that is not there yet, in their order.

    The network is on its device, in eval mode. Returns the videos that could not be decoded. The caller sees to it
    that what lies in `out` was made with the same network and settings (see `dense_fingerprint`).
    """
    failures: list[ClipFailure] = []
    there = sum(segmentation.features_path(out, name).exists() for name in videos)
    with Meter("dense features", len(videos), unit="videos", resumed=there) as meter:
        for name, path in videos.items():
            if segmentation.features_path(out, name).exists():
                continue
            try:
                tokens = dense_tokens(model, reader, path, sliding, flag, precision=precision)
                segmentation.write_features(out, name, tokens)
            except VideoError as error:
                warn(f"video {name} left out: {error}")
                failures.append(ClipFailure(name, error.reason, str(error)))
            meter.advance(1)
    return failures


def encode_dense(
    encoder: Encoder,
    videos: Mapping[str, Path],
    out: Path,
    sliding: Sliding,
    flag: StopFlag,
    *,
    precision: str = "fp32",
) -> list[ClipFailure]:
    """Dense features of videos by an encoder, into a folder of the user's: `write_dense`, and OUT/dense.json beside it.

    dense.json says what they were made with. Features of something else in `out` are not mixed with: raises
    `FingerprintMismatch`, or `UsageError` where nothing says what they are. The same call continues.
    """
    weights = tensors_hash(encoder.model.state_dict())
    wanted = json.loads(json.dumps(dense_fingerprint(weights, encoder.reader, sliding, precision)))
    note = out / "dense.json"
    if note.exists():
        different = fingerprint_difference(json.loads(note.read_text(encoding="utf-8")), wanted)
        if different:
            raise FingerprintMismatch(f"what is in {out}", different, "Name another folder for other features.")
    elif any((out / segmentation.FEATURES).glob("*.npy")):
        raise UsageError(f"{out / segmentation.FEATURES} holds features of unknown origin: name another folder")
    files.write_json(note, wanted)
    return write_dense(encoder.model, encoder.reader, videos, out, sliding, flag, precision=precision)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names and values of tensors."""
    parts = (f"{name} {files.hash_bytes(value.cpu().numpy().tobytes())}" for name, value in sorted(tensors.items()))
    return files.hash_bytes("\n".join(parts).encode())


def dense_fingerprint(weights: str, reader: ClipReader, sliding: Sliding, precision: str) -> dict[str, Any]:
    """What dense features depend on besides the videos; `weights`: the hash of the network's file."""
    return {"weights": weights, "input": asdict(reader), "precision": precision, **asdict(sliding)}
