"""Numbered pictures in a folder, read as a video.

A `.frames` file stands for such a video wherever a video's path may stand. It is a JSON object:

    {"folder": "/data/frames_open/ThEnUZ/exo_r", "fps": 30, "rotation": 270, "first": 1}

`folder`: absolute, or from the file's own folder, which is the default. `fps`: pictures per second. `rotation`: degrees
counter-clockwise that set the pictures upright (0, 90, 180, 270; default 0). `first`: the number of the picture shown
at time 0; by default the smallest there is.

Pictures are JPEG or PNG, named alike but for their number (`frame_0000000001.jpg`). Frame i is the picture of number
`first + i`: a hole between the pictures shifts nothing, and only a clip that wants a picture in it fails. An
orientation in the pictures' EXIF data is not applied.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .video_info import Reason, StrPath, VideoError, VideoInfo, check_file
from .video_source import check_indices

SUFFIX = ".frames"

_NAME = re.compile(r"(|[^.].*?)(\d{1,15})(\.(?:jpe?g|png))", re.IGNORECASE)
_FIELDS = {"folder", "fps", "rotation", "first"}
_TURNS = (0, 90, 180, 270)
_FASTEST = 1000.0
_FORMATS = ["JPEG", "PNG"]
_KEPT = 128  # folders whose names are remembered: about 80 KB for a folder of 10,000 pictures


def is_frames(path: StrPath | None) -> bool:
    """Whether a path names a `.frames` file; the suffix alone decides."""
    return path is not None and os.fspath(path).lower().endswith(SUFFIX)


@dataclass(frozen=True)
class FramesFile:
    """What a `.frames` file says; `folder` is absolute, `first` None where the file leaves it open."""

    folder: Path
    fps: float
    rotation: int
    first: int | None

    def changed_ns(self, path: StrPath) -> int:
        """When the file or its folder was last changed: what is in the pictures does not count."""
        return max(os.stat(path).st_mtime_ns, os.stat(self.folder).st_mtime_ns)  # noqa: PTH116


def read_frames_file(path: StrPath) -> FramesFile:
    """Read a `.frames` file; its folder is not looked at.

    Raises `VideoError`: missing, or unreadable where the file is not as the module says. An `OSError` of the machine
    passes.
    """
    check_file(path)
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise VideoError("unreadable", path, f"no JSON: {error}") from None
    if not isinstance(content, dict) or not content.keys() <= _FIELDS:
        raise VideoError("unreadable", path, f"a .frames file is a JSON object of {', '.join(sorted(_FIELDS))} only")
    fps, rotation, first = content.get("fps"), content.get("rotation", 0), content.get("first")
    folder = content.get("folder", ".")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= _FASTEST:
        raise VideoError("unreadable", path, f"fps is {fps!r}, not pictures per second; state it: nothing else does")
    if rotation not in _TURNS or isinstance(rotation, bool):
        raise VideoError("unreadable", path, f"rotation is {rotation!r}, not one of 0, 90, 180, 270")
    if not isinstance(folder, str) or (first is not None and (type(first) is not int or first < 0)):
        raise VideoError("unreadable", path, f"folder is {folder!r} and first {first!r}, not a text and a whole number")
    return FramesFile(Path(path).absolute().parent / folder, float(fps), int(rotation), first)


@dataclass(frozen=True, eq=False)
class FrameFolder:
    """The pictures of a `.frames` file: `numbers` int64 [n], ascending, of those that are there; names around them."""

    file: FramesFile
    numbers: npt.NDArray[np.int64]
    first: int
    prefix: str
    width: int
    suffix: str

    def picture(self, number: int) -> Path:
        """Where the picture of a number lies, or would lie."""
        return self.file.folder / f"{self.prefix}{number:0{self.width}d}{self.suffix}"

    def name(self, index: int) -> str:
        """The name of frame `index`'s picture."""
        return self.picture(self.first + index).name

    @property
    def frame_count(self) -> int:
        """Frames from the first to the last picture, holes counted."""
        return int(self.numbers[-1]) - self.first + 1

    @property
    def holes(self) -> int:
        """Frames that have no picture."""
        return self.frame_count - int((self.numbers >= self.first).sum())


def open_folder(path: StrPath) -> FrameFolder:
    """List the pictures of a `.frames` file; remembered until the file or the folder changes.

    Raises `VideoError`: missing (the file or its folder), no_video (no numbered pictures), unreadable (another file
    than the module says, or pictures that are not named alike).
    """
    file = read_frames_file(path)
    try:
        changed = file.changed_ns(path)
        return _listed(os.fspath(path), file, changed)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing", path, f"no folder {file.folder}") from None
    except PermissionError:
        raise VideoError("unreadable", path, f"no permission to read the folder {file.folder}") from None


@lru_cache(maxsize=_KEPT)
def _listed(path: str, file: FramesFile, _changed_ns: int) -> FrameFolder:
    found = [match for name in os.listdir(file.folder) if (match := _NAME.fullmatch(name))]  # noqa: PTH208
    if not found:
        raise VideoError("no_video", path, f"no numbered JPEG or PNG pictures in {file.folder}")
    numbers = np.array(sorted(int(match[2]) for match in found), dtype=np.int64)
    digits = [len(match[2]) for match in found]
    around = {(match[1], match[3]) for match in found}
    padded = any(match[2].startswith("0") and len(match[2]) > 1 for match in found)
    prefix, suffix = min(around)
    folder = FrameFolder(
        file,
        numbers,
        int(numbers[0]) if file.first is None else file.first,
        prefix,
        min(digits) if padded else 1,
        suffix,
    )
    if {folder.picture(int(number)).name for number in numbers} != {match[0] for match in found}:
        names = ", ".join(sorted(match[0] for match in found)[:3])
        raise VideoError("unreadable", path, f"pictures in {file.folder} are not all named alike ({names}, …)")
    if numbers[-1] < folder.first:
        raise VideoError("truncated", path, f"the last picture in {file.folder} comes before first: {file.first}")
    return folder


class FramesVideo:
    """A `Video` out of numbered pictures: every frame is read by itself, in any order."""

    def __init__(self, path: StrPath) -> None:
        self._folder = open_folder(path)
        self.info: VideoInfo = _info(os.fspath(path), self._folder)

    def frames(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Frames by number (any order, repeats allowed): uint8 [n, H, W, 3], RGB, upright.

        Raises `VideoError` (truncated: no such picture, or one that is cut short; unreadable) and, for a number
        outside the video, `UsageError`.
        """
        unique, where = np.unique(check_indices(indices, self.info), return_inverse=True)
        pictures = np.empty((len(unique), self.info.height, self.info.width, 3), dtype=np.uint8)
        self.each(unique, pictures.__setitem__)
        return pictures[where]

    def each(self, unique: npt.NDArray[np.int64], keep: Callable[[int, npt.NDArray[np.uint8]], None]) -> None:
        """Call `keep(place, picture)` once for each of the sorted, distinct frames `unique`, one in memory at a time.

        Raises as `frames` does.
        """
        for place, index in enumerate(check_indices(unique, self.info).tolist()):
            picture = _read(self.info.path, self._folder, index)
            if picture.shape[:2] != (self.info.height, self.info.width):
                shape = f"{picture.shape[1]} x {picture.shape[0]}, not {self.info.width} x {self.info.height}"
                raise VideoError("unreadable", self.info.path, f"{self._folder.name(index)} is {shape} upright")
            keep(place, picture)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def __enter__(self) -> FramesVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@lru_cache(maxsize=_KEPT)
def _info(path: str, folder: FrameFolder) -> VideoInfo:
    first = int(folder.numbers[np.searchsorted(folder.numbers, folder.first)]) - folder.first
    height, width = _read(path, folder, first).shape[:2]
    return VideoInfo(
        path=path,
        frame_count=folder.frame_count,
        times=np.arange(folder.frame_count) / folder.file.fps,
        fps=folder.file.fps,
        width=width,
        height=height,
        rotation=folder.file.rotation,
        codec="png" if folder.suffix.lower() == ".png" else "mjpeg",
        has_duration=True,
    )


def _read(path: str, folder: FrameFolder, index: int) -> npt.NDArray[np.uint8]:
    """The picture of one frame, uint8 [H, W, 3], upright."""
    file = folder.picture(folder.first + index)
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("truncated", path, f"frame {index} has no picture: {file} is not there") from None
    except PermissionError:
        raise VideoError("unreadable", path, f"no permission to read {file}") from None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            picture = np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow makes of damaged bytes: there is no disk behind them any more
        reason: Reason = "truncated" if _ends_early(data) else "unreadable"
        raise VideoError(reason, path, f"{file.name}: {error}") from error
    return np.rot90(picture, folder.file.rotation // 90)


def _ends_early(data: bytes) -> bool:
    """Whether there is nothing, or a JPEG or PNG picture without its end."""
    ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
    end = ends.get(data[:2])
    return not data or (end is not None and end not in data[-32:])
