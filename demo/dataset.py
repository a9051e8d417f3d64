"""The rendered world as a data set on disk, the way a user would have one.

DATA/clips.csv                          the clip table: clips are time segments of untrimmed videos
DATA/videos/<person>_{ego,exo}.mp4      one long take per person and view, H.264, one clock for both
DATA/poses/<person>_exo.pkl             2-D skeletons in the PYSKL format, exact plus noise
DATA/poses_3d/<person>.npy              float32 [T, 17, 3] metres, exact plus noise (an extra)
DATA/depth/<person>_{ego,exo}.zarr      uint16 [T, H, W] millimetres, exact plus noise (an extra)
DATA/groundTruth/<person>_ego.txt       one class per frame, "background" between actions
DATA/mapping.txt, splits/*.bundle       the segmentation layout's classes and splits
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import zarr

from ..errors import UsageError
from .world import ACTIONS, VIEWS, Frames, View, render, sample_scene, sample_subject

FPS = 10
BACKGROUND = "background"
_DOMAIN = 0xDA7A  # keeps these people apart from those that the demo's teachers learned from
_IDLE = (0.3, 0.7)  # seconds of idling before and after an action
_COLUMNS = ("clip_id", "split", "label", "ego_path", "exo_path", "start_s", "end_s", "pose_path", "subject")


@dataclass(frozen=True)
class Segment:
    """An action in a take: frames first..end (exclusive)."""

    action: str
    first: int
    end: int


@dataclass(frozen=True)
class Take:
    """One person's long recording: T frames from both views, and where the actions are."""

    name: str
    test: bool
    segments: tuple[Segment, ...]
    views: dict[View, Frames]

    @property
    def split(self) -> str:
        """ "test" for every third person, "train" for the others."""
        return "test" if self.test else "train"

    def labels(self) -> list[str]:
        """Class of every frame, spaces as underscores."""
        names = [BACKGROUND] * len(self.views["ego"].rgb)
        for segment in self.segments:
            for frame in range(segment.first, segment.end):
                names[frame] = segment.action.replace(" ", "_")
        return names


def write_dataset(
    folder: Path,
    *,
    seed: int = 0,
    clips: int = 240,
    size: int = 96,
    actions: Sequence[str] = ACTIONS,
    extras: bool = True,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Render `clips` clips of `size` x `size` pixels into `folder` and return the clip table's path.

    A person performs every one of `actions` once, in random order. People do not cross splits. One seed gives the same
    frames, whatever `workers` (None: all cores); `progress` is called with the number of clips of each take that is
    done. Without `extras` there are no depths and no 3-D poses, and the noise of the skeletons is another one. Raises
    `UsageError` for fewer than three takes' clips.
    """
    whole = len(actions)
    if clips < 3 * whole:
        raise UsageError(f"{clips} clips are too few: at least {3 * whole}, so that both splits have every action")
    for name in ("videos", "poses", *(("poses_3d", "depth") if extras else ()), "groundTruth", "splits"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    takes = -(-clips // whole)
    counts = [min(whole, clips - whole * number) for number in range(takes)]
    rows: list[list[object]] = []
    bundles: dict[str, list[str]] = {"train": [], "test": []}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(takes, workers or os.cpu_count() or 1), context) as pool:
        write = partial(_write_take, folder, seed, size=size, actions=tuple(actions), extras=extras)
        for take_rows in pool.map(write, range(takes), counts):
            rows += take_rows
            bundles[str(take_rows[0][1])].append(f"{Path(str(take_rows[0][3])).stem}.txt")
            if progress is not None:
                progress(len(take_rows))
    _write_segmentation(folder, actions, bundles)
    table = folder / "clips.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return table


def make_take(
    seed: int, number: int, *, clips: int | None = None, size: int = 96, actions: Sequence[str] = ACTIONS
) -> Take:
    """Take `number` of the data set of `seed`, rendered: a function of its arguments alone.

    It has every one of `actions`, or the first `clips` of their random order.
    """
    rng = np.random.default_rng((_DOMAIN, seed, number))
    person = sample_subject(rng)
    parts: dict[View, list[Frames]] = {view: [] for view in VIEWS}
    segments, at = [], 0
    for action in rng.permutation(actions)[:clips]:
        scene = sample_scene(rng, str(action), person)
        before, during, after = (round(s * FPS) for s in (rng.uniform(*_IDLE), scene.duration, rng.uniform(*_IDLE)))
        times = (np.arange(-before, during + after) + 0.5) / FPS
        for view in VIEWS:
            parts[view].append(render(scene, times, view, size))
        segments.append(Segment(str(action), at + before, at + before + during))
        at += len(times)
    views = {view: _join(frames) for view, frames in parts.items()}
    return Take(f"s{number:03d}", number % 3 == 2, tuple(segments), views)


def _join(parts: list[Frames]) -> Frames:
    names = ("rgb", "depth", "parts", "joints_3d", "joints_2d", "object_3d", "object_2d", "extrinsics")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Frames(intrinsics=parts[0].intrinsics, **joined)


def _write_take(
    folder: Path, seed: int, number: int, clips: int, *, size: int, actions: Sequence[str], extras: bool
) -> list[list[object]]:
    """Render and write one take; returns its rows of the clip table."""
    take = make_take(seed, number, clips=clips, size=size, actions=actions)
    noise = np.random.default_rng((_DOMAIN, seed, number, 1))
    for view, frames in take.views.items():
        _write_video(folder / "videos" / f"{take.name}_{view}.mp4", frames.rgb)
        if extras:
            _write_depth(folder / "depth" / f"{take.name}_{view}.zarr", frames.depth, noise)
    exo = take.views["exo"]
    _write_poses(folder / "poses" / f"{take.name}_exo.pkl", noisy_joints(exo.joints_2d, noise, size), size)
    if extras:
        joints = exo.joints_3d + noise.normal(0, 0.01, exo.joints_3d.shape)
        np.save(folder / "poses_3d" / f"{take.name}.npy", joints.astype(np.float32))
    text = "\n".join(take.labels()) + "\n"
    (folder / "groundTruth" / f"{take.name}_ego.txt").write_text(text, encoding="utf-8")
    return [
        [
            f"{take.name}_{place:02d}",
            take.split,
            segment.action,
            f"videos/{take.name}_ego.mp4",
            f"videos/{take.name}_exo.mp4",
            segment.first / FPS,
            segment.end / FPS,
            f"poses/{take.name}_exo.pkl",
            take.name,
        ]
        for place, segment in enumerate(take.segments)
    ]


def noisy_joints(joints: npt.NDArray[np.float32], rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Joints [T, 17, 3] (x, y in pixels, 1 where seen) as an estimator gives them: noisy, a score for the 1."""
    seen = joints[..., 2] > 0
    spread = np.where(seen, 0.8, 1.8) * size / 96
    points = joints.copy()
    points[..., :2] += spread[..., None] * rng.standard_normal(points[..., :2].shape)
    points[..., 2] = np.where(seen, rng.uniform(0.6, 1.0, seen.shape), rng.uniform(0.15, 0.6, seen.shape))
    return points.astype(np.float32)


def _write_video(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 2 * FPS
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_depth(path: Path, depth: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
    """Millimetres, with an error that grows with the square of the distance, as a stereo camera's does."""
    noisy = depth + 0.004 * depth**2 * rng.standard_normal(depth.shape, np.float32)
    array = zarr.create_array(
        store=str(path),
        data=np.clip(noisy * 1000 + 0.5, 0, 65535).astype(np.uint16),
        chunks=(min(64, len(depth)), *depth.shape[1:]),
        dimension_names=("time", "y", "x"),
        attributes={"unit": "millimetre", "fps": FPS},
        overwrite=True,
    )
    array.update_attributes({"description": "depth along the camera's axis"})


def _write_poses(path: Path, points: npt.NDArray[np.float32], size: int) -> None:
    annotation = {
        "frame_dir": path.stem,
        "total_frames": len(points),
        "img_shape": (size, size),
        "original_shape": (size, size),
        "label": 0,
        "keypoint": points[None, ..., :2].astype(np.float16),
        "keypoint_score": points[None, ..., 2].astype(np.float16),
    }
    path.write_bytes(pickle.dumps([annotation]))


def _write_segmentation(folder: Path, actions: Sequence[str], bundles: dict[str, list[str]]) -> None:
    names = [BACKGROUND, *(action.replace(" ", "_") for action in actions)]
    (folder / "mapping.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names)), encoding="utf-8")
    for split, files in bundles.items():
        text = "".join(f"{name}\n" for name in files)
        (folder / "splits" / f"{split}.split1.bundle").write_text(text, encoding="utf-8")
