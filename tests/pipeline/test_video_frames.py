"""Folders of numbered pictures as videos: the right picture, upright, at the right time, or a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from uniego.errors import UsageError
from uniego.pipeline.clips import missing_files, read_clip_table
from uniego.pipeline.decode import DecodeJob, decode
from uniego.pipeline.durations import header_seconds
from uniego.pipeline.sources import identity, measure
from uniego.pipeline.video import VideoError, backend_identity, open_video, segment
from uniego.pipeline.video_frames import open_folder

Read = Callable[[np.ndarray], int]


def lay(
    folder: Path, numbers: Any, paint: Any, name: str = "frame_{:010d}.jpg", size: tuple[int, int] = (80, 48)
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(paint(number, *size)).save(folder / name.format(number), quality=95)


@pytest.fixture(scope="module")
def paint() -> Callable[..., np.ndarray]:
    def picture(number: int, width: int, height: int) -> np.ndarray:
        frame = np.full((height, width, 3), 90, np.uint8)
        for bit in range(10):
            frame[: height // 4, bit * width // 10 : (bit + 1) * width // 10] = 255 * (number >> bit & 1)
        return frame

    return picture


@pytest.fixture
def frames(tmp_path: Path, paint: Any) -> Path:
    lay(tmp_path / "view", range(1, 31), paint)
    return say(tmp_path / "view.frames", folder="view", fps=30, first=1)


def say(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@given(st.lists(st.integers(0, 29), max_size=12))
def test_every_access_gives_the_picture_of_that_number(
    tmp_path_factory: pytest.TempPathFactory, paint: Any, frame_number: Read, wanted: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "random"
    if not folder.exists():
        lay(folder, range(1, 31), paint)
        say(folder.with_suffix(".frames"), folder="random", fps=30)
    with open_video(folder.with_suffix(".frames")) as video:
        assert [frame_number(frame) - 1 for frame in video.frames(wanted)] == wanted


def test_what_it_says_of_itself(frames: Path) -> None:
    for backend in ("pyav", "decord"):
        with open_video(frames, backend) as video:
            info = video.info
            assert (info.frame_count, info.fps, info.width, info.height) == (30, 30.0, 80, 48)
            assert segment(info, 0.5, 0.6) == (15, 18)
            with pytest.raises(UsageError, match=r"no frame 30"):
                video.frames([30])
            with pytest.raises(VideoError, match=r"starts after its end"):
                segment(info, 1.0, 2.0)
    assert header_seconds(frames) == 1.0
    assert "pictures" not in backend_identity("pyav", ["a.mp4", None])
    assert backend_identity("pyav", ["a.mp4", frames])["pictures"].count(" ") >= 1


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_turned_counter_clockwise(tmp_path: Path, rotation: int, paint: Any, frame_number: Read) -> None:
    upright = paint(613, 80, 48)
    (tmp_path / "v").mkdir()
    turned = Image.fromarray(upright).rotate(-rotation, expand=True)  # as a camera on its side films it
    turned.save(tmp_path / "v/1.png")
    path = say(tmp_path / "v.frames", folder="v", fps=30, rotation=rotation)
    with open_video(path) as video:
        assert (video.info.width, video.info.height, video.info.rotation) == (80, 48, rotation)
        assert np.array_equal(video.frames([0])[0], upright)


def test_a_hole_shifts_nothing_and_fails_only_who_wants_it(frames: Path, frame_number: Read) -> None:
    (frames.parent / "view/frame_0000000011.jpg").unlink()
    assert open_folder(frames).holes == 1
    with open_video(frames) as video:
        assert video.info.frame_count == 30
        assert [frame_number(frame) for frame in video.frames([9, 11])] == [10, 12]
        with pytest.raises(VideoError, match=r"frame 10 has no picture") as caught:
            video.frames([9, 10])
    assert caught.value.reason == "truncated"
    assert decode(DecodeJob(str(frames), 0.0, 0.3, (4,))).error is None
    failed = decode(DecodeJob(str(frames), 0.3, 0.4, (3,))).error
    assert failed is not None
    assert failed.reason == "truncated"
    (frames.parent / "view/frame_0000000001.jpg").unlink()
    with open_video(frames) as video:  # the first one counts, too
        assert frame_number(video.frames([1])[0]) == 2


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        ({"folder": "view"}, "unreadable", "fps is None"),
        ({"folder": "view", "fps": True}, "unreadable", "fps is True"),
        ({"folder": "view", "fps": 30, "rotation": 45}, "unreadable", "rotation is 45"),
        ({"folder": "view", "fps": 30, "rate": 1}, "unreadable", "folder, fps, rotation only"),
        ({"folder": "view", "fps": 30, "first": "1"}, "unreadable", "first '1'"),
        ({"folder": "view", "fps": 30, "first": 31}, "truncated", "before first"),
        ({"folder": "other", "fps": 30}, "missing", "no folder"),
        ({"folder": "view.frames", "fps": 30}, "missing", "no folder"),
        ({"folder": ".", "fps": 30}, "no_video", "no numbered JPEG"),
        (None, "unreadable", "no JSON"),
    ],
)
def test_refusals_have_a_reason(frames: Path, content: Any, reason: str, words: str) -> None:
    frames.write_text("{" if content is None else json.dumps(content))
    with pytest.raises(VideoError, match=words.replace("(", r"\(")) as caught:
        open_video(frames)
    assert caught.value.reason == reason


def test_damaged_and_odd_pictures(frames: Path, paint: Any) -> None:
    view = frames.parent / "view"
    cut = view / "frame_0000000005.jpg"
    cut.write_bytes(cut.read_bytes()[:600])
    (view / "frame_0000000006.jpg").write_bytes(b"")
    (view / "frame_0000000007.jpg").write_bytes(b"no picture")
    lay(view, [8], paint, size=(48, 80))
    Image.fromarray(paint(9, 80, 48)[..., 0]).save(view / "frame_0000000009.jpg")
    (view / "Thumbs.db").write_bytes(b"")
    (view / "._frame_0000000010.jpg").write_bytes(b"")  # what one system leaves on foreign disks
    with open_video(frames) as video:
        assert video.frames([8]).shape == (1, 48, 80, 3)  # grey is made RGB
        for index, reason in ((4, "truncated"), (5, "truncated"), (6, "unreadable"), (7, "unreadable")):
            with pytest.raises(VideoError) as caught:
                video.frames([index])
            assert caught.value.reason == reason
    (view / "other_0000000001.jpg").write_bytes(b"")
    with pytest.raises(VideoError, match="not all named alike"):
        open_video(frames)


@pytest.mark.parametrize("name", ["{}.jpg", "{:03d}.png", "cam01_{:04d}.JPEG"])
def test_names(tmp_path: Path, name: str, paint: Any, frame_number: Read) -> None:
    lay(tmp_path / "v", range(8, 13), paint, name)
    with open_video(say(tmp_path / "v.frames", folder="v", fps=5)) as video:
        assert [frame_number(frame) for frame in video.frames(range(5))] == [8, 9, 10, 11, 12]


def test_a_folder_itself_is_refused_with_advice(frames: Path) -> None:
    with pytest.raises(VideoError, match=r"read through a \.frames file"):
        open_video(frames.parent / "view")


def test_identity_follows_pictures_and_settings_not_the_place(frames: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("clip_id,split,label,ego_path\na,train,0,view.frames\nb,train,0,gone.frames\n")
    say(tmp_path / "gone.frames", folder="gone", fps=30)
    read = read_clip_table(table)
    assert [clip.clip_id for clip, _, _ in missing_files(read)] == ["b"]
    clip = read.clips[0]
    before = measure([clip])
    assert measure([clip], before) == before
    assert before["view.frames"][0] == 30
    (tmp_path / "view").rename(tmp_path / "moved")
    assert measure([clip])["view.frames"] is None
    say(frames, folder="moved", fps=30, first=1)
    assert identity(clip, measure([clip])) == identity(clip, before)
    say(frames, folder="moved", fps=30, first=1, rotation=90)
    assert identity(clip, measure([clip])) != identity(clip, before)
    say(frames, folder="moved", fps=30, first=1)
    (tmp_path / "moved/frame_0000000030.jpg").unlink()
    assert identity(clip, measure([clip])) != identity(clip, before)
