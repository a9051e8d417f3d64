"""One interface over two decoders: which frames a video file has, and those frames as pictures.

A `.frames` file stands for a folder of numbered pictures (see `video_frames`), whichever decoder is chosen.

    with open_video(path) as video:
        first, end = segment(video.info, 2.0, 9.5)
        frames = video.frames(range(first, end, 10))

Both backends share one table of frames (see `video_table`): the same number is the same picture in either, but not
the same pixels, since their colour conversions differ. `backend_identity` belongs in whatever is cached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import metadata

import av
import numpy as np

from ..errors import UsageError
from .jpeg import codec_identity
from .sampling import window_indices
from .video_decord import DecordVideo, import_decord
from .video_frames import FramesVideo, is_frames
from .video_info import StrPath, VideoError, VideoInfo
from .video_pyav import PyAVVideo
from .video_source import Video

__all__ = [
    "BACKENDS",
    "Video",
    "VideoError",
    "VideoInfo",
    "backend_identity",
    "open_video",
    "segment",
    "window_indices",
]

BACKENDS = ("pyav", "decord")

_SAME_TIME = 1e-6
"""Seconds by which a bound may miss a frame's time and still mean that frame."""


def open_video(path: StrPath, backend: str = "pyav") -> Video:
    """Open a video file; use it as a context manager.

    Raises `VideoError` (missing, unreadable, no_video, truncated) if the file is at fault, `UsageError` for an
    unknown or uninstalled backend. An `OSError` of the machine (EIO, ESTALE, ETIMEDOUT, …) passes as it is.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown video backend {backend!r}; there are {', '.join(BACKENDS)}")
    if is_frames(path):
        return FramesVideo(path)
    return PyAVVideo(path) if backend == "pyav" else DecordVideo(path)


def segment(info: VideoInfo, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Frames first..end (exclusive) shown at a time in [start_s, end_s), seconds since the first shown frame.

    None: the video's begin or end. A segment between two frames gets the one nearest to its middle, so there is always
    at least one. Raises `VideoError` (truncated) if the segment starts after the video's end, `UsageError` if it
    is empty or lies before the begin.
    """
    last = float(info.times[-1]) + 1 / info.fps
    start, end = 0.0 if start_s is None else start_s, math.inf if end_s is None else end_s
    if not end > start or end <= 0:
        raise UsageError(f"{info.path}: the segment {start}..{end} s is empty or before the video's begin")
    if start >= last:
        raise VideoError(
            "truncated",
            info.path,
            f"the segment {start:g}..{end:g} s starts after its end at {last:.3f} s ({info.frame_count} frames)",
        )
    first, stop = (int(np.searchsorted(info.times, bound - _SAME_TIME)) for bound in (start, end))
    if stop > first:
        return first, stop
    nearest = int(np.abs(info.times - (start + min(end, last)) / 2).argmin())
    return nearest, nearest + 1


def backend_identity(backend: str, videos: Iterable[StrPath | None] = ()) -> dict[str, str]:
    """What decides a backend's pixels, for fingerprints: its name, version and those of its FFmpeg libraries.

    decord does not tell its FFmpeg's version; its own version stands for the copy it carries. The frame table is
    PyAV's in either case. Where a `.frames` file is among `videos`, Pillow's and its JPEG library's versions belong to
    it. Raises `UsageError` for an unknown or uninstalled backend.
    """
    pictures = {"pictures": " ".join(codec_identity().values())} if any(map(is_frames, videos)) else {}
    return _decoder_identity(backend) | pictures


def _decoder_identity(backend: str) -> dict[str, str]:
    libraries = {
        name: ".".join(str(number) for number in version)
        for name, version in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat", "libswscale")
    }
    if backend == "pyav":
        return {"backend": backend, "version": av.__version__, **libraries}
    if backend == "decord":
        module = import_decord()
        return {"backend": backend, "version": str(module.__version__), "distribution": _distribution()}
    raise UsageError(f"unknown video backend {backend!r}; there are {', '.join(BACKENDS)}")


def _distribution() -> str:
    """Name and version of the distribution that brings the module `decord`."""
    for name in ("decord2", "decord"):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
