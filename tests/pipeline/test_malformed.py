"""Malformed videos, made of generated and real ones: each accepted or refused as plain decoding says.

A clip is accepted if and only if its container opens, breaks off nowhere and is as long as it says, and every frame
asked for decodes without an error of the decoder or a picture marked corrupt, among those that the frame is decoded
from: the pictures from the key frame before it on, save those that no other picture refers to.
"""

from __future__ import annotations

import itertools
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
    """The frames asked for, uint8 [PICKS, H, W, 3], by decoding from the file's beginning to the last of them.

    Pictures that nobody asked for and no other refers to are left out: damage in them is nobody's. Frame i is the i-th
    shown of the packets that no edit list hides; where their times are missing or repeat, the i-th picture that comes
    out, and then damage counts wherever it is.
    """
    packets = _packets(path)
    times = [packet.pts for packet in packets]
    if None in times or len(set(times)) < len(times):
        pictures = _decoded(path, len(packets), None).pictures
        wanted = spread_indices(len(pictures), PICKS).tolist() if pictures else []
        plain = Plain(pictures, set())
    else:
        shown = sorted(packet.pts for packet in packets if not packet.is_discard)
        wanted = [shown[n] for n in spread_indices(len(shown), PICKS)] if shown else []
        plain = _decoded(path, max(map(times.index, wanted), default=0), set(wanted))
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        for time_ in wanted:
            place = times.index(time_)
            start = max((key for key in keys if key <= place and times[key] <= time_), default=0)
            if any(start <= damage <= place for damage in plain.bad):
                raise Refused(f"the frame at {time_}")
    if not wanted or not plain.pictures.keys() >= set(wanted):
        raise Refused("no frames, or one that does not come out")
    frames = [plain.pictures[time_] for time_ in wanted]
    return np.stack([np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90) % 4) for f in frames])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise Refused("no video")
            stream.codec_context.thread_count = 1
            yield container, stream
    except (FFmpegError, MemoryError) as error:
        raise Refused(str(error)) from error


def _packets(path: Path) -> list[Any]:
    """All packets; `Refused` if the file breaks off."""
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        if packets and packets[-1].is_corrupt:
            raise Refused("it breaks off in the middle of a packet")
        _check_length(container, stream, max((p.pts for p in packets if p.pts is not None), default=0))
        return packets


class Plain(NamedTuple):
    """Pictures by time (or by number), and the places of packets that are damaged."""

    pictures: dict[int, av.VideoFrame]
    bad: set[int]


def _decoded(path: Path, last: int, wanted: set[int] | None) -> Plain:
    """One picture after the other, up to the packet at place `last`; None: all, by number, and `Refused` for damage."""
    plain, places = Plain({}, set()), dict[int, int]()
    with _opened(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size)
        for place, packet in enumerate([*itertools.islice(packets, last + 1), None]):
            if wanted is not None and packet is not None:
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                places[packet.pts] = place
            try:
                frames = packet.decode() if packet is not None else stream.decode(None)
            except FFmpegError:
                if wanted is None:
                    raise
                plain.bad.add(place)
                continue
            for frame in frames:
                if frame.is_corrupt and wanted is None:
                    raise Refused("a picture is corrupt")
                if frame.is_corrupt:
                    plain.bad.add(places.get(frame.pts, -1))
                plain.pictures.setdefault(len(plain.pictures) if wanted is None else frame.pts, frame)
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
