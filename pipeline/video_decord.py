"""Decoding with decord (the `decord2` distribution), in the frame numbers of the table that both decoders share.

decord's random access is right where every group of pictures decodes by itself. In open groups, after an edit list
and where a gradual refresh is marked as a key frame it returns neighbours of the frames asked for, so such files are
read from their beginning, picture by picture. A single damaged picture may come back as a copy of its neighbour,
which decord does not tell; PyAV refuses it. MPEG-TS, raw streams and videos upside down it cannot read right at
all; they are refused. A reader decodes ahead while it lives: one per call, deleted at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .video_info import StrPath, VideoError, VideoInfo, refuse
from .video_source import Source, check_indices

_RIGHT_CONTAINERS = ("mov,", "matroska,", "avi")
_AT_ONCE = 64
_NO_RECOVERY = 1e-6
"""Share of frames that decord may replace by copies of others before it raises."""


def import_decord() -> Any:
    """The decord module; `UsageError` if it is not installed. torch goes first: the other order can crash."""
    try:
        importlib.import_module("torch")
        return importlib.import_module("decord")
    except ImportError as error:
        raise UsageError("the decord backend needs the package decord2: pip install decord2") from error


class DecordVideo:
    """A `Video` decoded by decord. Raises `VideoError` also for files that only PyAV reads right."""

    def __init__(self, path: StrPath) -> None:
        self._decord = import_decord()
        source = Source(path)
        try:
            self.info: VideoInfo = source.info
            self._random_access = source.table.closed
            right = source.container.format.name.startswith(_RIGHT_CONTAINERS) and self.info.rotation != 180
        finally:
            source.close()
        if not right:
            advice = "decord reads the wrong frames of such a file (container or rotation); use the pyav backend"
            raise VideoError("unreadable", path, advice)

    def frames(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Frames by number (any order, repeats allowed): uint8 [n, H, W, 3], RGB, upright.

        Raises `VideoError` if any of them does not decode, `UsageError` for a number outside the video.
        """
        info = self.info
        wanted = check_indices(indices, info)
        unique, where = np.unique(wanted, return_inverse=True)
        if not len(unique):
            return np.empty((0, info.height, info.width, 3), dtype=np.uint8)
        try:
            pictures = self._read(unique)
        except (self._decord.DECORDError, RuntimeError, StopIteration, AssertionError) as error:
            raise refuse(info.path, error, "decoding with decord") from error
        if pictures.shape[1:] != (info.height, info.width, 3):
            raise VideoError("unreadable", info.path, f"decord gives frames of {pictures.shape[1:3]}; use pyav")
        return pictures if np.array_equal(unique, wanted) else pictures[where]

    def each(self, unique: npt.NDArray[np.int64], keep: Callable[[int, npt.NDArray[np.uint8]], None]) -> None:
        """Call `keep(place, picture)` once for each of the sorted, distinct frames `unique`, a few in memory at a time.

        Raises as `frames` does.
        """
        few = len(unique) if not self._random_access else _AT_ONCE  # one pass where every call starts at the beginning
        for start in range(0, len(unique), max(few, 1)):
            for place, picture in enumerate(self.frames(unique[start : start + few]), start):
                keep(place, picture)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def __enter__(self) -> DecordVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, unique: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        decord = self._decord
        reader = decord.VideoReader(self.info.path, ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_RECOVERY)
        try:
            if self._random_access and len(reader) == self.info.frame_count:
                return np.asarray(reader.get_batch(unique.tolist()).asnumpy())
            return self._read_through(reader, unique)
        finally:
            del reader

    def _read_through(self, reader: Any, unique: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """One picture after the other from the beginning; `skip_frames` would seek, and miss."""
        pictures, wanted = [], set(unique.tolist())
        for number in range(int(unique[-1]) + 1):
            picture = reader.next()
            if number in wanted:
                pictures.append(picture.asnumpy())
        return np.stack(pictures)
