"""Files that cannot be used: refused with a reason, never replaced by something else; the machine's errors pass."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from uniego.pipeline import video_source
from uniego.pipeline.video import BACKENDS, VideoError, open_video

MakeVideo = Callable[..., Path]
KEY = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


@pytest.fixture
def good(tmp_path: Path, make_video: MakeVideo) -> Path:
    return make_video(tmp_path / "good.mp4", frames=60, gop=20)


def _empty(path: Path, good: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path, good: Path) -> None:
    path.write_text("clip_id,split\n" * 100)


def _noise(path: Path, good: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _folder(path: Path, good: Path) -> None:
    path.mkdir()


def _absent(path: Path, good: Path) -> None:
    pass


def _sound(path: Path, good: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _no_index(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[:-1500])


def _rewrite(good: Path, path: Path, options: dict[str, str]) -> None:
    with av.open(str(good)) as old, av.open(str(path), "w", container_options=options) as new:
        target = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = target
                new.mux(packet)


def _cut(path: Path, good: Path) -> None:
    _rewrite(good, path, {"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _encrypted(path: Path, good: Path) -> None:
    _rewrite(good, path, KEY)


FAULTS: list[tuple[Callable[[Path, Path], None], str]] = [
    (_absent, "missing"),
    (_empty, "unreadable"),
    (_text, "unreadable"),
    (_noise, "unreadable"),
    (_folder, "unreadable"),
    (_encrypted, "unreadable"),
    (_sound, "no_video"),
    (_no_index, "truncated"),
    (_cut, "truncated"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "reason"), FAULTS, ids=[make.__name__[1:] for make, _ in FAULTS])
def test_refused_with_a_reason(
    make: Callable[[Path, Path], None], reason: str, backend: str, good: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad clip.mp4"
    make(path, good)
    with pytest.raises(VideoError) as caught:
        open_video(path, backend)
    assert caught.value.reason == reason
    assert caught.value.path == str(path)
    assert make is not _encrypted or "encrypted" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_other_containers_cut_short(suffix: str, tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / f"clip{suffix}", frames=60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(VideoError) as caught:
        open_video(path)
    assert caught.value.reason == "truncated"


def test_a_path_through_a_file_is_missing(good: Path) -> None:
    with pytest.raises(VideoError) as caught:
        open_video(good / "clip.mp4")
    assert caught.value.reason == "missing"


def test_a_name_like_a_protocol_is_a_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good.rename(good.with_name("concat:a|b ü.mp4"))
    monkeypatch.chdir(good.parent)
    with open_video("concat:a|b ü.mp4") as video:
        assert video.info.frame_count == 60


def test_a_damaged_picture_is_refused_and_only_what_leans_on_it(good: Path) -> None:
    with open_video(good) as video:
        intact = video.frames(range(60))
    with av.open(str(good)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(good.read_bytes())
    position, size = packets[23]
    data[position : position + size] = bytes(byte ^ 0x5A for byte in data[position : position + size])
    good.write_bytes(data)
    refused = []
    with open_video(good) as video:
        for number in range(60):
            try:
                assert np.array_equal(video.frames([number])[0], intact[number])
            except VideoError:
                refused.append(number)
        with pytest.raises(VideoError):
            video.frames(range(60))
    assert refused
    assert set(refused) <= set(range(20, 40))


def test_frames_that_never_come_are_counted(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(good) as video:
        packets = video._source.packets  # type: ignore[attr-defined]
        monkeypatch.setattr(
            video._source,  # type: ignore[attr-defined]
            "packets",
            lambda: (packet for packet in packets() if packet.pts < 30 * 1024),
        )
        with pytest.raises(VideoError, match=r"2 of 3 frames.*frame 40 of 60, at 4\.000 s") as caught:
            video.frames([40, 5, 50])
    assert caught.value.reason == "truncated"


def test_no_permission_is_the_files_fault(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(VideoError, match="permission") as caught:
        open_video(good)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE])
def test_errors_of_the_machine_pass(number: int, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        open_video(good)
    assert caught.value.errno == number


@pytest.mark.parametrize(("number", "passes"), [(errno.ESTALE, True), (errno.ETIMEDOUT, True), (errno.EIO, False)])
def test_errors_of_the_machine_while_decoding(
    number: int, passes: bool, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library also says EIO of a damaged file: if the file reads well, the file is at fault."""

    def fail(*_: object, **__: object) -> None:
        raise av.error.OSError(number, os.strerror(number), str(good))

    monkeypatch.setattr(video_source.av, "open", fail)
    with pytest.raises(OSError if passes else VideoError):
        open_video(good)


def test_a_failing_disk_is_told_from_a_damaged_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def library(*_: object, **__: object) -> None:
        def disk(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "open", disk)
        raise av.error.InvalidDataError(1094995529, "Invalid data", str(good))

    monkeypatch.setattr(video_source.av, "open", library)
    with pytest.raises(OSError, match="Input/output"):
        open_video(good)


def test_the_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(VideoError("truncated", "a.mp4", "ends early")))  # noqa: S301
    assert (error.reason, error.path, str(error)) == ("truncated", "a.mp4", "a.mp4: ends early (truncated)")


def test_files_are_closed(good: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    _text(tmp_path / "bad.mp4", good)
    for _ in range(3):
        for backend in BACKENDS:
            with open_video(good, backend) as video:
                video.frames([1, 50])
            with pytest.raises(VideoError):
                open_video(tmp_path / "bad.mp4", backend)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
