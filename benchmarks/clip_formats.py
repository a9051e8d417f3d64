"""What a clip store could be made of: bytes per frame, time to read 8 random frames, and what is lost.

    python benchmarks/clip_formats.py --media DIR

Frames of a video at a short side of 320, in one file each (in the page cache), one thread. Reading ends in uint8 RGB
[8, H, W, 3]. The candidates take turns, in
processor time; a row of the CSV is the median of `runs`. `psnr_db` is against the resized
frames themselves.

* jpeg_qQ_420, jpeg_qQ_444: JPEG by Pillow, with halved and with full colour resolution, out of one packed file;
  jpeg_q90_444_pyav: the same bytes decoded by FFmpeg; jpeg_q90_444_zarr: the same bytes in Zarr, a frame a chunk.
* raw_zarr: pixels, a frame a chunk, no compression. raw_file: pixels in one file.
* h264_intra: a video of key frames only (crf 18), read as this package reads videos.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
import zarr
from av.video.reformatter import VideoReformatter
from decode import machine
from PIL import Image
from uniego.pipeline.augment import shrink
from uniego.pipeline.jpeg import decode, encode
from uniego.pipeline.video import open_video

PICKS, MOST, SHORT_SIDE = 8, 96, 320
Frames = npt.NDArray[np.uint8]
Read = Callable[[npt.NDArray[np.int64]], Frames]


def _packed(path: Path, images: list[bytes]) -> Callable[[npt.NDArray[np.int64]], list[bytes]]:
    path.write_bytes(b"".join(images))
    ends = np.cumsum([0, *map(len, images)]).tolist()

    def read(picks: npt.NDArray[np.int64]) -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), ends[i + 1] - ends[i], ends[i]) for i in picks.tolist()]

    return read


def _halved(frame: Frames, quality: int, folder: Path) -> bytes:
    Image.fromarray(frame).save(folder / "one.jpg", quality=quality, subsampling=2)
    return (folder / "one.jpg").read_bytes()


def _by_ffmpeg(images: list[bytes]) -> Frames:
    context, reformatter = av.CodecContext.create("mjpeg", "r"), VideoReformatter()
    context.thread_count = 1
    pictures = [context.decode(av.Packet(image))[0] for image in images]
    return np.stack([reformatter.reformat(picture, format="rgb24").to_ndarray() for picture in pictures])


def candidates(frames: Frames, folder: Path) -> dict[str, tuple[float, Read]]:
    """{name: (bytes per frame, how to read)}, all written into `folder`."""
    count, height, width, _ = frames.shape
    found: dict[str, tuple[float, Read]] = {}

    def jpeg(name: str, images: list[bytes], decoder: Callable[[list[bytes]], Frames] | None = None) -> None:
        read = _packed(folder / name, images)
        how = decoder or (lambda data: decode(data, height, width))
        found[name] = float(np.mean([len(image) for image in images])), lambda picks: how(read(picks))

    for quality in (85, 90, 92, 95):
        jpeg(f"jpeg_q{quality}_420", [_halved(frame, quality, folder) for frame in frames])
        jpeg(f"jpeg_q{quality}_444", [encode(frame, quality) for frame in frames])
    images = [encode(frame, 90) for frame in frames]
    jpeg("jpeg_q90_444_pyav", images, _by_ffmpeg)
    small: Any = zarr.create_array(folder / "jpeg.zarr", shape=(count,), chunks=(1,), dtype="bytes", compressors=None)
    small[:] = np.array(images, dtype=object)
    size = float(np.mean([len(image) for image in images]))
    found["jpeg_q90_444_zarr"] = size, lambda picks: decode([bytes(x) for x in small.oindex[picks]], height, width)
    raw: Any = zarr.create_array(
        folder / "raw.zarr", shape=frames.shape, chunks=(1, *frames.shape[1:]), dtype="uint8", compressors=None
    )
    raw[:] = frames
    found["raw_zarr"] = float(frames[0].nbytes), lambda picks: np.asarray(raw.oindex[picks])
    (folder / "raw").write_bytes(frames.tobytes())
    plain = np.memmap(folder / "raw", np.uint8, "r", shape=frames.shape)
    found["raw_file"] = float(frames[0].nbytes), lambda picks: plain[picks]
    found["h264_intra"] = _intra(frames[:, : height // 2 * 2, : width // 2 * 2], folder / "intra.mp4")
    return found


def _intra(frames: Frames, path: Path) -> tuple[float, Read]:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "18", "g": "1"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))

    def read(picks: npt.NDArray[np.int64]) -> Frames:
        with open_video(path) as video:
            return video.frames(picks.tolist())

    return path.stat().st_size / len(frames), read


def measure(path: Path, runs: int, seed: int) -> list[dict[str, object]]:
    """One row per candidate for one video."""
    rng = np.random.default_rng(seed)
    with open_video(path) as video:
        kept: dict[int, Frames] = {}
        wanted = np.arange(min(MOST, video.info.frame_count))
        video.each(wanted, lambda place, picture: kept.update({place: shrink(picture[None], SHORT_SIDE)[0]}))
    frames = np.stack([kept[place] for place in range(len(kept))])
    with tempfile.TemporaryDirectory() as folder:
        ways = candidates(frames, Path(folder))
        taken: dict[str, list[float]] = {name: [] for name in ways}
        loss: dict[str, float] = {}
        names = list(ways)
        for turn in range(runs + 1):
            picks = np.sort(rng.choice(len(frames), PICKS, replace=False))
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                begin = time.process_time()
                read = np.asarray(ways[name][1](picks))
                taken[name].append(time.process_time() - begin)
                wanted_frames = frames[picks][:, : read.shape[1], : read.shape[2]].astype(np.float32)
                loss[name] = float(np.mean((read.astype(np.float32) - wanted_frames) ** 2))
    return [
        {
            "video": path.name,
            "size": f"{frames.shape[2]}x{frames.shape[1]}",
            "format": name,
            "kb_per_frame": round(size / 1e3, 1),
            "read_8_ms": round(statistics.median(taken[name][1:]) * 1e3, 2),
            "psnr_db": round(10 * np.log10(255**2 / loss[name]), 1) if loss[name] else "inf",
            "runs": runs,
        }
        for name, (size, _) in ways.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a clip store could be made of.")
    parser.add_argument("--media", default=os.environ.get("UNIEGO_TEST_MEDIA"), help="folder of real videos")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="CSV file; default benchmarks/results/clip_formats-DATE.csv")
    arguments = parser.parse_args()
    if not arguments.media:
        parser.error("what a format loses shows on real videos only: --media, or UNIEGO_TEST_MEDIA")
    torch.set_num_threads(1)
    date = datetime.date.today().isoformat()
    out = Path(arguments.out or Path(__file__).parent / "results" / f"clip_formats-{date}.csv")
    firsts = {path.parent: path for path in sorted(Path(arguments.media).rglob("*.mp4"), reverse=True)}
    load_before = round(os.getloadavg()[0], 2)
    rows: list[dict[str, object]] = []
    for path in sorted(firsts.values()):
        with open_video(path) as video:
            few = video.info.frame_count < PICKS
        for row in [] if few else measure(path, arguments.runs, arguments.seed):
            rows.append({**row, "date": date, "machine": machine(), "load_before": load_before, "seed": arguments.seed})
            print(f"{row['video']:36} {row['format']:20} {row['kb_per_frame']:>7} kB {row['read_8_ms']:>7} ms")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
