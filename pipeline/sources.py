"""Which files a clip was made from: their paths as the table writes them, their sizes, and a sample of their bytes.

They are looked at when features are extracted and kept with the run, so that later stages need not reach the exo
videos and skeletons again, and data may move. A file that was replaced, or came to be there, makes its clips new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import files
from .clips import Clip
from .video_frames import is_frames, open_folder
from .video_info import VideoError

Seen = tuple[int, str, int]
"""What was seen of a file: its size in bytes, a hash of its sample, and when it was changed (nanoseconds).

Of a `.frames` file: the number of its pictures instead of bytes, and a hash that takes in samples of three of them.

The time only tells whether the sample must be taken again; it is no part of a clip's identity.
"""

Sources = Mapping[str, Seen | int | None]
"""Every file, by the path as the table writes it. None: there was no such file. An int, in records of before there
were samples: its size."""

_WHOLE = 1 << 20
_PIECE = 64 << 10
_JSON = json.JSONEncoder(sort_keys=True)
_READERS = 16  # network file systems answer slowly, but many at a time


def measure(clips: Sequence[Clip], known: Sources | None = None) -> dict[str, Seen | int | None]:
    """Look at all files that the clips name; those whose size and time are as `known` are not read again."""
    known = known or {}
    paths = {clip.sources[view]: path for clip in clips for view, path in _paths(clip)}
    with ThreadPoolExecutor(_READERS) as pool:
        seen = pool.map(lambda item: _look(item[1], known.get(item[0])), paths.items())
        return dict(sorted(zip(paths, seen, strict=True)))


def identity(clip: Clip, sources: Sources) -> str:
    """Hash of what a clip's features are made from: paths, sizes, samples, segment."""
    named = {view: [path, *_identifying(sources.get(path))] for view, path in clip.sources.items()}
    return files.hash_bytes(_JSON.encode([named, clip.start_s, clip.end_s]).encode())


def read_sources(path: Path) -> dict[str, Seen | int | None]:
    """What `measure` gave, as `write_json` kept it."""
    stored = json.loads(path.read_bytes())
    return {name: tuple(seen) if isinstance(seen, list) else seen for name, seen in stored.items()}


def sample(path: files.StrPath, size: int) -> str:
    """Hash of a file's size and of 64 KiB from its start, middle and end; of all of it up to 1 MiB. Raises OSError."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with Path(path).open("rb", buffering=0) as file:
        pieces = (0, size // 2, size - _PIECE) if size > _WHOLE else range(0, max(size, 1), _PIECE)
        for start in pieces:
            digest.update(os.pread(file.fileno(), _PIECE, start))
    return digest.hexdigest()


def _identifying(seen: Seen | int | None) -> tuple[int | str | None, ...]:
    return seen[:2] if isinstance(seen, tuple) else (seen,)


def _paths(clip: Clip) -> list[tuple[str, Path]]:
    named = {"ego": clip.ego_path, "exo": clip.exo_path, "pose": clip.pose_path}
    return [(view, path) for view, path in named.items() if path is not None]


def _look(path: Path, known: Seen | int | None) -> Seen | int | None:
    try:
        if is_frames(path):
            return _look_at_pictures(path, known)
        stat = path.stat()
        if isinstance(known, int) and known == stat.st_size:
            return known  # its clips keep the features that they have
        if isinstance(known, tuple) and (known[0], known[2]) == (stat.st_size, stat.st_mtime_ns):
            return known
        return stat.st_size, sample(path, stat.st_size), stat.st_mtime_ns
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, VideoError):
        return None


def _look_at_pictures(path: Path, known: Seen | int | None) -> Seen:
    """Of a `.frames` file: how many pictures there are; a hash of that, of their rate, rotation and first number, and
    of samples of the first, the middle and the last one. Where the folder lies does not count."""
    folder = open_folder(path)
    count, changed = len(folder.numbers), folder.file.changed_ns(path)
    if isinstance(known, tuple) and (known[0], known[2]) == (count, changed):
        return known
    pictures = [folder.picture(int(folder.numbers[place])) for place in (0, count // 2, count - 1)]
    samples = [sample(picture, picture.stat().st_size) for picture in pictures]
    said = [count, folder.frame_count, folder.file.fps, folder.file.rotation, folder.first, *samples]
    return count, files.hash_bytes(_JSON.encode(said).encode()), changed
