"""Decoding with PyAV: one seek per group of pictures, and no picture decoded that nobody needs.

Wanted frames are grouped by the key frame that decoding must start from. Inside a group the decoder may drop
pictures that no other picture refers to; that is bit-identical where a dropped picture really leaves no trace, i.e.
in H.264, MPEG-2, MPEG-4 part 2, and HEVC without temporal layers. If a group does not decode whole (a seek that
missed, a gradual refresh taken for a key frame), the file is decoded plainly from its beginning, and only what
fails there is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from .video_info import StrPath, VideoError, VideoInfo, refuse
from .video_source import LIBRARY_ERRORS, Source, check_indices, quarter_turns
from .video_table import FrameTable, Run, plan_runs

_DROPPABLE = {"h264", "hevc", "mpeg2video", "mpeg4"}

Pictures = npt.NDArray[np.uint8]


class _Broken(Exception):
    """A stretch of packets that did not decode whole."""


class PyAVVideo:
    """A `Video` decoded by PyAV. `skip=False` decodes every picture of a group; `seek=False` all from the beginning."""

    def __init__(self, path: StrPath, *, skip: bool = True, seek: bool = True) -> None:
        self._source = Source(path)
        table = self._source.table
        self._skip = skip and self.info.codec in _DROPPABLE and not table.layered
        self._seek = seek and table.ordered

    @property
    def info(self) -> VideoInfo:
        """Frames and shape, known without decoding the video."""
        return self._source.info

    def frames(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pictures:
        """Frames by number (any order, repeats allowed): uint8 [n, H, W, 3], RGB, upright.

        Raises `VideoError` (unreadable, truncated) if any of them does not decode whole, `UsageError` for a number
        outside the video.
        """
        wanted = check_indices(indices, self.info)
        unique, where = np.unique(wanted, return_inverse=True)
        sink = _Sink(self.info, self._source.table, unique)
        if not self._seek or not self._fast(sink):
            sink = _Sink(self.info, self._source.table, unique)  # what a broken stretch gave may lean on damage
            self._plain(sink)
        sink.check()
        return sink.pictures if np.array_equal(unique, wanted) else sink.pictures[where]

    def close(self) -> None:
        """Release the file and the decoder."""
        self._source.close()

    def __enter__(self) -> PyAVVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fast(self, sink: _Sink) -> bool:
        """Decode group by group; False if any group did not decode whole."""
        try:
            for run in sink.runs:
                for picture in self._run(run, sink):
                    sink.take(picture, run)
        except (_Broken, FFmpegError):
            return False
        return sink.complete

    def _run(self, run: Run, sink: _Sink) -> Iterator[Any]:
        """Decoded pictures of one stretch; the decoder is drained at its end, not fed beyond it."""
        stream, context = self._source.stream, self._source.stream.codec_context
        for place, packet in enumerate(self._packets_from(run.start), run.start):
            if self._skip:
                context.skip_frame = "DEFAULT" if packet.pts in sink.rows else "NONREF"
            yield from packet.decode()
            if place == run.end:
                break
        yield from stream.decode(None)

    def _packets_from(self, start: int) -> Iterator[Any]:
        """Packets from the key frame at place `start`; `_Broken` if no seek finds it.

        Some containers seek by pts and some by dts. A seek that lands early costs only reading.
        """
        source = self._source
        pts, earlier = source.table.seek[start]
        for target in dict.fromkeys((pts, earlier)):
            source.container.seek(target, stream=source.stream)
            packets = source.packets()
            for packet in packets:
                if packet.pts == pts:
                    yield packet
                    yield from packets
                    return
                if packet.dts is not None and packet.dts > earlier:
                    break
        raise _Broken(f"no seek finds the key frame at time stamp {pts}")

    def _plain(self, sink: _Sink) -> None:
        """Decode everything from the beginning until the last wanted frame, and look at what is still in the decoder:

        the wanted frame may lean on pictures that are shown after it.
        """
        source = self._source
        source.reopen()
        number = 0
        for place, packet in enumerate(source.packets()):
            for picture in self._decode(packet, place, sink):
                self._take(picture, number, sink)
                number += 1
            if sink.complete:
                break
        try:
            for picture in source.stream.decode(None):
                self._take(picture, number, sink)
                number += 1
        except LIBRARY_ERRORS as error:
            if not sink.complete:
                raise refuse(source.path, error, "decoding the last pictures") from error

    def _decode(self, packet: Any, place: int, sink: _Sink) -> Sequence[Any]:
        try:
            return list(packet.decode())
        except LIBRARY_ERRORS as error:
            if any(run.start <= place <= run.end for run in sink.runs):
                raise refuse(self._source.path, error, f"decoding picture {place}") from error
            return []

    def _take(self, picture: Any, number: int, sink: _Sink) -> None:
        time = picture.pts if self._source.table.ordered else number
        try:
            for run in sink.runs:
                sink.take(picture, run, time)
        except _Broken as error:
            raise VideoError("unreadable", self._source.path, str(error)) from None


class _Sink:
    """Receives decoded pictures, keeps the wanted ones as upright RGB: `pictures` uint8 [n, H, W, 3]."""

    def __init__(self, info: VideoInfo, table: FrameTable, unique: npt.NDArray[np.int64]) -> None:
        self.runs = plan_runs(table, unique.tolist())
        self.rows = {int(table.pts[frame]): row for row, frame in enumerate(unique)}
        self.pictures: Pictures = np.empty((len(unique), info.height, info.width, 3), dtype=np.uint8)
        self._info, self._table, self._unique = info, table, unique
        self._missing = set(self.rows)
        self._reformatter = VideoReformatter()

    @property
    def complete(self) -> bool:
        """Whether every wanted frame is there."""
        return not self._missing

    def take(self, picture: Any, run: Run, time: int | None = None) -> None:
        """Keep the picture if wanted; `_Broken` if it is damaged and its stretch may lean on it."""
        pts = picture.pts if time is None else time
        if picture.is_corrupt and self._matters(pts, run):
            raise _Broken(f"the picture at time stamp {pts} is damaged")
        if pts in self._missing:
            self._store(picture, self.rows[pts])
            self._missing.discard(pts)

    def check(self) -> None:
        """`VideoError` if a wanted frame never came."""
        if self._missing:
            frame = int(self._unique[min(self.rows[pts] for pts in self._missing)])
            raise VideoError(
                "truncated",
                self._info.path,
                f"{len(self._missing)} of {len(self.rows)} frames asked for do not decode; the first is frame "
                f"{frame} of {self._info.frame_count}, at {self._info.times[frame]:.3f} s",
            )

    def _matters(self, pts: int | None, run: Run) -> bool:
        """Whether a damaged picture belongs to the stretch; pictures before its key frame do not."""
        if pts is None:
            return True
        at = int(np.searchsorted(self._table.pts, pts))
        if at == len(self._table) or self._table.pts[at] != pts:
            return False
        return bool(run.start <= self._table.start[at] and self._table.place[at] <= run.end)

    def _store(self, picture: Any, row: int) -> None:
        turns, info = quarter_turns(picture), self._info
        if turns * 90 != info.rotation:
            raise VideoError("unreadable", info.path, "its frames are not all rotated alike")
        size = (info.width, info.height) if turns % 2 == 0 else (info.height, info.width)
        rgb = self._reformatter.reformat(picture, width=size[0], height=size[1], format="rgb24")
        self.pictures[row] = np.rot90(rgb.to_ndarray(), turns)
