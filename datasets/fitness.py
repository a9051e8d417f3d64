"""EgoExo-Fitness: clips out of its annotations and folders of frames.

All views of a record share one clock of 30 frames per second, so that a segment of one view is the same moment in all.
Frames lie on the disk as they were filmed; two of the views are set upright by a quarter turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import MissingInputError, TableError, UsageError
from ..pipeline.clips import Split
from . import segmentation
from .building import Build, Row, number, read_json, there
from .splits import disjoint

FPS = 30.0
ROTATION = {"exo_r": 270, "exo_l": 90}
"""Degrees counter-clockwise that set a view's frames upright; 0 for all others."""

CLASSES = (
    "Kneeling pushing-ups",
    "Push-ups",
    "Kneeling Torso Twist",
    "Knee Raise and Abdominal Muscles Contract",
    "Shoulder Bridge",
    "Sit-ups",
    "Leg Reverse Lunge",
    "Leg Lunge With Knee Lift",
    "Sumo Squat",
    "Jumping Jacks",
    "High Knee",
    "Clap Jacks",
)
"""In the order of action_id, which counts from 1; labels count from 0."""

SplitMode = Literal["official", "record", "actor", "cvsv"]
Segments = Literal["substep", "action"]

_SUBSTEPS = ("subaction_level_annotations_ant13_style_v1.json", "substep_level_annotations.json")
_SIDES = {"left", "right", "side"}
_RECORDS, _ACTIONS, _ACTION_VIEWS = 76, 1086, 6131


@dataclass(frozen=True)
class Options:
    """How clips are made. `ego_views`: one clip per segment and view. `exo_views`: the first that a record has is the
    partner. `segments`: sub-steps, for which there is an official split, or whole actions."""

    ego_views: Sequence[str] = ("ego_m",)
    exo_views: Sequence[str] = ("exo_m", "exo_l", "exo_r")
    segments: Segments = "substep"
    split: SplitMode = "official"
    test_share: float = 0.3
    seed: int = 0
    cvsv: Path | None = None
    poses: Path | None = None
    keep_missing: bool = False
    segmentation: bool = True


@dataclass(frozen=True)
class _Segment:
    """A piece of a record on its clock: frames start..end (exclusive) of one class in one view."""

    record: str
    view: str
    start: float
    end: float
    label: int
    name: str
    split: Split


def build(root: Path, out: Path, options: Options) -> Build:
    """The clips of the data set under `root`; `.frames` files come to lie beside `out`.

    Raises `MissingInputError` for annotations that are not there, `TableError` for others than expected, `UsageError`
    for options that do not go together.
    """
    if options.segments == "action" and options.split == "official":
        raise UsageError(
            "whole actions have no official split: give --split record, actor or cvsv, or --segments substep"
        )
    annotations = root.absolute() / "raw_annotations"
    records = read_records(annotations / "meta_records.json")
    found = Build(classes=[{"name": name} for name in CLASSES])
    found.expect("records", len(records), _RECORDS)
    try:
        for segment in _segments(annotations, records, options, found):
            _add(found, root.absolute(), out, records, segment, options)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"not the annotations of EgoExo-Fitness ({type(error).__name__}: {error})"
        raise TableError(f"{annotations}: {what}") from error
    if not found.rows:
        return found
    if options.split == "official":
        _note_shared(found)
    elif options.split == "cvsv":
        _split_as_cvsv(found, options.cvsv or annotations)
    else:
        column = "record" if options.split == "record" else "actor"
        found.rows = disjoint(found.rows, lambda row: row.extra[column], options.test_share, options.seed)
    if options.segmentation:
        _add_segmentation(found, annotations, records, out)
    return found


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records by their id, which stands in the record or only in `record_index`."""
    content = read_json(path, "record list of EgoExo-Fitness")
    try:
        names = {place: name for name, place in content["record_index"].items()} if "record_index" in content else {}
        return {str(r.get("record_id") or names[place]): r for place, r in enumerate(content["records"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{path}: not the record list of EgoExo-Fitness ({type(error).__name__}: {error})") from None


def label_of(name: str) -> int | None:
    """The label of a class name in any of its spellings, None for one that is unknown."""
    return _LABELS.get(_key(name))


def _key(name: str) -> tuple[str, ...]:
    return tuple(word for word in re.findall(r"[a-z]+", name.lower()) if word not in _SIDES)


_LABELS = {_key(name): label for label, name in enumerate(CLASSES)}


def actor_of(record: Mapping[str, Any]) -> str:
    """The person of a record: `original_actor` is "DATE-Name", and one person comes on several dates."""
    written = str(record.get("original_actor", ""))
    return written.split("-")[-1].strip().lower() or "unknown"


def read_cvsv_records(path: Path) -> set[str]:
    """The records that a list of sequence pairs names: eight fields per line, the fields 1 and 5 being paths.

    The released list of train pairs ends in NUL bytes, which are left out.
    """
    try:
        text = path.read_bytes().replace(b"\0", b"").decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no list of pairs; give its folder with --cvsv") from None
    found = set()
    for place, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        fields = line.split()
        if len(fields) != 8:
            raise TableError(f"{path}: line {place} has {len(fields)} fields, not 8")
        found |= {Path(fields[at]).parts[-3] for at in (0, 4) if len(Path(fields[at]).parts) >= 3}
    return found


def _segments(annotations: Path, records: Mapping[str, Any], options: Options, found: Build) -> Iterator[_Segment]:
    """The wanted segments of the ego views."""
    if options.segments == "action":
        yield from _actions(annotations / "action_level_annotations.json", records, options, found)
        return
    path = next(
        (annotations / name for name in _SUBSTEPS if (annotations / name).is_file()), annotations / _SUBSTEPS[0]
    )
    for key, entry in read_json(path, "sub-step annotations of EgoExo-Fitness").get("database", {}).items():
        parts = key.split("_")
        record, view = parts[0], "_".join(parts[-2:])
        if view not in options.ego_views:
            continue
        split = {"train": "train", "test": "test"}.get(entry.get("subset", ""))
        for place, annotation in enumerate(entry.get("annotations", ())):
            label = label_of(annotation["label"])
            if record not in records:
                found.skipped["the record is not in meta_records.json"] += 1
            elif label is None:
                found.skipped[f"unknown class {annotation['label']!r}"] += 1
            elif split is None:
                found.skipped[f"unknown subset {entry.get('subset')!r}"] += 1
            else:
                start, end = (number(value, path, f"segment_time of {key}") for value in annotation["segment_time"])
                name = f"{key}_{place:02d}"
                yield _Segment(
                    record, view, start * FPS, end * FPS, label, name, "train" if split == "train" else "test"
                )


def _actions(path: Path, records: Mapping[str, Any], options: Options, found: Build) -> Iterator[_Segment]:
    content = read_json(path, "action annotations of EgoExo-Fitness")
    counts = {record: len(entry["action_info"]) for record, entry in content.items()}
    found.expect("actions", sum(counts.values()), _ACTIONS)
    seen = sum(count * len(records[record]["views"]) for record, count in counts.items() if record in records)
    found.expect("actions times views", seen, _ACTION_VIEWS)
    for record, entry in content.items():
        for place, (action, start, end) in enumerate(entry["action_info"]):
            for view in options.ego_views:
                if record not in records:
                    found.skipped["the record is not in meta_records.json"] += 1
                elif not 1 <= int(action) <= len(CLASSES):
                    found.skipped[f"unknown action_id {action}"] += 1
                else:
                    name = f"{record}_action{place:03d}_{view}"
                    yield _Segment(record, view, float(start), float(end), int(action) - 1, name, "train")


def _add(found: Build, root: Path, out: Path, records: Mapping[str, Any], segment: _Segment, options: Options) -> None:
    record = records[segment.record]
    views = [str(view) for view in record.get("views", ())]
    if segment.view not in views:
        found.skipped[f"the record has no view {segment.view}"] += 1
        return
    exo = next((view for view in options.exo_views if view in views), None)
    if exo is None and not options.keep_missing:
        found.skipped[f"the record has none of the views {', '.join(options.exo_views)}"] += 1
        return
    if exo is not None and exo != options.exo_views[0]:
        found.notes[f"{exo} instead of {options.exo_views[0]}, which the record lacks"] += 1
    used = [segment.view, *([exo] if exo else [])]
    last = min(
        (int(record["frames"][view]["num_frames"]) for view in used if view in record.get("frames", {})), default=0
    )
    end = min(segment.end, last) if last else segment.end
    if end <= segment.start:
        found.skipped["the segment starts after the last frame" if end < segment.end else "the segment is empty"] += 1
        return
    if end < segment.end:
        found.notes["segments cut at the last frame of the shorter view"] += 1
    folders = {view: root / "frames_open" / segment.record / view for view in used}
    if not there(found, options.keep_missing, {f"the folder of {view}": folder for view, folder in folders.items()}):
        return
    paths = {view: _frames(found, folder, out, segment.record, view) for view, folder in folders.items()}
    extra = {"record": segment.record, "actor": actor_of(record), "ego_view": segment.view, "exo_view": exo or ""}
    row = Row(segment.name, segment.split, segment.label, paths[segment.view], extra=extra, pose=options.poses)
    row = replace(row, exo=paths[exo] if exo else None, start_s=segment.start / FPS, end_s=end / FPS)
    found.rows.append(row)


def _frames(found: Build, folder: Path, out: Path, record: str, view: str) -> Path:
    settings = {"fps": FPS, "rotation": ROTATION.get(view, 0), "first": 1}
    return found.frames_file(folder, out, f"{record}_{view}", settings)


def _note_shared(found: Build) -> None:
    """The official split is by record, view and sequence: one moment's views may fall on both sides."""
    sides: dict[str, set[Split]] = {}
    for row in found.rows:
        sides.setdefault(row.extra["record"], set()).add(row.split)
    shared = sum(len(splits) > 1 for splits in sides.values())
    if shared:
        found.notes["records in train and test alike, as officially split; --split record or actor avoids it"] += shared


def _split_as_cvsv(found: Build, folder: Path) -> None:
    train, test = (read_cvsv_records(folder / f"{name}_pairs_open.txt") for name in ("train", "test"))
    if both := train & test:
        raise TableError(f"{folder}: record {min(both)} is in both lists of pairs")
    sides: dict[str, Split] = {**dict.fromkeys(train, "train"), **dict.fromkeys(test, "test")}
    kept = [row for row in found.rows if row.extra["record"] in sides]
    found.skipped["the record is in neither list of pairs"] += len(found.rows) - len(kept)
    found.rows = [replace(row, split=sides[row.extra["record"]]) for row in kept]


def _add_segmentation(found: Build, annotations: Path, records: Mapping[str, Any], out: Path) -> None:
    """The actions of each whole record, frame by frame, wherever its clips are all on one side of the split."""
    path = annotations / "action_level_annotations.json"
    if not path.is_file():
        found.notes["no segmentation ground truth: action_level_annotations.json is not there"] += 1
        return
    content = read_json(path, "action annotations of EgoExo-Fitness")
    sides: dict[str, set[Split]] = {}
    used: dict[str, Row] = {}
    for row in found.rows:
        sides.setdefault(row.extra["record"], set()).add(row.split)
        used.setdefault(row.extra["record"], row)
    if any(len(splits) > 1 for splits in sides.values()):
        found.notes["no segmentation ground truth: it needs a split by record (--split record, actor or cvsv)"] += 1
        return
    videos = []
    for record, (split,) in sides.items():
        views = (used[record].extra["ego_view"], used[record].extra["exo_view"])
        length = min(int(records[record]["frames"][view]["num_frames"]) for view in views if view)
        names = ["background"] * length
        for action, start, end in content.get(record, {}).get("action_info", ()):
            first, stop = max(0, int(start)), min(length, int(end))
            names[first:stop] = [CLASSES[int(action) - 1]] * max(0, stop - first)
        row = used[record]
        videos.append(segmentation.LabelledVideo(record, split, names, FPS, 0.0, row.ego, row.exo))
    found.beside |= segmentation.layout(f"{out.stem}-segmentation", videos, ["background", *CLASSES])
