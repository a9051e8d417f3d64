"""What extraction gains by decoding once, by overlapping, by sparse decoding, and by a second worker.

    python benchmarks/extract.py --media DIR

Everything runs with one thread a process, on files in the page cache; the sides of a comparison take turns, and a row
of the CSV is the median of `runs`. Give it an idle machine of two cores or more. What is compared:

* once: all teachers of one view that watch video, small networks' preparation included, from one decoding of 8 frames,
  against one decoding per teacher.
* overlap: decoding alone on one core, preparing and computing alone on one core, and both at once on two; the network
  is chosen to take about as long as decoding. `ratio` is both at once over the longer of the two.
* sparse: 8 frames out of a video by this package, decord and sequential PyAV (see decode.py); `ratio` is the time of
  the other over ours.
* workers: shards of one cache by two processes against one, each held to one core, starting not counted.
* gpu: frames/s of the image teachers of the published size with random weights, where there is a GPU.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import decode as sparse
import torch
from torch import Tensor, nn
from uniego.cache import ArraySpec, ClipIndex, FeatureStore
from uniego.models.teachers import Teacher, TeacherConfig, build_teacher, tiny_teachers
from uniego.models.teachers.preprocess import for_network
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import RunConfig
from uniego.pipeline.decode import DecodeJob
from uniego.pipeline.decoders import Decoders
from uniego.pipeline.poses import Pose
from uniego.pipeline.presets import preset
from uniego.pipeline.progress import Meter
from uniego.pipeline.rundir import Run
from uniego.pipeline.signals import StopFlag
from uniego.stages.extraction import extract_shards
from uniego.stages.inputs import prepare_clip
from uniego.stages.shard_work import ShardWork
from uniego.stages.targets import row_keys

WATCHING = ("exo_rgb", "exo_siglip", "exo_depth", "exo_dino")
REAL = ("multiview_caliscope/4_cam_recording/cam_3.mp4", "multiview_pose2sim/single/cam01.mp4")
SHAPES = {"448p": (796, 448), "1080p": (1920, 1080)}
GPU = {  # published sizes; frames/s that one H200 could do at its measured bf16 rate
    "dinov2": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}, 4876),
    "siglip": (
        {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
        | {"patch_size": 14, "image_size": 384},
        1185,
    ),
    "depth_anything": (
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
        779,
    ),
}
Row = dict[str, object]


def clip_of(path: Path, number: int = 0) -> Clip:
    return Clip(f"clip{number:04d}", "train", 0, path, path, None, None, None, {}, {"ego": str(path)})


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def in_turns(sides: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each side; no side always follows another."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for run in range(runs + 1):  # the first warms up
        for name in names[run % len(names) :] + names[: run % len(names)]:
            took = seconds(sides[name])
            if run:
                taken[name].append(took)
    return {name: statistics.median(times) for name, times in taken.items()}


def decode_once(paths: list[Path], runs: int) -> Iterator[Row]:
    teachers = [build_teacher(key, tiny_teachers()[key]) for key in WATCHING]
    for path in paths:
        clip = clip_of(path)
        times = in_turns(
            {
                "once": lambda clip=clip: prepare_clip(clip, teachers, "pyav"),  # type: ignore[misc]
                "each": lambda clip=clip: [prepare_clip(clip, [t], "pyav") for t in teachers],  # type: ignore[misc]
            },
            runs,
        )
        yield {"part": "once", "case": path.name, "ours_s": times["once"], "other_s": times["each"]} | {
            "ratio": times["each"] / times["once"],
            "goal": ">= 2.5",
        }


class Busy(Teacher):
    """Resizes to 224 pixels, then multiplies matrices as often as it is told."""

    reads = "clip"

    def __init__(self, products: int) -> None:
        config = TeacherConfig(network="benchmark:Busy", frames=8)
        super().__init__("ego_busy", "ego", config, nn.Linear(512, 512), 1)
        self.products, self._preprocess = products, for_network("dinov2", 224, 14)

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        return self._preprocess.frames(self._checked_frames(frames))

    def forward(self, batch: Tensor) -> Tensor:
        values = torch.full((512, 512), 1e-3)
        for _ in range(self.products * len(batch)):
            values = self.module(values).tanh()
        return values[: len(batch), :1, None]

    def preprocessing(self) -> dict[str, Any]:
        return {}

    def architecture(self) -> dict[str, Any]:
        return {}


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Hold this process, and those that it starts, to the first `count` of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def configured(workers: int) -> RunConfig:
    config = preset("tiny")
    return config.model_copy(update={"compute": config.compute.model_copy(update={"workers": workers})})


def balanced(computing: Callable[[Busy], None], decoding: Callable[[], None]) -> int:
    """How many products a clip make computing take as long as decoding; quickest of three, since others only slow."""

    def quickest(act: Callable[[], object]) -> float:
        return min(seconds(act) for _ in range(3))

    none, some = (quickest(lambda n=n: computing(Busy(n))) for n in (0, 100))  # type: ignore[misc]
    return max(1, round(100 * (quickest(decoding) - none) / (some - none)))


def overlap(paths: list[Path], clips: int, runs: int) -> Iterator[Row]:
    for path in paths:
        table = {row: clip_of(path, row) for row in range(clips)}
        jobs = [DecodeJob(str(path), None, None, (8,))] * clips

        def decoding(jobs: list[DecodeJob] = jobs) -> None:
            with cores(1), Decoders(jobs, 1) as decoders:
                for _ in decoders:
                    pass

        def both(teacher: Busy, table: dict[int, Clip] = table) -> None:
            with cores(2), ShardWork(configured(1), table) as work, StopFlag() as flag:
                work.run(range(clips), [teacher], flag)

        frames = torch.from_numpy(next(Decoders(jobs[:1], 0)).frames)

        def computing(teacher: Busy, frames: Tensor = frames) -> None:
            with cores(1):
                for _ in range(clips // 4):
                    teacher.features([teacher.prepare(frames) for _ in range(4)])

        teacher = Busy(balanced(computing, decoding))
        times = in_turns(
            {
                "decode": decoding,
                "compute": lambda teacher=teacher: computing(teacher),  # type: ignore[misc]
                "both": lambda teacher=teacher: both(teacher),  # type: ignore[misc]
            },
            runs,
        )
        longer = max(times["decode"], times["compute"])
        note = f"decode {times['decode']:.2f} s, compute {times['compute']:.2f} s"
        yield {"part": "overlap", "case": path.name, "ours_s": times["both"], "other_s": longer} | {
            "ratio": times["both"] / longer,
            "goal": "<= 1.15",
            "note": note,
        }


def sparse_picks(paths: list[Path], runs: int) -> Iterator[Row]:
    for path in paths:
        rows = {row["method"]: row for row in sparse.measure(path, runs)}
        ours = rows["pyav"]
        if not ours["identical_to_sequential"]:
            raise SystemExit(f"{path}: other frames than by sequential decoding")
        for name in ("decord_alone", "sequential"):
            other, mine = float(rows[name]["median_ms"]) / 1e3, float(ours["median_ms"]) / 1e3
            long = name == "decord_alone" and "1080p_gop250" in path.name
            yield {"part": "sparse", "case": f"{path.name}, {name}", "ours_s": mine, "other_s": other} | {
                "ratio": other / mine,
                "goal": ">= 1.4" if long else ">= 0.95",
            }


def work_of(folder: Path, task: int, tasks: int) -> None:
    """A worker: gets ready, says so, waits for the word, and does its share of the shards."""
    torch.set_num_threads(1)
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[task % len(allowed)]})
    run = Run.open(folder / "run")
    table = run.table().clips
    teachers = {key: build_teacher(key, run.config.teachers[key]) for key in ("ego_dino",)}
    index = ClipIndex.plan(run.cache_root, row_keys(run, table), 8)
    clips = dict(zip(index.rows(row_keys(run, table)).tolist(), table, strict=True))
    arrays = {"features": ArraySpec((teachers["ego_dino"].rows, teachers["ego_dino"].dim), "float16", ("t", "d"))}
    stores = {"ego_dino": FeatureStore.create(run.cache_root / "ego_dino", index, arrays, {}, {}, f"w{task}")}
    pending = {shard: ["ego_dino"] for shard in range(index.num_shards) if shard % tasks == task}
    print("ready", flush=True)
    sys.stdin.readline()
    with StopFlag() as flag, Meter("worker", len(clips)) as meter:
        extract_shards(run, pending, index, clips, teachers, stores, torch.device("cpu"), flag, meter)
    print("done", flush=True)


def workers_time(folder: Path, video: Path, clips: int, tasks: int) -> float:
    """Seconds from the word to the last worker's end."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        rows = [f"clip{n:04d},train,move,{video}" for n in range(clips)]
        (root / "clips.csv").write_text("\n".join(["clip_id,split,label,ego_path", *rows]) + "\n")
        command = [sys.executable, "-m", "uniego", "init", str(root / "run"), "--data", str(root / "clips.csv")]
        subprocess.run([*command, "--preset", "tiny"], check=True, capture_output=True)
        Run.open(root / "run").record_sources()
        mine = [sys.executable, __file__, "--worker", str(root)]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        processes = [subprocess.Popen([*mine, str(task), str(tasks)], **pipes) for task in range(tasks)]
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise SystemExit("a worker did not start")
        begin = time.perf_counter()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            if process.stdout.readline() != "done\n":
                raise SystemExit("a worker failed")
        took = time.perf_counter() - begin
        for process in processes:
            process.communicate()
        return took


def two_workers(folder: Path, video: Path, clips: int, runs: int) -> Iterator[Row]:
    taken: dict[int, list[float]] = {1: [], 2: []}
    for run in range(runs):
        for tasks in (1, 2) if run % 2 else (2, 1):
            taken[tasks].append(workers_time(folder, video, clips, tasks))
    one, two = (statistics.median(taken[tasks]) for tasks in (1, 2))
    yield {"part": "workers", "case": f"{clips} clips of {video.name}", "ours_s": two, "other_s": one} | {
        "ratio": one / two,
        "goal": ">= 1.8",
    }


def gpu(runs: int) -> Iterator[Row]:
    if not torch.cuda.is_available():
        return
    for network, (architecture, ceiling) in GPU.items():
        config = TeacherConfig(network=network, weights="random:0", architecture=architecture, allow_random=True)
        teacher = build_teacher(f"ego_{network}", config, "cuda")
        teacher.precision = "bf16"
        frames = torch.randint(0, 256, (8, 448, 796, 3), dtype=torch.uint8, device="cuda")
        batch = [teacher.prepare(frames)] * 16

        def go(teacher: Teacher = teacher, batch: list[Tensor] = batch) -> None:
            teacher.features(batch).cpu()

        rate = 16 * 8 / in_turns({"forward": go}, runs)["forward"]
        note = f"{rate:.0f} frames/s on {torch.cuda.get_device_name()}; an H200 could do {ceiling}"
        yield {"part": "gpu", "case": network, "ours_s": 128 / rate, "other_s": 128 / ceiling} | {
            "ratio": rate / ceiling,
            "goal": ">= 0.6 on an H200",
            "note": note,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="What extraction gains by its design.")
    parser.add_argument("--media", default=os.environ.get("UNIEGO_TEST_MEDIA"), help="folder of real videos")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", type=int, default=300, help="length of the generated videos")
    parser.add_argument("--clips", type=int, default=32, help="clips of overlap and workers")
    parser.add_argument("--only", default="once,overlap,sparse,workers,gpu", help="parts, separated by commas")
    parser.add_argument("--out", default=None, help="CSV file; default benchmarks/results/extract-DATE.csv")
    parser.add_argument("--worker", nargs=3, metavar=("DIR", "I", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work_of(Path(arguments.worker[0]), int(arguments.worker[1]), int(arguments.worker[2]))
        return
    torch.set_num_threads(1)
    date, load = datetime.date.today().isoformat(), round(os.getloadavg()[0], 1)
    out = Path(arguments.out or Path(__file__).parent / "results" / f"extract-{date}.csv")
    runs, rows = arguments.runs, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            (shape, gop): sparse.generate(folder / f"{shape}_gop{gop}.mp4", size, gop, arguments.frames, 0)
            for shape, size in SHAPES.items()
            for gop in (12, 250)
        }
        real = [Path(arguments.media) / path for path in REAL] if arguments.media else []
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "once": lambda: decode_once([*made.values(), *real], runs),
            "overlap": lambda: overlap([made["448p", 12]], arguments.clips, runs),
            "sparse": lambda: sparse_picks([*made.values(), *real], runs),
            "workers": lambda: two_workers(folder, made["448p", 12], arguments.clips, runs),
            "gpu": lambda: gpu(runs),
        }
        for part in arguments.only.split(","):
            for row in parts[part]():
                row |= {key: round(float(str(row[key])), 4) for key in ("ours_s", "other_s", "ratio")}
                rows.append({"note": "", **row, "runs": runs, "date": date, "machine": sparse.machine(), "load": load})
                print(f"{row['part']:8} {row['case']:36} x{row['ratio']:<8} {row['goal']:8} {row.get('note', '')}")
    if not rows:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out)


if __name__ == "__main__":
    main()
