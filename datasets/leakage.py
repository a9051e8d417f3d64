"""Clips that stand in two splits: exactly, by their files and times; or by sight, by hashes of a few frames."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..pipeline.clips import SPLITS, Clip, ClipTable, View
from ..pipeline.video import VideoError
from .looking import Picture, moments, sample

OVERLAP_S = 0.05
"""Segments that share no more than this are neighbours: some annotations count the last frame in, some do not."""
FRAMES = 3
NEAR = 6
"""Bits of 64 by which frames that look alike may differ: for the hash below, what is left after recompression."""
_FLAT = 4.0
_SIDE, _KEPT = 32, 8


@dataclass(frozen=True)
class Overlap:
    """A clip that shares time of one video file with a clip of another split."""

    view: View
    clip: str
    split: str
    other: str
    other_split: str


def overlaps(table: ClipTable) -> list[Overlap]:
    """Every clip of val and test that overlaps a clip of a split before it (train, val), once per view and split."""
    found: list[Overlap] = []
    views: tuple[View, ...] = ("ego", "exo")
    for view in views:
        by_file: dict[str, list[Clip]] = defaultdict(list)
        real: dict[Path, str] = {}
        for clip in table.clips:
            if (path := clip.video(view)) is not None:
                by_file[real.setdefault(path, os.path.realpath(path))].append(clip)
        for clips in by_file.values():
            if len({clip.split for clip in clips}) > 1:
                found += _in_one_file(view, clips)
    return found


def _in_one_file(view: View, clips: Sequence[Clip]) -> Iterable[Overlap]:
    for earlier, later in combinations(SPLITS, 2):
        known = sorted((_span(clip), clip.clip_id) for clip in clips if clip.split == earlier)
        if not known:
            continue
        starts = np.array([start for (start, _), _ in known])
        ends = np.array([end for (_, end), _ in known])
        latest = np.maximum.accumulate(ends)
        for clip in (clip for clip in clips if clip.split == later):
            start, end = _span(clip)
            before = int(np.searchsorted(starts, end - OVERLAP_S))  # these start before this clip ends
            if before and latest[before - 1] > start + OVERLAP_S:
                other = known[int(np.argmax(ends[:before]))][1]
                yield Overlap(view, clip.clip_id, later, other, earlier)


def _span(clip: Clip) -> tuple[float, float]:
    return clip.start_s or 0.0, np.inf if clip.end_s is None else clip.end_s


@dataclass(frozen=True)
class LookAlike:
    """Two clips of different splits whose frames look alike; `bits`: the most by which one of these differs."""

    clip: str
    split: str
    other: str
    other_split: str
    bits: int
    same_file: bool


@dataclass
class Visual:
    """What was compared: clips per split, those without enough to see, and the pairs that look alike."""

    compared: dict[str, int]
    flat: int
    failed: int
    pairs: list[LookAlike]


def look_alikes(
    table: ClipTable, most: int, seed: int = 0, backend: str = "pyav", done: Callable[[], None] = lambda: None
) -> Visual:
    """Compare the ego views of at most `most` clips of each split, drawn by (seed, clip id): a sample, no proof.

    `FRAMES` frames of a clip are hashed; two clips look alike where each frame differs in at most `NEAR` bits.
    Clips with a frame that is nearly of one colour are not compared. An `OSError` of the machine passes.
    """
    hashed: dict[str, list[tuple[Clip, npt.NDArray[np.float32]]]] = {split: [] for split in SPLITS}
    flat = failed = 0
    for split in SPLITS:
        for clip in sample(table.split(split), most, seed):
            try:
                bits = [perceptual_hash(picture) for picture in moments(clip, "ego", FRAMES, backend)]
            except VideoError:
                failed += 1
            else:
                whole = [one for one in bits if one is not None]
                if len(whole) == FRAMES:
                    hashed[split].append((clip, np.stack(whole).astype(np.float32)))
                else:
                    flat += 1
            done()
    pairs = [pair for one, other in combinations(SPLITS, 2) for pair in _alike(hashed[one], hashed[other])]
    return Visual({split: len(clips) for split, clips in hashed.items() if clips}, flat, failed, pairs)


def _alike(
    known: Sequence[tuple[Clip, npt.NDArray[np.float32]]], later: Sequence[tuple[Clip, npt.NDArray[np.float32]]]
) -> list[LookAlike]:
    if not known or not later:
        return []
    ours, theirs = (np.stack([bits for _, bits in clips]) for clips in (later, known))  # [n, FRAMES, 64], 0 or 1
    same = np.einsum("nfb,mfb->nmf", 2 * ours - 1, 2 * theirs - 1)
    distance = ((ours.shape[-1] - same) / 2).max(axis=-1)
    return [
        LookAlike(
            later[n][0].clip_id,
            later[n][0].split,
            known[m][0].clip_id,
            known[m][0].split,
            int(distance[n, m]),
            later[n][0].ego_path == known[m][0].ego_path,
        )
        for n, m in np.argwhere(distance <= NEAR)
    ]


def perceptual_hash(picture: Picture) -> npt.NDArray[np.bool_] | None:
    """Whether each of the 8 x 8 lowest frequencies of the picture is above their median: bool [64].

    The picture, uint8 [H, W, 3], is made grey and 32 x 32, and its cosine transform taken; the mean brightness plays no
    part in the median (C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section
    3.2.1). None for a picture nearly of one colour, whose hash would be noise.
    """
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    grey = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    if grey.std() < _FLAT:
        return None
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    return np.asarray(low > np.median(low[1:]))


_COSINES = np.cos(np.pi * np.outer(np.arange(_KEPT), np.arange(_SIDE) + 0.5) / _SIDE)
