"""Builders for data of one's own: a folder per class, lists of paths and labels, Kinetics-like tables."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MissingInputError, TableError, UsageError
from ..pipeline.clips import SPLITS, Split
from .building import Build, Row, number, read_csv, there

VIDEOS = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".frames")
SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Pairing:
    """How the exo video is found: `ego` in the file's name (not its folders) is replaced by `exo`, wherever it stands.

    `ego` empty: no pairs. `required`: a clip without a partner is left out.
    """

    ego: str = ""
    exo: str = ""
    required: bool = False

    def partner(self, build: Build, video: Path) -> tuple[bool, Path | None]:
        """(whether the clip stays, its exo video or None)."""
        if not self.ego:
            return True, None
        name = video.name.replace(self.ego, self.exo)
        exo = video.with_name(name)
        if name == video.name:
            (build.skipped if self.required else build.notes)[f"{self.ego!r} is not in the file's name"] += 1
        elif not exo.is_file():
            (build.skipped if self.required else build.notes)["the exo video is not on the disk"] += 1
        else:
            return True, exo
        return not self.required, None


def from_folders(root: Path, pairing: Pairing, default: Split = "train") -> Build:
    """Clips out of `root/[split/]class/video`: the folders right below `root` are splits if all are named like one.

    A class may have folders of its own; videos whose partner's name they bear are no clips themselves. Raises
    `MissingInputError` without the folder, `UsageError` where it holds no videos.
    """
    root = root.absolute()
    if not root.is_dir():
        raise MissingInputError(f"{root}: no such folder")
    tops = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    split_folders = bool(tops) and all(path.name.lower() in SPLIT_NAMES for path in tops)
    parts = [(path, SPLIT_NAMES[path.name.lower()]) for path in tops] if split_folders else [(root, default)]
    found = Build()
    videos = [(video, folder, split) for folder, split in parts for video in _videos(folder)]
    names = sorted({video.relative_to(folder).parts[0] for video, folder, _ in videos if video.parent != folder})
    if not names:
        raise UsageError(f"{root}: no videos ({', '.join(VIDEOS)}) in folders named after classes")
    found.classes = [{"name": name} for name in names]
    labels = {name: label for label, name in enumerate(names)}
    for video, folder, split in videos:
        if video.parent == folder:
            found.skipped["a video outside the folders of classes"] += 1
        elif pairing.ego and pairing.ego not in video.name and pairing.exo in video.name:
            continue  # a partner
        else:
            stays, exo = pairing.partner(found, video)
            if stays:
                label = labels[video.relative_to(folder).parts[0]]
                found.rows.append(Row(_clip_id(video.relative_to(root)), split, label, video, exo))
    found.rows = _renamed(found.rows)
    return found


def from_lists(
    lists: Mapping[Split, Path],
    prefix: Path,
    pairing: Pairing,
    separator: str | None = None,
    keep_missing: bool = False,
) -> Build:
    """Clips out of lists of `path label`, one per line, without a header: `train.csv`, `val.csv`, `test.csv`.

    `separator`: by default the comma, tab or space before the last cell, so that paths may have spaces. Paths start
    from `prefix`. Labels are whole numbers, or names. Raises `MissingInputError`, `TableError` naming the line.
    """
    found = Build()
    entries = [(split, *entry) for split, path in lists.items() for entry in _read_list(path, separator)]
    labels = _labels(found, [label for _, _, label in entries])
    for split, written, label in entries:
        video = prefix.absolute() / written
        if there(found, keep_missing, {"the ego video": video}):
            stays, exo = pairing.partner(found, video)
            if stays:
                found.rows.append(Row(_clip_id(Path(written)), split, labels[label], video, exo))
    found.rows = _renamed(found.rows)
    return found


def from_kinetics(tables: Sequence[Path], videos: Path, pairing: Pairing, keep_missing: bool = False) -> Build:
    """Clips out of tables of `label, youtube_id, time_start, time_end, split`.

    A video is `<id>_<start>_<end>.mp4` (times of six digits), which is the clip itself, or `<id>.mp4`, of which the
    clip is a segment; in `videos`, or in folders below it named after the label, the split, or both. Raises
    `MissingInputError`, `TableError`.
    """
    found = Build()
    needed = ("youtube_id", "time_start", "time_end", "label", "split")
    entries = [(path, row) for path in tables for row in read_csv(path, needed, "Kinetics-like table")]
    labels = _labels(found, [row["label"] for _, row in entries if row["label"]])
    for path, row in entries:
        split = SPLIT_NAMES.get(row["split"].lower())
        if split is None or not row["label"]:
            found.skipped["no label" if split else f"unknown split {row['split']!r}"] += 1
            continue
        start, end = (number(row[name], path, name) for name in ("time_start", "time_end"))
        name = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
        video, cut = _kinetics_video(videos.absolute(), row, name)
        if end <= start:
            found.skipped["the segment is empty"] += 1
        elif there(found, keep_missing, {"the video": video}):
            stays, exo = pairing.partner(found, video)
            if stays:
                times = (None, None) if cut else (start, end)
                found.rows.append(Row(name, split, labels[row["label"]], video, exo, *times))
    found.rows = _renamed(found.rows)
    return found


def _kinetics_video(videos: Path, row: Mapping[str, str], name: str) -> tuple[Path, bool]:
    """(the file, whether it is the clip alone)."""
    label, split = row["label"], row["split"]
    for folder in (videos, videos / label, videos / label.replace(" ", "_"), videos / split, videos / split / label):
        for stem, cut in ((name, True), (row["youtube_id"], False)):
            for suffix in VIDEOS:
                if (folder / f"{stem}{suffix}").is_file():
                    return folder / f"{stem}{suffix}", cut
    return videos / f"{name}.mp4", True


def _read_list(path: Path, separator: str | None) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInputError(f"{path}: no such list") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    entries = []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        mark = separator or next((mark for mark in (",", "\t", " ") if mark in line.strip()), " ")
        written, _, label = (part.strip().strip('"') for part in line.strip().rpartition(mark))
        if not written or not label:
            raise TableError(f"{path}: line {place} is not `path{mark}label`: {line.strip()!r}; see --separator")
        entries.append((written, label))
    return entries


def _labels(found: Build, written: Sequence[str]) -> dict[str, int]:
    """Labels as whole numbers if all are, otherwise names in sorted order; fills in the classes."""
    if all(re.fullmatch(r"\d{1,9}", text) for text in written):
        found.classes = [{"name": str(label)} for label in range(max(map(int, written), default=-1) + 1)]
        return {text: int(text) for text in written}
    names = sorted(set(written))
    found.classes = [{"name": name} for name in names]
    return {name: label for label, name in enumerate(names)}


def _videos(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in VIDEOS]
    return [path for path in found if not path.name.startswith(".")]


def _clip_id(path: Path) -> str:
    """The path without its suffix; dots become underscores, since some readers cut a name at its first dot."""
    return path.with_suffix("").as_posix().strip("/").replace(".", "_")


def _renamed(rows: Sequence[Row]) -> list[Row]:
    """Rows whose id comes again get its number at the end: one video may stand in lists several times."""
    count, seen, renamed = Counter(row.clip_id for row in rows), Counter[str](), []
    for row in rows:
        seen[row.clip_id] += 1
        again = count[row.clip_id] > 1
        renamed.append(replace(row, clip_id=f"{row.clip_id}#{seen[row.clip_id]}") if again else row)
    return renamed


def split_lists(folder: Path) -> dict[Split, Path]:
    """`train.csv`, `val.csv` and `test.csv` (or `.txt`) of a folder, those that are there."""
    found: dict[Split, Path] = {}
    for split in SPLITS:
        path = next((folder / f"{split}{s}" for s in (".csv", ".txt") if (folder / f"{split}{s}").is_file()), None)
        if path is not None:
            found[split] = path
    if not found:
        raise MissingInputError(f"{folder}: none of train.csv, val.csv, test.csv")
    return found
