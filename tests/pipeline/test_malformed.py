"""Malformed videos, made of generated and real ones: each accepted or refused as plain decoding says.

A clip is accepted if and only if its container opens, breaks off nowhere and is as long as it says, and every frame
asked for decodes without an error of the decoder or a picture marked corrupt, among those that the frame is decoded
from: the pictures from the key frame before it on, save those that no other picture refers to.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import psutil
import pytest
from av.error import FFmpegError
from uniego.pipeline.decode import DecodeJob
from uniego.pipeline.decoders import Decoders
from uniego.pipeline.sampling import spread_indices

MakeVideo = Callable[..., Path]
PICKS = 8
GENERATED = [
    ("h264.mp4", "libx264"),
    ("long.mp4", "libx264"),
    ("h264.mkv", "libx264"),
    ("hevc.mp4", "libx265"),
    ("vp9.webm", "libvpx-vp9"),
    ("part2.mp4", "mpeg4"),
]
REAL = [
    "intel_asl/milk.mkv",
    "multiview_caliscope/4_cam_recording/cam_3.mp4",
    "multiview_pose2sim/single/cam02.mp4",
    "aria_sample/aea_ego_rgb_704.mp4",
]


class Refused(Exception):
    """Plain decoding cannot give the frames."""


def strict(path: Path) -> np.ndarray:
    """The frames asked for, uint8 [PICKS, H, W, 3], by decoding the whole file from its beginning to its end."""
    plain, needed = _decoded(path), _decoded(path, "NONREF")
    if None in plain.times or not plain.times:
        raise Refused("no frames, or without times")
    numbers = sorted(set(plain.times))
    frames = []
    for time_ in (numbers[n] for n in spread_indices(len(numbers), PICKS)):
        place = plain.times.index(time_)
        start = max((key for key in plain.keys if key <= place and plain.times[key] <= time_), default=0)
        bad = {damage for damage in plain.bad if damage == place or damage in needed.bad}
        if time_ not in plain.pictures or any(start <= damage <= place for damage in bad):
            raise Refused(f"the frame at {time_}")
        frames.append(plain.pictures[time_])
    return np.stack([np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90) % 4) for f in frames])


class Plain(NamedTuple):
    """Times of all packets, places of key frames, places that are damaged, and pictures by time."""

    times: list[int]
    keys: list[int]
    bad: set[int]
    pictures: dict[int, av.VideoFrame]


def _decoded(path: Path, skip: str = "DEFAULT") -> Plain:
    """All of a file, one picture after the other; `Refused` if it does not open or breaks off."""
    plain, corrupt = Plain([], [], set(), {}), []
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise Refused("no video")
            stream.codec_context.thread_count = 1
            stream.codec_context.skip_frame = skip
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    raise Refused("it breaks off in the middle of a packet")
                plain.times.append(packet.pts)
                if packet.is_keyframe:
                    plain.keys.append(len(plain.times) - 1)
                try:
                    frames = packet.decode()
                except FFmpegError:
                    plain.bad.add(len(plain.times) - 1)
                    continue
                corrupt += [frame.pts for frame in frames if frame.is_corrupt]
                plain.pictures.update({f.pts: f for f in frames if f.pts not in plain.pictures})
            for frame in stream.decode(None):
                plain.pictures.setdefault(frame.pts, frame)
                corrupt += [frame.pts] * frame.is_corrupt
            _check_length(container, stream, max(filter(None, plain.times), default=0))
    except (FFmpegError, MemoryError) as error:
        raise Refused(str(error)) from error
    plain.bad.update(plain.times.index(time_) for time_ in corrupt if time_ in plain.times)
    return plain


def _check_length(container: Any, stream: Any, last: int) -> None:
    """Matroska says how long the stream is, and just ends where it was cut."""
    text = stream.metadata.get("DURATION")
    if not container.format.name.startswith("matroska") or not text:
        return
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except ValueError:  # damaged, so it says nothing
        return
    stated = 3600 * hours + 60 * minutes + seconds
    if stated - float(last * stream.time_base) > 1.0 + float(1 / (stream.average_rate or Fraction(30))):
        raise Refused("shorter than stated")


def malformed(sources: list[Path], folder: Path, count: int) -> list[Path]:
    """`count` files: sources cut at every tenth, with bytes changed, and what is no video at all."""
    made = [*_no_videos(folder, sources[0])]
    for source in sources:
        data = source.read_bytes()
        for tenth in range(1, 10):
            path = folder / f"{source.stem}-cut{tenth}{source.suffix}"
            path.write_bytes(data[: len(data) * tenth // 10])
            made.append(path)
    seed = 0
    while len(made) < count:
        source = sources[seed % len(sources)]
        rng, changed = random.Random(seed), bytearray(source.read_bytes())
        ends = rng.choice([(0, len(changed)), (0, 2000), (len(changed) - 3000, len(changed))])
        for _ in range(rng.choice([1, 3, 10, 40])):
            changed[rng.randrange(max(ends[0], 0), min(ends[1], len(changed)))] = rng.randrange(256)
        path = folder / f"{source.stem}-bytes{seed}{source.suffix}"
        path.write_bytes(changed)
        made.append(path)
        seed += 1
    if count < len(made):
        made = made[::-1][:: len(made) // count][:count]  # some of every kind
    return made


def _no_videos(folder: Path, source: Path) -> Iterator[Path]:
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"clip_id,split,label\n" * 300,
        "noise.mkv": random.Random(0).randbytes(30_000),
        "zeros.mp4": bytes(30_000),
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "header.mp4": source.read_bytes()[:40],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    yield folder / "sound.mp4"
    for name in ("nothing.mp4", "nothing.mkv"):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
        yield folder / name


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that any child process held, measured often."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for process in psutil.Process().children():
                with suppress(psutil.Error):
                    most[0] = max(most[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def check(paths: list[Path]) -> None:
    """All through a pool of decoders, and each compared with `strict`."""
    begin = time.monotonic()
    with peak_memory() as most, Decoders((DecodeJob(str(p), None, None, (PICKS,)) for p in paths), 2) as decoders:
        results = list(decoders)
    assert time.monotonic() - begin < 60 + len(paths)
    assert most[0] < 600e6
    wrong = []
    for path, result in zip(paths, results, strict=True):
        try:
            wanted = strict(path)
        except Refused as refused:
            if result.error is None:
                wrong.append(f"{path.name} accepted, but {refused}")
            elif result.error.reason not in {"unreadable", "no_video", "truncated"}:
                wrong.append(f"{path.name}: {result.error}")
            continue
        if result.frames is None:
            wrong.append(f"{path.name} decodes, but {result.error}")
        elif not np.array_equal(result.frames[result.places(PICKS)], wanted):
            wrong.append(f"{path.name}: other frames")
    assert not wrong, "\n".join(wrong)
    assert 0 < sum(result.error is None for result in results) < len(results)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [
        make_video(folder / name, frames=60, size=(96, 64), codec=codec, gop=60 if "long" in name else 10)
        for name, codec in GENERATED
    ]


@pytest.mark.fault
def test_fault_20_malformed_videos(generated: list[Path], tmp_path: Path, full: bool) -> None:
    check(malformed(generated, tmp_path, 200 if full else 20))


@pytest.mark.fault
@pytest.mark.media
def test_fault_20_malformed_real_videos(media: Path, tmp_path: Path, full: bool) -> None:
    check(malformed([media / name for name in REAL], tmp_path, 200 if full else 20))
