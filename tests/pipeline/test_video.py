"""The frame table and both decoders, on videos in which frame i shows i in binary."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pytest
from uniego.errors import UsageError
from uniego.pipeline.video import VideoError, VideoInfo, backend_identity, open_video, segment
from uniego.pipeline.video_pyav import PyAVVideo

Frames = npt.NDArray[np.uint8]
GOLDEN = sorted((Path(__file__).parents[1] / "data" / "videos").iterdir())


def picture(number: int, width: int = 64, height: int = 64) -> Frames:
    """4 x 4 cells of 16 pixels, cell b white if bit b of `number`, in the manner of the recorded videos."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 1] = 40
    for bit in range(16):
        if number >> bit & 1:
            image[bit // 4 * 16 : bit // 4 * 16 + 16, bit % 4 * 16 : bit % 4 * 16 + 16] = 255
    image[(number * 3) % height, :, 2] = 200
    return image


def number_in(image: Frames) -> int:
    cells = [image[bit // 4 * 16 + 4 :, bit % 4 * 16 + 4 :][:8, :8].mean() > 140 for bit in range(16)]
    return sum(bool(cell) << bit for bit, cell in enumerate(cells))


class Sample(NamedTuple):
    """How to make a video, and what is to be expected of it."""

    name: str
    codec: str = "libx264"
    options: str = "keyint=12:bframes=3"
    frames: int = 100
    size: tuple[int, int] = (64, 64)
    pixels: str = "yuv420p"
    times: tuple[int, ...] | None = None
    rotation: int = 0
    b_frames: int | None = None
    fragments: bool = False
    first: int = 0  # number in the first shown frame: an edit list hides those before it
    decord: bool = True  # whether decord reads it at all


VFR = tuple(np.cumsum(1 + np.arange(100) % 5).tolist())
SAMPLES = [
    Sample("h264.mp4"),
    Sample("long.mp4", options="keyint=250:bframes=3", frames=300),
    Sample("open.mp4", options="keyint=12:bframes=3:open-gop=1:scenecut=0"),
    Sample("open.mkv", options="keyint=12:bframes=3:open-gop=1:scenecut=0"),
    Sample("refresh.mp4", options="keyint=12:intra-refresh=1"),
    Sample("fields.mp4", options="keyint=12:bframes=3:tff=1"),
    Sample("fragments.mp4", fragments=True),
    Sample("hidden5.mp4", first=5),
    Sample("hidden20.mp4", first=20),
    Sample("vfr.mp4", times=VFR),
    Sample("vfr.mkv", times=VFR),
    Sample("late.mp4", times=tuple(range(50, 150))),
    Sample("late.mkv", times=tuple(range(50, 150))),
    Sample("h264.ts", decord=False),
    Sample("open.ts", options="keyint=12:bframes=3:open-gop=1:scenecut=0", decord=False),
    Sample("h264.avi"),
    Sample("h264.h264", decord=False),
    Sample("odd.mp4", size=(65, 67), pixels="yuv444p"),
    Sample("left.mp4", size=(96, 64), rotation=90),
    Sample("left.mkv", size=(96, 64), rotation=90),
    Sample("right.mp4", size=(96, 64), rotation=-90),
    Sample("upside.mp4", size=(96, 64), rotation=180, decord=False),
    Sample("hevc.mp4", "libx265", options="keyint=12:bframes=3"),
    Sample("layers.mp4", "libx265", options="keyint=24:bframes=4:b-adapt=0:temporal-layers=3"),
    Sample("ten.mp4", "libx265", options="keyint=12:bframes=3", pixels="yuv420p10le"),
    Sample("mpeg4.mp4", "mpeg4", b_frames=2),
    Sample("mpeg4.avi", "mpeg4", b_frames=2),
    Sample("mpeg2.ts", "mpeg2video", b_frames=2, decord=False),
    Sample("vp9.webm", "libvpx-vp9", size=(65, 67)),
    Sample("vp8.webm", "libvpx"),
    Sample("av1.mp4", "libsvtav1", frames=40, options="keyint=24"),
    Sample("mjpeg.mkv", "mjpeg", pixels="yuvj420p"),
]


def _codec_options(sample: Sample) -> dict[str, str]:
    if sample.codec.startswith("libvpx"):  # hidden alternative reference frames
        return {"lag-in-frames": "16", "auto-alt-ref": "1", "g": "24", "b": "200k"}
    name = {"libx264": "x264-params", "libx265": "x265-params", "libsvtav1": "svtav1-params"}.get(sample.codec)
    return {name: sample.options + ":log-level=none" * (name == "x265-params")} if name else {"g": "12"}


def _write(sample: Sample, path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if sample.fragments else {}
    with av.open(str(path), "w", container_options=options) as container:
        stream: Any = container.add_stream(sample.codec, rate=30, options=_codec_options(sample))
        stream.width, stream.height = sample.size
        stream.pix_fmt = sample.pixels
        if sample.b_frames is not None:
            stream.codec_context.max_b_frames = sample.b_frames
        if sample.rotation:
            stream.set_display_rotation(sample.rotation)
        for number in range(sample.frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *sample.size), format="rgb24")
            frame.pts = sample.times[number] if sample.times else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _hide(path: Path, frames: int) -> None:
    """Copy the packets with times moved below zero, which makes an edit list hide the first `frames`."""
    whole = path.with_name("whole-" + path.name)
    path.rename(whole)
    with av.open(str(whole)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        source: Any = old.streams.video[0]
        target = new.add_stream_from_template(source)
        shift = int(frames / (source.time_base * 30))
        for packet in old.demux(source):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                new.mux(packet)


def sequential(path: Path) -> list[Frames]:
    """Every shown frame, upright, by plain decoding."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            for frame in container.decode(stream)
        ]


@pytest.fixture(scope="module", params=SAMPLES, ids=[sample.name for sample in SAMPLES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, Path, list[Frames]]:
    sample: Sample = request.param
    path = tmp_path_factory.mktemp("videos") / sample.name
    _write(sample, path)
    if sample.first:
        _hide(path, sample.first)
    return sample, path, sequential(path)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "long.mp4"
    _write(Sample("long.mp4", options="keyint=250:bframes=3:scenecut=0", frames=300), path)
    return path


def test_the_table_is_what_plain_decoding_shows(case: tuple[Sample, Path, list[Frames]]) -> None:
    sample, path, reference = case
    with open_video(path) as video:
        info = video.info
    assert info.frame_count == len(reference) == len(info.times) == sample.frames - sample.first
    assert (info.height, info.width) == reference[0].shape[:2]
    assert info.rotation == sample.rotation % 360
    assert (np.diff(info.times) > 0).all()
    assert info.has_duration == (path.suffix not in (".mkv", ".webm", ".h264"))
    shown = np.array(sample.times or range(sample.first, sample.frames)) / (25 if path.suffix == ".h264" else 30)
    np.testing.assert_allclose(info.times, shown - shown[0], atol=2e-3)


def test_pyav_equals_plain_decoding_bit_by_bit(case: tuple[Sample, Path, list[Frames]]) -> None:
    sample, path, reference = case
    if not sample.rotation:
        assert [number_in(image) for image in reference] == list(range(sample.first, sample.frames))
    with open_video(path) as video:
        count = len(reference)
        sparse = [list(range(offset, count, 13)) for offset in range(13)]
        for wanted in [*sparse, list(range(count)), [count - 1, 0, 0, count // 2]]:
            frames = video.frames(wanted)
            assert all(np.array_equal(image, reference[i]) for image, i in zip(frames, wanted, strict=True))


def test_decord_gives_the_same_frames(case: tuple[Sample, Path, list[Frames]]) -> None:
    sample, path, reference = case
    if not sample.decord:
        with pytest.raises(VideoError, match="pyav") as caught:
            open_video(path, "decord")
        assert caught.value.reason == "unreadable"
        return
    with open_video(path, "decord") as video:
        for wanted in (list(range(5, len(reference), 13)), [30, 7, 7, len(reference) - 1]):
            for image, i in zip(video.frames(wanted), wanted, strict=True):
                differences = [np.abs(image.astype(int) - other).mean() for other in reference]
                assert int(np.argmin(differences)) == i
                assert differences[i] < 4


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("path", GOLDEN, ids=[path.name for path in GOLDEN])
def test_recorded_videos(path: Path, backend: str) -> None:
    count, fps = path.stem[1:].split("_fps")
    with open_video(path, backend) as video:
        info = video.info
        wanted = list(range(int(count)))[::7]
        assert [number_in(image) for image in video.frames(wanted)] == wanted
    assert info.frame_count == int(count)
    assert info.fps == float(Fraction(30000, 1001) if fps == "29.97" else Fraction(fps))
    assert info.has_duration == (path.suffix == ".mp4")


def _packets_read(video: PyAVVideo, wanted: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Packets that a request takes from the container."""
    read = 0
    packets: Callable[[], Iterator[Any]] = video._source.packets

    def counting() -> Iterator[Any]:
        nonlocal read
        for packet in packets():
            read += 1
            yield packet

    with monkeypatch.context() as patch:
        patch.setattr(video._source, "packets", counting)
        video.frames(wanted)
    return read


def test_nothing_is_read_beyond_the_last_wanted_frame(long_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PyAVVideo(long_video) as video:
        assert _packets_read(video, [0], monkeypatch) == 1
        assert _packets_read(video, [20], monkeypatch) <= 25
        assert _packets_read(video, [20, 20, 3], monkeypatch) <= 25
        assert _packets_read(video, [260], monkeypatch) <= 15
        assert _packets_read(video, [], monkeypatch) == 0


def test_only_wanted_frames_are_held(long_video: Path) -> None:
    with open_video(long_video) as video:
        tracemalloc.start()
        assert video.frames(range(0, 300, 40)).dtype == np.uint8
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 30 * 64 * 64 * 3


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_numbers_outside_the_video_are_refused(backend: str, long_video: Path) -> None:
    with open_video(long_video, backend) as video:
        assert video.frames([]).shape == (0, 64, 64, 3)
        for outside in (-1, 300):
            with pytest.raises(UsageError, match=r"0\.\.299"):
                video.frames([0, outside])
    with pytest.raises(UsageError, match="pyav, decord"):
        open_video(long_video, "opencv")


def test_backends_name_what_decides_their_pixels() -> None:
    assert backend_identity("pyav").keys() == {"backend", "version", "libavcodec", "libavformat", "libswscale"}
    assert backend_identity("decord")["distribution"].startswith("decord")
    with pytest.raises(UsageError, match="pyav, decord"):
        backend_identity("opencv")


def _info(times: list[float], fps: float = 10.0) -> VideoInfo:
    return VideoInfo("clip.mp4", len(times), np.array(times), fps, 64, 64, 0, "h264", True)


@pytest.mark.parametrize(
    ("start", "end", "frames"),
    [
        (None, None, (0, 10)),
        (0.0, 1.0, (0, 10)),
        (0.3, 0.6, (3, 6)),
        (0.29999999, 0.60000001, (3, 6)),
        (0.22, 0.29, (3, 4)),
        (0.21, 0.24, (2, 3)),
        (0.9, 99.0, (9, 10)),
        (0.95, None, (9, 10)),
        (None, 0.05, (0, 1)),
        (-1.0, 0.2, (0, 2)),
    ],
)
def test_segments(start: float | None, end: float | None, frames: tuple[int, int]) -> None:
    assert segment(_info([i / 10 for i in range(10)]), start, end) == frames


def test_segments_of_a_variable_rate_go_by_time() -> None:
    info = _info([0.0, 0.1, 0.5, 2.0])
    assert [segment(info, 0.1, 1.0), segment(info, 1.0, 1.2)] == [(1, 3), (2, 3)]


def test_segments_outside_the_video_are_refused() -> None:
    info = _info([i / 10 for i in range(10)])
    with pytest.raises(VideoError, match=r"clip\.mp4.*1\.5\.\.2 s.*1\.000 s.*10 frames") as caught:
        segment(info, 1.5, 2.0)
    assert caught.value.reason == "truncated"
    for bounds in ((0.5, 0.5), (0.6, 0.5), (-2.0, -1.0)):
        with pytest.raises(UsageError):
            segment(info, *bounds)
