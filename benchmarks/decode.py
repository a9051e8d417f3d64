"""Time to take 8 frames out of a video: this project's decoding against its own parts switched off, and decord.

    python benchmarks/decode.py --media DIR

One thread everywhere, full-size RGB frames, file in the page cache; opening and finding the frames is included. The
methods take turns; a row of the CSV is the median of `runs`. `decord_alone` is decord as its users call it (one
reader, one get_batch), without the frame table that makes `decord` pick the same frames as `pyav`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from uniego.pipeline.sampling import spread_indices
from uniego.pipeline.video import open_video
from uniego.pipeline.video_decord import DecordVideo, import_decord
from uniego.pipeline.video_pyav import PyAVVideo

PICKS = 8
SHAPES = {"360p": (640, 360), "1080p": (1920, 1080)}
Frames = npt.NDArray[np.uint8]


def _alone(path: str, picks: list[int]) -> Frames:
    decord = import_decord()
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    frames: Frames = reader.get_batch(picks).asnumpy()
    del reader
    return frames


def _with(video: Any, picks: list[int]) -> Frames:
    with video:
        frames: Frames = video.frames(picks)
        return frames


METHODS: dict[str, Callable[[str, list[int]], Frames]] = {
    "pyav": lambda path, picks: _with(PyAVVideo(path), picks),
    "pyav_without_skipping": lambda path, picks: _with(PyAVVideo(path, skip=False), picks),
    "sequential": lambda path, picks: _with(PyAVVideo(path, seek=False, skip=False), picks),
    "decord": lambda path, picks: _with(DecordVideo(path), picks),
    "decord_alone": _alone,
}


def generate(path: Path, size: tuple[int, int], gop: int, frames: int, seed: int) -> Path:
    """A moving cut-out of smoothed noise, H.264 with three B-frames, 30 fps."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = rng.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    canvas = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)
    canvas = (canvas.astype(np.uint16) + rng.integers(0, 64, canvas.shape, dtype=np.uint16)).clip(0, 255)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "x264-params": f"keyint={gop}:min-keyint={gop}:bframes=3:scenecut=0"}
        stream: Any = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            y, x = (int(240 + 200 * turn(number / 40)) for turn in (np.sin, np.cos))
            view = np.ascontiguousarray(canvas[y : y + height, x : x + width]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def measure(path: Path, runs: int) -> list[dict[str, object]]:
    """One row per method for one video."""
    with open_video(path) as video:
        info = video.info
    picks = spread_indices(info.frame_count, PICKS).tolist()
    reference = METHODS["sequential"](str(path), picks)
    taken: dict[str, list[float]] = {name: [] for name in METHODS}
    frames: dict[str, Frames] = {}
    names = list(METHODS)
    for run in range(runs):
        for name in names[run % len(names) :] + names[: run % len(names)]:  # no method always follows another
            begin = time.perf_counter()
            frames[name] = METHODS[name](str(path), picks)
            taken[name].append(time.perf_counter() - begin)
    return [
        {
            "video": path.name,
            "codec": info.codec,
            "size": f"{info.width}x{info.height}",
            "frames": info.frame_count,
            "picks": PICKS,
            "method": name,
            "median_ms": round(statistics.median(times) * 1e3, 1),
            "ratio_to_pyav": round(statistics.median(times) / statistics.median(taken["pyav"]), 2),
            "identical_to_sequential": bool(np.array_equal(frames[name], reference)),
            "runs": runs,
        }
        for name, times in taken.items()
    ]


def machine() -> str:
    """Processor's name and number of cores."""
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0].strip() if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to take 8 frames out of a video.")
    parser.add_argument("--media", default=os.environ.get("UNIEGO_TEST_MEDIA"), help="folder of real videos")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=300, help="length of the generated videos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="CSV file; default benchmarks/results/decode-DATE.csv")
    arguments = parser.parse_args()
    date = datetime.date.today().isoformat()
    out = Path(arguments.out or Path(__file__).parent / "results" / f"decode-{date}.csv")
    real = sorted(Path(arguments.media).rglob("*.m[pk][4v]")) if arguments.media else []
    firsts = {path.parent: path for path in reversed(real)}
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        made = [
            generate(Path(folder) / f"{name}_gop{gop}.mp4", size, gop, arguments.frames, arguments.seed)
            for name, size in SHAPES.items()
            for gop in (12, 250)
        ]
        for path in [*made, *sorted(firsts.values())]:
            for row in measure(path, arguments.runs):
                rows.append({**row, "date": date, "machine": machine(), "seed": arguments.seed})
                print(f"{row['video']:36} {row['method']:22} {row['median_ms']:>9} ms  x{row['ratio_to_pyav']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out)


if __name__ == "__main__":
    main()
