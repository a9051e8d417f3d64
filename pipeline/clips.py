"""The clip table: which clips there are, where their files lie, what they show, which split they belong to.

A table is CSV (UTF-8) or Parquet. Columns `clip_id`, `split`, `label` and `ego_path` are required;
`exo_path`, `start_s`, `end_s` and `pose_path` may be left out or be empty in a row; further columns are kept
as text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from ..errors import TableError, UsageError
from .cliprows import (
    Cells,
    Problems,
    check_ids,
    check_labels,
    check_paths,
    check_splits,
    check_times,
    read_cells,
)
from .video_frames import is_frames, read_frames_file
from .video_info import VideoError

Split = Literal["train", "val", "test"]
View = Literal["ego", "exo"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
REQUIRED = ("clip_id", "split", "label", "ego_path")
OPTIONAL = ("exo_path", "start_s", "end_s", "pose_path")


@dataclass(frozen=True, slots=True)
class Clip:
    """One segment of an ego video, with its partner from outside and its skeletons where there are any.

    `start_s` and `end_s` are seconds from the first shown frame of both videos; None: start, end of the file.
    `sources` holds the paths as the table writes them, by "ego", "exo" and "pose": unlike the resolved paths
    they stay the same when the data moves. `extra` holds the table's further columns.
    """

    clip_id: str
    split: Split
    label: int
    ego_path: Path
    exo_path: Path | None
    start_s: float | None
    end_s: float | None
    pose_path: Path | None
    extra: dict[str, str]
    sources: dict[str, str]

    def video(self, view: View) -> Path | None:
        """The video of a view, None when the row names none."""
        return self.ego_path if view == "ego" else self.exo_path


@dataclass(frozen=True)
class ClipTable:
    """All clips in the table's order, and the classes' names in the order of their labels.

    `num_classes` may exceed `len(classes)` when the configuration asks for more classes than the table names.
    """

    path: Path
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    num_classes: int

    def split(self, name: Split) -> list[Clip]:
        """The clips of one split, in the table's order; empty when there are none."""
        if name not in SPLITS:
            raise UsageError(f"unknown split {name!r}; expected {', '.join(SPLITS)}")
        return [clip for clip in self.clips if clip.split == name]

    @property
    def splits(self) -> dict[str, int]:
        """Clips per split; all three splits are named."""
        counts = dict.fromkeys(SPLITS, 0)
        for clip in self.clips:
            counts[clip.split] += 1
        return cast("dict[str, int]", counts)


def read_clip_table(
    path: str | Path,
    *,
    root: str | Path | None = None,
    num_classes: int | None = None,
) -> ClipTable:
    """Read and check a clip table. Files that clips name are not looked at; see `missing_files`.

    Relative paths start from `root`, or from the table's own folder. Labels are integers if all of them are,
    and names otherwise, which become ids in sorted order; integers have names in a column `class_name`.
    `num_classes` is the number of classes to expect.

    Raises `TableError` naming the rows (a CSV's header is row 1, a Parquet file's first row is row 1) that
    cannot be used, `MissingInputError` when the table is not there.
    """
    path = Path(path).absolute()
    cells = read_cells(path, REQUIRED)
    problems = Problems(path)
    check_ids(cells, problems)
    check_splits(cells, SPLITS, problems)
    check_paths(cells, ("ego_path", "exo_path", "pose_path"), problems)
    times = check_times(cells, problems)
    labels = check_labels(cells, num_classes, problems)
    problems.refuse()
    base = path.parent if root is None else Path(root).absolute()
    return ClipTable(path, _clips(cells, base, labels.ids, times), labels.classes, labels.count)


def _clips(
    cells: Cells, base: Path, labels: Sequence[int], times: Sequence[tuple[float | None, float | None]]
) -> tuple[Clip, ...]:
    extra_names = [name for name in cells.columns if name not in REQUIRED and name not in OPTIONAL]
    extras = [cells.columns[name] for name in extra_names]
    columns = [cells.column(name) for name in ("ego_path", "exo_path", "pose_path")]
    cache: dict[str, Path | None] = {"": None}

    def resolve(written: str) -> Path | None:
        if written not in cache:
            cache[written] = base / written
        return cache[written]

    clips = []
    for row, (clip_id, split) in enumerate(zip(cells.column("clip_id"), cells.column("split"), strict=True)):
        written = [column[row] for column in columns]
        ego, exo, pose = (resolve(text) for text in written)
        clips.append(
            Clip(
                clip_id=clip_id,
                split=cast("Split", split),
                label=labels[row],
                ego_path=cast("Path", ego),
                exo_path=exo,
                start_s=times[row][0],
                end_s=times[row][1],
                pose_path=pose,
                extra={name: column[row] for name, column in zip(extra_names, extras, strict=True)},
                sources={k: v for k, v in zip(("ego", "exo", "pose"), written, strict=True) if v},
            )
        )
    return tuple(clips)


def hold_out(table: ClipTable, share: float, seed: int) -> ClipTable:
    """Move a share of the train split to `val`, each clip by a draw from (seed, clip id) alone.

    So the choice survives a reordered or grown table, and the share is met on average, class by class. At
    least one clip goes (that of the smallest draw) and at least one stays. `share` 0 changes nothing.

    Raises `TableError` when there is a `val` split already, or fewer than two train clips.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"share of the train split to hold out: {share} is not in [0, 1)")
    if share == 0.0:
        return table
    counts = table.splits
    if counts["val"]:
        raise TableError(f"{table.path}: has a val split already ({counts['val']} clips); set data.holdout to 0")
    if counts["train"] < 2:
        raise TableError(f"{table.path}: {counts['train']} train clip(s), too few to hold any out for val")
    draws = {clip.clip_id: _draw(seed, clip.clip_id) for clip in table.split("train")}
    least, most = min(draws, key=lambda key: draws[key]), max(draws, key=lambda key: draws[key])
    held = {key for key, value in draws.items() if value < share} | {least}
    held.discard(most)
    clips = tuple(replace(clip, split="val") if clip.clip_id in held else clip for clip in table.clips)
    return replace(table, clips=clips)


def _draw(seed: int, clip_id: str) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.blake2b(f"holdout\0{seed}\0{clip_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64


def missing_files(table: ClipTable) -> list[tuple[Clip, str, Path]]:
    """Files that clips name and that do not exist: (clip, column, path). Each path is looked at once.

    Of a `.frames` file the folder must exist, too.
    """
    exists: dict[Path, bool] = {}
    missing: list[tuple[Clip, str, Path]] = []
    for clip in table.clips:
        for column in ("ego_path", "exo_path", "pose_path"):
            path: Path | None = getattr(clip, column)
            if path is None:
                continue
            if path not in exists:
                exists[path] = _exists(path)
            if not exists[path]:
                missing.append((clip, column, path))
    return missing


def _exists(path: Path) -> bool:
    if not os.path.isfile(path):  # noqa: PTH113  (twice as fast on a long table)
        return False
    try:
        return not is_frames(path) or read_frames_file(path).folder.is_dir()
    except VideoError:
        return True  # it is there, and its fault is told when it is read
