"""An opened video file: container, stream, frame table and `VideoInfo`; shared by both decoders."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.error import EOFError as AVEOFError
from av.error import FFmpegError

from ..errors import UsageError
from .sampling import WINDOW_FPS
from .video_info import StrPath, VideoError, VideoInfo, check_file, refuse
from .video_table import FrameTable, scan, seconds, unordered

LIBRARY_ERRORS = (FFmpegError, MemoryError)

_NO_PRESENTATION_TIMES = {"avi"}
_CUT_SLACK_S = 1.0
_RATE_SLACK = 0.1


class Video(Protocol):
    """A video opened by one of the decoders; a context manager, closed at its end."""

    @property
    def info(self) -> VideoInfo:
        """Frames and shape, known without decoding the video."""

    def frames(self, indices: Any) -> npt.NDArray[np.uint8]:
        """Frames by number (any order, repeats allowed): uint8 [n, H, W, 3], RGB, upright.

        Raises `VideoError` if any of them does not decode whole, `UsageError` for a number outside the video.
        """

    def close(self) -> None:
        """Release the file and the decoder; closing twice is harmless."""

    def __enter__(self) -> Video: ...

    def __exit__(self, *exception: object) -> None: ...


class _Scans:
    """What scans found, for files as they are now: long videos are opened again for every segment of them.

    Bounded by the number of frames in all tables; the oldest go first. Safe for threads.
    """

    def __init__(self, most_frames: int = 1_000_000) -> None:
        self._most, self._frames = most_frames, 0
        self._found: OrderedDict[tuple[str, int, int, int], tuple[FrameTable, VideoInfo]] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def key(path: str) -> tuple[str, int, int, int]:
        status = os.stat(path)  # noqa: PTH116
        return path, status.st_ino, status.st_mtime_ns, status.st_size

    def get(self, path: str) -> tuple[FrameTable, VideoInfo] | None:
        key = self.key(path)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: tuple[str, int, int, int], table: FrameTable, info: VideoInfo) -> None:
        with self._lock:
            if key not in self._found:
                self._found[key] = table, info
                self._frames += len(table)
            while self._frames > self._most and len(self._found) > 1:
                _, (old, _) = self._found.popitem(last=False)
                self._frames -= len(old)


_SCANS = _Scans()


class Source:
    """An open container with its one video stream, and what a scan of its packets says.

    Raises `VideoError` if the file cannot be used; an `OSError` of the machine passes.
    """

    def __init__(self, path: StrPath) -> None:
        check_file(path)
        self.path = os.fspath(path)
        self.container: Any = None
        self.reopen()
        try:
            self._picture: Any = None
            self.table, self.info = _SCANS.get(self.path) or self._scanned()
        except BaseException:
            self.close()
            raise

    def reopen(self) -> None:
        """(Re)start at the beginning of the file, with a fresh decoder of one thread."""
        self.close()
        try:
            # An absolute path cannot be taken for the name of a protocol ("a:b.mp4").
            self.container = av.open(os.path.abspath(self.path), metadata_errors="replace")  # noqa: PTH100
        except LIBRARY_ERRORS as error:
            raise refuse(self.path, error, "opening") from error
        self.stream = self._choose_stream()
        self.stream.codec_context.thread_count = 1

    def close(self) -> None:
        """Close the container; harmless when closed."""
        if self.container is not None:
            self.container.close()
            self.container = None

    def packets(self) -> Iterator[Any]:
        """Packets of the stream from where the container stands; `VideoError` if the container breaks off."""
        try:
            for packet in self.container.demux(self.stream):
                if packet.size:
                    yield packet
        except AVEOFError:
            return
        except LIBRARY_ERRORS as error:
            raise refuse(self.path, error, "reading") from error

    def _choose_stream(self) -> Any:
        if not len(self.container.streams):
            raise VideoError("truncated", self.path, "its index names no stream; cut short?")
        stream = self.container.streams.best("video")
        if stream is None or av.stream.Disposition.attached_pic in stream.disposition:
            raise VideoError("no_video", self.path, "no video stream")
        if stream.codec_context is None:
            raise VideoError("unreadable", self.path, "no decoder for its video stream")
        return stream

    def _packets_and_picture(self) -> Iterator[Any]:
        """All packets; on the way the first key frame is decoded, since pictures alone tell the rotation."""
        tried = False
        for packet in self.packets():
            if packet.is_keyframe and not tried:
                tried = True
                if packet.has_sidedata("encryption_info"):  # what it decodes to need not look like an error
                    raise VideoError("unreadable", self.path, "it is encrypted")
                with suppress(FFmpegError):
                    self._picture = next(iter([*packet.decode(), *self.stream.decode(None)]), None)
            yield packet

    def _first_picture(self) -> Any:
        """The first picture of plain decoding, for streams whose first key frame does not decode alone."""
        self.reopen()
        try:
            for packet in self.packets():
                for picture in packet.decode():
                    return picture
            pictures = self.stream.decode(None)
        except LIBRARY_ERRORS as error:
            raise refuse(self.path, error, "decoding the first picture") from error
        if not pictures:
            raise VideoError("unreadable", self.path, "its video stream holds no picture that decodes")
        return pictures[0]

    def _scanned(self) -> tuple[FrameTable, VideoInfo]:
        key = _Scans.key(self.path)
        table = self._scan()
        info = self._describe(self._picture or self._first_picture(), table)
        _SCANS.put(key, table, info)
        return table, info

    def _scan(self) -> FrameTable:
        context = self.stream.codec_context
        table = scan(self._packets_and_picture(), context.codec.canonical_name, context.extradata)
        if table.cut:
            raise VideoError("truncated", self.path, f"the file ends in the middle of a frame, after {len(table)}")
        if not table.ordered or self.container.format.name in _NO_PRESENTATION_TIMES:
            self.reopen()
            table = unordered(self._count_pictures())
        if not len(table):
            raise VideoError("truncated", self.path, "its video stream shows no frame")
        self._check_end(table)
        return table

    def _count_pictures(self) -> int:
        try:
            return sum(1 for _ in self.container.decode(self.stream))
        except LIBRARY_ERRORS as error:
            raise refuse(self.path, error, "decoding, to count the frames,") from error

    def _check_end(self, table: FrameTable) -> None:
        """Matroska says where the stream should end, and breaks off without an error if cut."""
        if not table.ordered or not self.container.format.name.startswith("matroska"):
            return
        stated = _stated_seconds(self.stream.metadata.get("DURATION"))
        if stated == 0 and len(self.container.streams) == 1 and self.container.duration:
            stated = self.container.duration / 1e6
        end = float(table.pts[-1] * self.stream.time_base)
        if stated - end > _CUT_SLACK_S + 1 / self._rate(table):
            raise VideoError(
                "truncated", self.path, f"ends at {end:.2f} s of {stated:.2f} s, after {len(table)} frames"
            )

    def _rate(self, table: FrameTable) -> float:
        """Average frames per second: the header's, unless the frames' own times differ by more than a tenth."""
        header = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        if table.ordered and len(table) > 1:
            own = float((len(table) - 1) / ((table.pts[-1] - table.pts[0]) * self.stream.time_base))
            if abs(own - header) > _RATE_SLACK * own:
                return own
        return header if header > 0 else float(WINDOW_FPS)

    def _describe(self, picture: Any, table: FrameTable) -> VideoInfo:
        fps, stream = self._rate(table), self.stream
        rotation = quarter_turns(picture) * 90
        size = (picture.width, picture.height) if rotation % 180 == 0 else (picture.height, picture.width)
        return VideoInfo(
            path=self.path,
            frame_count=len(table),
            times=seconds(table, stream.time_base) if table.ordered else np.arange(len(table)) / fps,
            fps=fps,
            width=size[0],
            height=size[1],
            rotation=rotation,
            codec=stream.codec_context.codec.canonical_name,
            has_duration=stream.duration is not None,
        )


def _stated_seconds(text: str | None) -> float:
    """Seconds of a tag "hours:minutes:seconds"; 0 if there is none that can be read."""
    try:
        hours, minutes, rest = (float(part) for part in (text or "").split(":"))
    except ValueError:
        return 0.0
    return hours * 3600 + minutes * 60 + rest


def quarter_turns(picture: Any) -> int:
    """Quarter turns counter-clockwise that set a decoded picture (`av.VideoFrame`) upright: 0..3."""
    turns: int = round(picture.rotation / 90)
    return turns % 4


def check_indices(indices: Any, info: VideoInfo) -> npt.NDArray[np.int64]:
    """Frame numbers as int64 [n]; `UsageError` if one is outside the video."""
    wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
    outside = wanted[(wanted < 0) | (wanted >= info.frame_count)]
    if len(outside):
        raise UsageError(f"{info.path}: no frame {outside[0]}; it has frames 0..{info.frame_count - 1}")
    return wanted
