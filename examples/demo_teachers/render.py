"""Render the clips that the demo's teachers learn from: people whom no data set of the demo has.

    python examples/demo_teachers/render.py /tmp/teacher-clips

The folder gets one array per file, row by row the clips of one subject after the other; the last subjects are held
out. Every subject has a random stream of its own, so that the bytes depend on the counts alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from uniego.demo.world import ACTIONS, Frames, render, sample_scene, sample_subject

DOMAIN = 0x7EAC4E55  # keeps these people apart from those of the demo's data sets
PER_SUBJECT = 8  # clips, one of each action
PICTURE, PICKS, FINE, POSES = 96, 8, 24, 48  # pixels; frames as a teacher takes them; finer ones; skeletons
SHAPES: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "ego": (np.uint8, (FINE, PICTURE, PICTURE, 3)),  # every third from 1 is a pick
    "exo": (np.uint8, (FINE, PICTURE, PICTURE, 3)),
    "ego_depth": (np.float16, (PICKS, PICTURE // 2, PICTURE // 2)),  # metres
    "exo_depth": (np.float16, (PICKS, PICTURE // 2, PICTURE // 2)),
    "joints": (np.float32, (POSES, 17, 3)),  # exact, in the exo view: x, y in pixels, 1 where seen
    "joints_fine": (np.float32, (FINE, 17, 3)),
    "object_fine": (np.float32, (FINE, 3)),
    "joints_ego": (np.float32, (FINE, 17, 3)),
    "object_ego": (np.float32, (FINE, 3)),
    "label": (np.int64, ()),
}


def centres(count: int, duration: float) -> np.ndarray:
    """Times in seconds at the centres of `count` equal parts of a performance."""
    return (np.arange(count) + 0.5) / count * duration


def render_subject(folder: Path, subject: int) -> list[str]:
    """Write the rows of one subject; returns the captions of its clips."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in SHAPES}
    rng = np.random.default_rng((DOMAIN, subject))
    person, captions = sample_subject(rng), []
    for label, action in enumerate(ACTIONS):
        scene = sample_scene(rng, action, person)
        row = subject * PER_SUBJECT + label
        ego = render(scene, centres(FINE, scene.duration), "ego", PICTURE)
        exo = render(scene, centres(FINE, scene.duration), "exo", PICTURE)
        poses = render(scene, centres(POSES, scene.duration), "exo", 32)
        for name, value in _values(ego, exo, poses, label).items():
            arrays[name][row] = value
        captions.append(scene.caption)
    return captions


def _values(ego: Frames, exo: Frames, poses: Frames, label: int) -> dict[str, np.ndarray | int]:
    joints = poses.joints_2d.copy()
    joints[..., :2] = (joints[..., :2] + 0.5) * (PICTURE / 32) - 0.5
    return {
        "ego": ego.rgb,
        "exo": exo.rgb,
        "ego_depth": ego.depth[1::3, ::2, ::2],
        "exo_depth": exo.depth[1::3, ::2, ::2],
        "joints": joints,
        "joints_fine": exo.joints_2d,
        "object_fine": exo.object_2d,
        "joints_ego": ego.joints_2d,
        "object_ego": ego.object_2d,
        "label": label,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=400, help="people to learn from")
    parser.add_argument("--held-out", type=int, default=60, help="people to measure on")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args(arguments)
    began, total = time.perf_counter(), chosen.subjects + chosen.held_out
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for name, (dtype, shape) in SHAPES.items():
        path = chosen.folder / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", dtype, (total * PER_SUBJECT, *shape)).flush()
    captions: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.workers, context) as pool:
        for done in pool.map(render_subject, [chosen.folder] * total, range(total), chunksize=4):
            captions += done
            print(f"{len(captions)} of {total * PER_SUBJECT} clips, {time.perf_counter() - began:.0f} s", flush=True)
    facts = {"domain": DOMAIN, "subjects": chosen.subjects, "held_out": chosen.held_out, "captions": captions}
    (chosen.folder / "clips.json").write_text(json.dumps(facts, indent=0), encoding="utf-8")


if __name__ == "__main__":
    main()
