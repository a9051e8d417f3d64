"""Which files a clip was made from: their paths as the table writes them, and their sizes.

Sizes are taken when features are extracted and kept with the run, so that later stages need not reach the exo videos
and skeletons again, and data may move. A file that was replaced, or came to be there, makes its clips new ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import files
from .clips import Clip

Sizes = Mapping[str, int | None]
"""Bytes of every file, by the path as the table writes it; None: there is no such file."""


def measure(clips: Sequence[Clip]) -> dict[str, int | None]:
    """Sizes of all files that the clips name."""
    paths = {clip.sources[view]: path for clip in clips for view, path in _paths(clip)}
    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly, but many at a time
        sizes = pool.map(_size, paths.values())
        return dict(sorted(zip(paths, sizes, strict=True)))


def identity(clip: Clip, sizes: Sizes) -> str:
    """Hash of what a clip's features are made from: paths, sizes, segment."""
    sources = {view: [path, sizes.get(path)] for view, path in clip.sources.items()}
    return files.hash_bytes(json.dumps([sources, clip.start_s, clip.end_s], sort_keys=True).encode())


def _paths(clip: Clip) -> list[tuple[str, Path]]:
    named = {"ego": clip.ego_path, "exo": clip.exo_path, "pose": clip.pose_path}
    return [(view, path) for view, path in named.items() if path is not None]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
