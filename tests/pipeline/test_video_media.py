"""Real videos: the table, bit equality with plain decoding, and the two decoders' agreement on which frame is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from uniego.pipeline.video import open_video

pytestmark = pytest.mark.media

_EACH_FULL = {"aria_sample", "ego", "4_cam_recording"}
"""Folders of which every file is read in the short gate; of the others, the first."""


def _videos(media: Path, full: bool) -> list[Path]:
    files = sorted(path for path in media.rglob("*") if path.suffix in (".mp4", ".mkv"))
    firsts = {path.parent: path for path in reversed(files)}
    return [path for path in files if full or path.parent.name in _EACH_FULL or firsts[path.parent] == path]


def _sequential(path: Path, wanted: set[int]) -> tuple[int, dict[int, npt.NDArray[np.uint8]]]:
    """Number of frames that plain decoding shows, and the wanted ones."""
    kept, count = {}, 0
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for count, frame in enumerate(container.decode(stream), 1):
            if count - 1 in wanted:
                kept[count - 1] = frame.to_ndarray(format="rgb24")
    return count, kept


def test_real_videos(media: Path, full: bool) -> None:
    videos = _videos(media, full)
    assert videos
    for path in videos:
        with open_video(path) as video:
            count = video.info.frame_count
            wanted = sorted({int((i + 0.5) * count / 4) for i in range(4)} | {0, count - 1})
            frames = video.frames(wanted)
        assert frames.shape == (len(wanted), video.info.height, video.info.width, 3)
        near = {i for frame in wanted for i in (frame - 1, frame, frame + 1)}
        plain_count, plain = _sequential(path, near)
        assert plain_count == count, path
        with open_video(path, "decord") as video:
            others = video.frames(wanted)
        for i, ours, theirs in zip(wanted, frames, others, strict=True):
            assert np.array_equal(ours, plain[i]), (path, i)
            apart = {j: np.abs(theirs[::4, ::4].astype(int) - plain[j][::4, ::4]).mean() for j in near & plain.keys()}
            assert apart[i] < 3, (path, i)
            assert apart[i] <= min(apart[j] for j in (i - 1, i, i + 1) if j in apart), (path, i)
