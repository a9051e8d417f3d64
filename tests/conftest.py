"""Fixtures that all tests share: generated videos, a small clip table, real sample videos, isolation."""

from __future__ import annotations

import csv
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import hypothesis
import numpy as np
import psutil
import pytest

FULL = os.environ.get("UNIEGO_TEST_FULL") == "1"
BITS = 10  # binary digits of a frame's number, painted along its top
OUR_ROOMS = ("cache", "datasets", "metrics", "pipeline", "stages", "models", "cli")

hypothesis.settings.register_profile("short", max_examples=30, deadline=None, derandomize=True)
hypothesis.settings.register_profile("full", max_examples=300, deadline=None, print_blob=True)
hypothesis.settings.load_profile("full" if FULL else "short")


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the heavy tests run their full counts (`make test-all`) instead of reduced ones."""
    return FULL


@pytest.fixture(scope="session")
def media() -> Path:
    """The folder of real sample videos; without UNIEGO_TEST_MEDIA the test is skipped."""
    folder = os.environ.get("UNIEGO_TEST_MEDIA")
    if not folder:
        pytest.skip("UNIEGO_TEST_MEDIA does not name a folder of sample videos")
    if not Path(folder).is_dir():
        pytest.fail(f"UNIEGO_TEST_MEDIA={folder} is no folder")
    return Path(folder)


def paint(number: int, width: int, height: int, hue: int = 0) -> np.ndarray:
    """Frame `number`, uint8 [H, W, 3]: its binary digits along the top, a moving square below."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[:] = ((hue * 67 + 40) % 200, (hue * 131 + 90) % 200, (hue * 29 + 60) % 200)
    top, side = height // 4, max(height // 4, 2)
    for bit in range(BITS):
        frame[:top, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    left = (number * 3) % max(width - side, 1)
    frame[top + top // 2 : top + top // 2 + side, left : left + side] = 230
    return frame


@pytest.fixture(scope="session")
def frame_number() -> Callable[[np.ndarray], int]:
    """Reads the number that `make_video` painted into a frame, uint8 [H, W, 3]."""

    def read(frame: np.ndarray) -> int:
        height, width = frame.shape[:2]
        strip = frame[: height // 4].astype(float).mean(axis=(0, 2))
        middles = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
        return sum(int(strip[middle] > 127) << bit for bit, middle in enumerate(middles))

    return read


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, frames=20, fps=10, size=(64, 48), hue=0, codec="libx264", gop=12, times=None)`.

    Returns `path`. `size` is (width, height); `times` are presentation times in milliseconds, for a variable
    frame rate. Every frame carries its number (see `frame_number`), up to 1023.
    """

    def make(
        path: Path,
        frames: int = 20,
        fps: int | Fraction = 10,
        size: tuple[int, int] = (64, 48),
        hue: int = 0,
        codec: str = "libx264",
        gop: int = 12,
        times: list[int] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=fps)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(paint(number, *size, hue), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture(scope="session")
def children() -> Callable[[], list[psutil.Process]]:
    """`children()`: the decoder processes of this process."""
    return _decoders


@pytest.fixture(scope="session")
def at_work() -> Callable[..., AbstractContextManager[list[int]]]:
    """`with at_work(path, act, times) as seen`: `act(process)` with so many decoder processes that have `path` open."""
    return _at_work


def _decoders() -> list[psutil.Process]:
    """Decoder processes of this process."""
    return [p for p in psutil.Process().children() if "decoder_child" in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


@contextmanager
def _at_work(path: str, act: Callable[[psutil.Process], None], times: int) -> Iterator[list[int]]:
    """Do something to a decoder process that has `path` open, to so many processes; gives their ids."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while len(seen) < times and not ended.wait(0.002):
            for process in _decoders():
                with suppress(psutil.Error):
                    if process.pid not in seen and any(f.path == path for f in process.open_files()):
                        seen.append(process.pid)
                        act(process)
                        break

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="session")
def clip_table(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A table of 12 generated clips (8 train, 4 test; 2 classes). Read only: several tests share it.

    Each row has an ego video; row 3 has no exo video, rows 2, 3 and 7 no poses. Clips 10 and 11 are the two
    halves of one long pair. Poses are float32 [persons 1, frames 20, joints 17, (x, y, score)] in pixels.
    """
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number in range(12):
        hue, half = number % 2, number - 10 if number >= 10 else None
        ego = "ego/long.mp4" if half is not None else f"ego/{number:02d}.mp4"
        exo = None if number == 3 else ego.replace("ego", "exo")
        pose = None if number in {2, 3, 7} else f"pose/{number:02d}.npy"
        frames = 20 if half is None else 40
        if half != 1:
            make_video(folder / ego, frames=frames, hue=hue)
        if exo and half != 1:
            make_video(folder / exo, frames=frames, size=(80, 48), hue=hue + 2)
        if pose:
            (folder / "pose").mkdir(exist_ok=True)
            points = rng.uniform((5, 5, 0.5), (75, 43, 1.0), (1, 20, 17, 3)).astype(np.float32)
            np.save(folder / pose, points)
        rows.append(
            {
                "clip_id": f"clip{number:02d}",
                "split": "test" if number % 3 == 2 else "train",
                "label": ["lift", "turn"][hue],
                "ego_path": ego,
                "exo_path": exo,
                "start_s": None if half is None else 2.0 * half,
                "end_s": None if half is None else 2.0 * half + 2.0,
                "pose_path": pose,
            }
        )
    path = folder / "clips.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def _isolated_random_state() -> Iterator[None]:
    """What a test does to the global random streams of Python, numpy and torch ends with it."""
    torch: Any = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    if torch:
        torch.set_rng_state(before[2])


@pytest.fixture(autouse=True)
def _one_copy_of_everything() -> Iterator[None]:
    """Nothing imports a room from the repository's root: that would be a second copy of every class."""
    yield
    twice = [name for name in OUR_ROOMS if _is_ours(sys.modules.get(name))]
    assert not twice, f"imported without the package: {twice}; write uniego.{twice[0]}"


def _is_ours(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(Path(__file__).parents[1])
