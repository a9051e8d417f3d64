"""Training views per second and core: out of the clip store, out of the videos, and as the released code decodes.

    python benchmarks/data.py --media DIR

All three go through the loader of training (`stages.batches.load`, in one process, one thread, files in the page cache)
and end in the same crop; they differ in where eight frames come from:

* published: the released code's decoding, written to its behaviour: seek before the window of 8.53 s, decode every
  frame of it, convert all of them to RGB, keep eight.
* videos: this package from the videos: only the frames drawn are converted, pictures nobody needs are skipped.
* store: this package from the clip store.

They take turns on the same clip; a row of the CSV is the median of `runs`. Times are processor time, so that others on
the machine count little; waiting for a disk is not in them. `store_2_workers` is the store through two loader
processes, theirs and the main one's time together, after they have started.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import psutil
import torch
from decode import generate, machine
from uniego.pipeline import sampling
from uniego.pipeline.clips import Clip
from uniego.pipeline.configfile import with_overrides
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.stages.batches import ClipReader, load
from uniego.stages.clip_source import training_reader
from uniego.stages.prepare_clips import prepare_clips

SHAPES = {("448p", 12): (796, 448), ("448p", 250): (796, 448), ("1080p", 12): (1920, 1080)}  # size by name and GOP
SEEK_MARGIN = 1024  # time units by which the released code seeks before the start


class Published(ClipReader):
    """A reader that decodes as the released code does; the crop is this package's."""

    def frames(self, clip: Clip, positions: Sequence[tuple[float, float]]) -> list[npt.NDArray[np.uint8]]:
        return [_published(str(clip.ego_path), start, self.num_frames, self.rate) for start, _ in positions]


def _published(path: str, fraction: float, count: int, rate: int) -> npt.NDArray[np.uint8]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        fps, total = float(stream.average_rate), stream.frames
        length = sampling.window_length(fps, count, rate)
        start = sampling.window_start(total, fps, fraction, count, rate)
        unit = stream.duration / total
        first, last = int(start * unit), int((start + length - 1) * unit)
        container.seek(max(first - SEEK_MARGIN, 0), any_frame=False, backward=True, stream=stream)
        kept = {}
        for picture in container.decode(stream):
            if picture.pts < first:
                continue
            kept[picture.pts] = picture
            if picture.pts >= last:
                break
        frames = torch.as_tensor(np.stack([kept[pts].to_rgb().to_ndarray() for pts in sorted(kept)]))
    picks = torch.linspace(0, length - 1, count).clamp(0, len(frames) - 1).long()
    return torch.index_select(frames, 0, picks).numpy()


def measure(path: Path, runs: int, seed: int, folder: Path) -> list[dict[str, object]]:
    """One row per method for one video."""
    run = _run(path, folder, seed)
    prepare_clips(run)
    clips = run.table().split("train")
    published = Published(**vars(ClipReader.from_config(run.config)))
    readers = {"published": published, "videos": ClipReader.from_config(run.config), "store": training_reader(run)}
    streams = {name: load(reader, clips, _batches()) for name, reader in readers.items()}
    taken: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for turn in range(runs + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            batch = next(streams[name])
            taken[name].append(time.process_time() - begin)
            assert len(batch.rows) == 1
    medians = {name: statistics.median(times[1:]) for name, times in taken.items()}  # the first opens files
    medians["store_2_workers"] = _with_workers(readers["store"], clips, runs)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shape = {"size": f"{stream.width}x{stream.height}", "fps": round(float(stream.average_rate), 2)}
    return [
        {
            "video": path.name,
            **shape,
            "method": name,
            "cpu_ms_per_clip": round(median * 1e3, 1),
            "clips_per_s_per_core": round(1 / median, 2),
            "times_published": round(medians["published"] / median, 2),
            "runs": runs,
        }
        for name, median in medians.items()
    ]


def _run(path: Path, folder: Path, seed: int) -> Run:
    """A run with the published sizes over one clip, a whole video."""
    folder.mkdir()
    (folder / "clips.csv").write_text(f"clip_id,split,ego_path,label\nclip,train,{path},0\n", encoding="utf-8")
    start = preset("egoexo_fitness")
    config = with_overrides(
        start.model_copy(update={"data": start.data.model_copy(update={"table": "clips.csv", "num_classes": None})}),
        [f"seed={seed}", "clips.source=store", "compute.workers=0"],
    )
    return Run.create(folder, config)


def _batches() -> Any:
    return ([(epoch, 0)] for epoch in itertools.count())


def _with_workers(reader: Any, clips: Sequence[Clip], runs: int) -> float:
    """Median processor seconds of all processes for a clip, over stretches of 32 clips."""
    stream = load(reader, clips, _batches(), workers=2)
    for _ in range(8):
        next(stream)
    taken = []
    for _ in range(runs):
        begin = _processor_time()
        for _ in range(32):
            next(stream)
        taken.append((_processor_time() - begin) / 32)
    return statistics.median(taken)


def _processor_time() -> float:
    """Of this process and its children, seconds."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training views per second and core.")
    parser.add_argument("--media", default=os.environ.get("UNIEGO_TEST_MEDIA"), help="folder of real videos")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=300, help="length of the generated videos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="CSV file; default benchmarks/results/data-DATE.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    date = datetime.date.today().isoformat()
    out = Path(arguments.out or Path(__file__).parent / "results" / f"data-{date}.csv")
    real = sorted(Path(arguments.media).rglob("*.mp4")) if arguments.media else []
    firsts = {path.parent: path for path in reversed(real)}
    rows: list[dict[str, object]] = []
    load_before = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        made = [
            generate(Path(folder) / f"{name}_gop{gop}.mp4", size, gop, arguments.frames, arguments.seed)
            for (name, gop), size in SHAPES.items()
        ]
        for number, path in enumerate([*made, *sorted(firsts.values())]):
            for row in measure(path, arguments.runs, arguments.seed, Path(folder) / f"run{number}"):
                rows.append(
                    {**row, "date": date, "machine": machine(), "load_before": load_before, "seed": arguments.seed}
                )
                print(f"{row['video']:36} {row['method']:16} {row['cpu_ms_per_clip']:>8} ms  x{row['times_published']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
