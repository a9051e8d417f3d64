"""How long a video says it is, without reading more than its header: for estimates only."""

from __future__ import annotations

import os

import av

from .video_frames import is_frames, open_folder
from .video_info import VideoError


def header_seconds(path: str | os.PathLike[str]) -> float | None:
    """Seconds that a file's header states; None where it states nothing or cannot be opened."""
    try:
        if is_frames(path):
            folder = open_folder(path)
            return folder.frame_count / folder.file.fps
        with av.open(os.fspath(path)) as container:
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, OSError, ValueError, VideoError):
        return None
