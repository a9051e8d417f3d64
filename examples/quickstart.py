"""The whole road on a few generated videos: a clip table, then the five commands, then an embedding.

    python examples/quickstart.py [FOLDER]      (default: demo/)

The videos show a bright square that moves in one of four directions, seen from near ("ego") and far ("exo").
The teachers are the `tiny` preset's small random networks: this shows that the parts fit, not that they learn.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import uniego

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
FRAMES, FPS, SIDE = 48, 24, 96
UNIEGO = [sys.executable, "-m", "uniego"]


def scene(direction: str, zoom: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] of one square moving over noise; `zoom` is its size and speed."""
    frames = rng.integers(0, 60, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    step, side = np.array(DIRECTIONS[direction]) * zoom, int(10 * zoom)
    start = rng.uniform(0.35, 0.65, 2) * SIDE - step * FRAMES * 0.2
    for t, frame in enumerate(frames):
        y, x = np.clip(start + step * t * 0.4, 0, SIDE - side).astype(int)
        frame[y : y + side, x : x + side] = (230, 200, 90)
    return frames


def write_video(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """H.264 in mp4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_pose(path: Path, direction: str, rng: np.random.Generator) -> None:
    """A walking point cloud of 17 joints, float32 [1, T, 17, 3] (x, y in pixels, score)."""
    joints = rng.uniform(0.3, 0.7, (17, 2)) * SIDE
    steps = np.arange(FRAMES)[:, None] * np.array(DIRECTIONS[direction])[::-1] * 0.4  # [T,2] as x, y
    pose = joints[None] + steps[:, None] + rng.normal(0, 0.5, (FRAMES, 17, 2))
    np.save(path, np.concatenate((pose, np.ones((FRAMES, 17, 1))), axis=-1)[None].astype(np.float32))


def make_data(folder: Path, clips: int = 24) -> Path:
    """Videos, poses and the clip table; returns the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(clips):
        direction = list(DIRECTIONS)[i % 4]
        rng = np.random.default_rng(i)
        name = f"clip{i:02d}"
        write_video(folder / f"{name}_near.mp4", scene(direction, 2.0, rng))
        write_video(folder / f"{name}_far.mp4", scene(direction, 1.0, rng))
        write_pose(folder / f"{name}_pose.npy", direction, rng)
        split = "test" if i >= clips * 2 // 3 else "train"
        rows.append([name, split, direction, f"{name}_near.mp4", f"{name}_far.mp4", f"{name}_pose.npy"])
    table = folder / "clips.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["clip_id", "split", "label", "ego_path", "exo_path", "pose_path"])
        writer.writerows(rows)
    return table


def main() -> None:
    """Make the data if it is not there, run the five commands, embed one video."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    run, table = root / "run", root / "data" / "clips.csv"
    started = time.monotonic()
    if not table.exists():
        make_data(table.parent)
    commands = [["extract-teachers"], ["train-proxies"], ["distill"], ["evaluate"], ["status"]]
    if not (run / "run.yaml").exists():
        subprocess.run([*UNIEGO, "init", run, "--data", table, "--preset", "tiny"], check=True)
    for command in commands:
        print(f"\n$ uniego {' '.join(command)} --run {run}", flush=True)
        subprocess.run([*UNIEGO, *command, "--run", run], check=True)
    embedding = uniego.load(run).encode(table.parent / "clip00_near.mp4")
    print(f"\nembedding of clip00_near.mp4: {tuple(embedding.shape)}, norm {embedding.norm():.3f}")
    print(f"done in {time.monotonic() - started:.0f} s; everything lies in {root}")


if __name__ == "__main__":
    main()
