"""Render the clips that the demo's teachers learn from: people whom no data set of the demo has.

    python examples/demo_teachers/render.py /tmp/teacher-clips
    python examples/demo_teachers/render.py /tmp/teacher-clips-12 --actions all --only exo --known /tmp/teacher-clips

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from uniego.demo.world import ACTIONS, ALL_ACTIONS, Scene, render, sample_scene, sample_subject

DOMAIN = 0x7EAC4E55  # keeps these people apart from those of the demo's data sets
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
ONLY = {"exo": ("exo", "joints", "joints_fine", "object_fine", "label")}
"""What networks of the outer view alone need."""


@dataclass(frozen=True)
class Job:
    """What is rendered of every subject; `known` is a folder whose rows of the first actions are taken over."""

    folder: Path
    names: tuple[str, ...]
    actions: tuple[str, ...]
    known: Path | None = None
    captions: tuple[str, ...] = ()
    """The captions in `known`."""

    def known_row(self, subject: int, label: int) -> int | None:
        """The row of a clip in `known`, if it is there."""
        row = subject * len(ACTIONS) + label
        return row if label < len(ACTIONS) and row < len(self.captions) else None


def centres(count: int, duration: float) -> np.ndarray:
    """Times in seconds at the centres of `count` equal parts of a performance."""
    return (np.arange(count) + 0.5) / count * duration


def render_subject(job: Job, subject: int) -> list[str]:
    """Write the rows of one subject, a clip of each action; returns the captions of its clips."""
    arrays = {name: np.load(job.folder / f"{name}.npy", mmap_mode="r+") for name in job.names}
    rng = np.random.default_rng((DOMAIN, subject))
    person, captions = sample_subject(rng), []
    for label, action in enumerate(job.actions):
        scene = sample_scene(rng, action, person)
        row, earlier = subject * len(job.actions) + label, job.known_row(subject, label)
        for name, value in (_values(scene, job.names) if earlier is None else _taken(job, earlier, scene)).items():
            arrays[name][row] = value
        if "label" in arrays:
            arrays["label"][row] = label
        captions.append(scene.caption)
    return captions


def _values(scene: Scene, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a clip but the label; no view is rendered in vain."""
    values: dict[str, np.ndarray] = {}
    for view, joints, thing in (("ego", "joints_ego", "object_ego"), ("exo", "joints_fine", "object_fine")):
        if not {view, f"{view}_depth", joints, thing} & set(names):
            continue
        made = render(scene, centres(FINE, scene.duration), view, PICTURE)
        values |= {view: made.rgb, f"{view}_depth": made.depth[1::3, ::2, ::2]}
        values |= {joints: made.joints_2d, thing: made.object_2d}
    if "joints" in names:
        values["joints"] = render(scene, centres(POSES, scene.duration), "exo", 32).joints_2d.copy()
        values["joints"][..., :2] = (values["joints"][..., :2] + 0.5) * (PICTURE / 32) - 0.5
    return {name: value for name, value in values.items() if name in names}


def _taken(job: Job, row: int, scene: Scene) -> dict[str, np.ndarray]:
    """The arrays of a clip that an earlier run rendered."""
    if job.captions[row] != scene.caption:
        raise SystemExit(f"{job.known}: row {row} is {job.captions[row]!r}, not {scene.caption!r}; leave out --known")
    stored = {name: np.load(f"{job.known}/{name}.npy", mmap_mode="r") for name in job.names if name != "label"}
    return {name: array[row] for name, array in stored.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=400, help="people to learn from")
    parser.add_argument("--held-out", type=int, default=60, help="people to measure on")
    parser.add_argument("--actions", choices=("demo", "all"), default="demo", help="the demo's eight, or all twelve")
    parser.add_argument("--only", choices=tuple(ONLY), help="leave out what networks of this view do not need")
    parser.add_argument("--known", type=Path, help="a folder of this script's: take the eight's clips from there")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args(arguments)
    captions = read_captions(chosen.known) if chosen.known else ()
    actions = {"demo": ACTIONS, "all": ALL_ACTIONS}[chosen.actions]
    job = Job(chosen.folder, ONLY.get(chosen.only, tuple(SHAPES)), actions, chosen.known, captions)
    told = draw_all(job, chosen.subjects + chosen.held_out, chosen.workers)
    facts = {"domain": DOMAIN, "subjects": chosen.subjects, "held_out": chosen.held_out, "captions": told}
    (chosen.folder / "clips.json").write_text(json.dumps(facts, indent=0), encoding="utf-8")


def read_captions(folder: Path) -> tuple[str, ...]:
    """The captions of an earlier run's clips of the eight actions."""
    facts = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
    people = facts["subjects"] + facts["held_out"]
    if facts["domain"] != DOMAIN or len(facts["captions"]) != people * len(ACTIONS):
        raise SystemExit(f"{folder} does not hold {len(ACTIONS)} clips of each of its {people} people")
    return tuple(facts["captions"])


def draw_all(job: Job, people: int, workers: int) -> list[str]:
    """Write all rows; returns their captions."""
    began, total = time.perf_counter(), people * len(job.actions)
    job.folder.mkdir(parents=True, exist_ok=True)
    for name in job.names:
        dtype, shape = SHAPES[name]
        np.lib.format.open_memmap(job.folder / f"{name}.npy", "w+", dtype, (total, *shape)).flush()
    captions: list[str] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        for done in pool.map(partial(render_subject, job), range(people), chunksize=4):
            captions += done
            print(f"{len(captions)} of {total} clips, {time.perf_counter() - began:.0f} s", flush=True)
    return captions


if __name__ == "__main__":
    main()
