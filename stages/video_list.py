"""Which clips `uniego encode` takes: of a video, of all videos in a folder, or of a clip table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MissingInputError, UsageError
from ..pipeline.clips import Clip, read_clip_table
from ..pipeline.decode import DecodeJob
from ..pipeline.decoders import Decoders
from .encoder import lone_clip

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
"""Files of a folder that are taken for videos, in any case; a file that is named itself may be called anything."""

TABLES = (".csv", ".parquet", ".pq")

_SAME_TIME = 1e-6  # seconds


@dataclass(frozen=True)
class VideoList:
    """`source`: a video, a folder or a clip table. `every`: clips of so many seconds, one after another (None: a video
    is one clip). `root`: where the relative paths of a table start (None: at its folder)."""

    source: Path
    every: float | None = None
    root: Path | None = None

    def clips(self, backend: str = "pyav", workers: int = 0) -> list[Clip]:
        """The clips, in the order of the table, or of the paths. A row of a table that names a segment is cut within
        it. A video that cannot be opened stays one clip, so that it is reported with its reason.

        `workers`: processes that open the videos to be cut; 0: none. A clip of a table keeps its label's name in
        `extra["label"]`. Raises `MissingInputError` where there is nothing to take, `TableError` for a table that
        cannot be read, `UsageError` for options that mean nothing.
        """
        if self.every is not None and not (math.isfinite(self.every) and self.every > 0):
            raise UsageError(f"--every {self.every} is no length of time: give seconds above 0")
        if self.root is not None and not self.is_table:
            raise UsageError("--root belongs to a clip table")
        clips = self._whole()
        if self.every is None:
            return clips
        ends = _ends([clip.ego_path for clip in clips], backend, workers)
        return [part for clip in clips for part in _windows(clip, self.every, ends[clip.ego_path])]

    @property
    def is_table(self) -> bool:
        """Whether the source is a clip table."""
        return self.source.suffix.lower() in TABLES and not self.source.is_dir()

    def _whole(self) -> list[Clip]:
        if self.is_table:
            table = read_clip_table(self.source, root=self.root)
            return [replace(clip, extra={**clip.extra, "label": table.classes[clip.label]}) for clip in table.clips]
        if self.source.is_dir():
            paths = sorted(path for path in self.source.rglob("*") if _is_video(path))
            if not paths:
                raise MissingInputError(
                    f"no video in {self.source}: files ending in {', '.join(SUFFIXES)} are taken; for others, or a "
                    "choice of them, write a clip table"
                )
            return [lone_clip(path, path.relative_to(self.source).as_posix()) for path in paths]
        if not self.source.exists():
            raise MissingInputError(f"{self.source}: no such video, folder or clip table")
        return [lone_clip(self.source, self.source.name)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _ends(paths: Sequence[Path], backend: str, workers: int) -> dict[Path, float | None]:
    """When the last frame of each video is shown, seconds; None for one that cannot be opened."""
    files = list(dict.fromkeys(paths))
    with Decoders((DecodeJob(str(path), None, None, (), backend) for path in files), workers) as decoders:
        return {
            path: None if found.error is not None else found.last_s for path, found in zip(files, decoders, strict=True)
        }


def _windows(clip: Clip, every: float, last: float | None) -> Iterator[Clip]:
    """Clips of `every` seconds that hold all frames of a clip, of a video whose last frame is shown at `last`; the last
    clip may be shorter."""
    begin = clip.start_s or 0.0
    if last is None:
        yield clip
        return
    end = last + 2 * _SAME_TIME if clip.end_s is None else min(clip.end_s, last + 2 * _SAME_TIME)
    if end <= begin:
        yield clip
        return
    for number in range(max(1, math.ceil((end - begin) / every - _SAME_TIME))):
        start = begin + number * every
        stop = start + every if clip.end_s is None else min(start + every, clip.end_s)
        yield replace(clip, clip_id=f"{clip.clip_id}@{start:.3f}-{stop:.3f}", start_s=start, end_s=stop)
