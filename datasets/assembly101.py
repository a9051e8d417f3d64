"""Assembly101: fine-grained clips of 24 verbs, and the coarse actions of whole videos.

Annotations count frames at 30 per second, videos have 60; one annotated segment has a row for each of twelve views,
all of which are synchronous. Which camera is e4, the ego view, depends on the headset of the recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ..errors import MissingInputError, TableError
from ..pipeline.clips import Split
from . import segmentation
from .building import Build, Lengths, Row, integer, pose_of, read_csv, there

FPS = 30.0
"""Of the annotations."""
POSE_FPS = 60.0
"""Of frame numbers in the skeletons' own version of the annotations, which names no views."""

EGO_VIEWS = {
    "e1": ("HMC_84346135_mono10bit", "HMC_21176875_mono10bit"),
    "e2": ("HMC_84347414_mono10bit", "HMC_21176623_mono10bit"),
    "e3": ("HMC_84355350_mono10bit", "HMC_21110305_mono10bit"),
    "e4": ("HMC_84358933_mono10bit", "HMC_21179183_mono10bit"),
}
EXO_VIEWS = {
    f"v{place}": f"{camera}_rgb"
    for place, camera in enumerate(("C10095", "C10115", "C10118", "C10119", "C10379", "C10390", "C10395", "C10404"), 1)
}
VERBS = (
    "pick up",
    "put down",
    "inspect",
    "rotate",
    "unscrew",
    "position",
    "screw",
    "remove",
    "position screw on",
    "remove screw from",
    "pass",
    "tilt up",
    "attempt to position",
    "push",
    "tilt down",
    "pull",
    "attempt to remove",
    "attempt to pick up",
    "clap",
    "attempt to unscrew",
    "attempt to put down",
    "spin",
    "attempt to screw",
    "shake",
)
"""In the order of verb_id."""

_NEEDED = ("video", "start_frame", "end_frame", "action_id", "verb_id", "verb_cls")
_POSE_VALIDATION = 15_699
_SEGMENTATION_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}

_Segment = tuple[str, int, int, int]
"""Sequence, start and end frame, action_id."""


@dataclass(frozen=True)
class Options:
    """`ego`: e1..e4. `exo`: v1..v8 or a camera's name. `evaluate_on`: the annotation file whose clips become `test`;
    where that is not `validation`, this one becomes `val`."""

    ego: str = "e4"
    exo: str = "v3"
    evaluate_on: str = "validation"
    keep_missing: bool = False
    segmentation: bool = True


@dataclass
class _Annotated:
    """A segment's cells, and the views that have a row for it."""

    row: Mapping[str, str]
    fps: float
    views: set[str] = field(default_factory=set)


def build(root: Path, out: Path, options: Options) -> Build:
    """The clips of the data set under `root`.

    Raises `MissingInputError` for annotations that are not there, `TableError` for others than expected.
    """
    root = root.absolute()
    found, lengths = Build(classes=[{"name": verb} for verb in VERBS]), Lengths()
    folder = root / "fine-grained-annotations"
    parts: list[tuple[str, Split]] = [("train", "train"), (options.evaluate_on, "test")]
    if options.evaluate_on != "validation" and (folder / "validation.csv").is_file():
        parts.insert(1, ("validation", "val"))
    for name, split in parts:
        for segment, annotated in _read(folder / f"{name}.csv", found).items():
            _add(found, root, segment, annotated, split, options, lengths)
    found.expect("verbs with clips", len({row.label for row in found.rows}), len(VERBS))
    if options.segmentation:
        _add_segmentation(found, root, out, options)
    return found


def _read(path: Path, found: Build) -> dict[_Segment, _Annotated]:
    """The annotated segments of a file: one per segment, whatever number of views have a row for it."""
    hint = "; old files of the test split have no labels: evaluate on another, or download the present one"
    rows = read_csv(path, _NEEDED, "annotations of Assembly101", hint)
    segments: dict[_Segment, _Annotated] = {}
    posed = 0
    for place, row in enumerate(rows, 2):
        sequence, _, view = row["video"].removesuffix(".mp4").partition("/")
        names = ("start_frame", "end_frame", "action_id")
        start, end, action = (integer(row[name], path, f"{name} in row {place}") for name in names)
        verb = integer(row["verb_id"], path, f"verb_id in row {place}") if row["verb_id"] else -1
        if not 0 <= verb < len(VERBS) or row["verb_cls"] != VERBS[verb]:
            found.skipped[f"unknown verb {row['verb_id']} {row['verb_cls']!r}" if row["verb_id"] else "no label"] += 1
            continue
        posed += not view
        annotated = segments.setdefault((sequence, start, end, action), _Annotated(row, FPS if view else POSE_FPS))
        if view in annotated.views:
            found.skipped["a second row of the same view and segment"] += 1
        elif view:
            annotated.views.add(view)
    if posed and path.stem == "validation":
        found.expect("validation rows in the skeletons' version", posed, _POSE_VALIDATION)
    return segments


def _add(
    found: Build,
    root: Path,
    segment: _Segment,
    annotated: _Annotated,
    split: Split,
    options: Options,
    lengths: Lengths,
) -> None:
    sequence, first, last, action = segment
    exo_view = EXO_VIEWS.get(options.exo, options.exo)
    ego_view = _ego_view(root, sequence, annotated.views, options)
    if ego_view is None:
        found.skipped[f"no row of the ego view {options.ego}"] += 1
        return
    if annotated.views and exo_view not in annotated.views:
        found.skipped[f"no row of the exo view {options.exo}"] += 1
        return
    ego, exo = (root / "recordings" / sequence / f"{view}.mp4" for view in (ego_view, exo_view))
    if not there(found, options.keep_missing, {"the ego video": ego, "the exo video": exo}):
        return
    if last < first:
        found.skipped["the segment is empty"] += 1
        return
    start, end = first / annotated.fps, (last + 1) / annotated.fps  # the last frame belongs to the segment
    shortened = lengths.shortened(found, start, end, (path for path in (ego, exo) if found.has(path)))
    if shortened is None:
        return
    hands = pose_of(found, "hand poses", [root / "poses@60fps" / f"{sequence}.json"])
    extra = {
        "sequence": sequence,
        "action": annotated.row.get("action_cls", ""),
        "ego_view": ego_view,
        "exo_view": exo_view,
        "hand_pose_path": str(hands or ""),
    }
    name = f"{sequence}_{first:06d}_{last:06d}_{action:04d}"
    found.rows.append(
        Row(name, split, integer(annotated.row["verb_id"], root, "verb_id"), ego, exo, start, shortened, hands, extra)
    )


def _ego_view(root: Path, sequence: str, views: set[str], options: Options) -> str | None:
    """The ego camera of a recording, by the rows it has; by the files, where rows name no views."""
    cameras: Sequence[str] = EGO_VIEWS.get(options.ego, (options.ego,))
    if views:
        return next((camera for camera in cameras if camera in views), None)
    folder = root / "recordings" / sequence
    return next((camera for camera in cameras if (folder / f"{camera}.mp4").is_file()), cameras[0])


def _add_segmentation(found: Build, root: Path, out: Path, options: Options) -> None:
    """The coarse actions of each video, frame by frame at 30 frames per second."""
    folder = root / "coarse-annotations"
    if not folder.is_dir():
        found.notes["no segmentation ground truth: coarse-annotations is not there"] += 1
        return
    classes = [row["action_cls"] for row in _coarse_classes(folder / "actions.csv")]
    videos = []
    for path, split in _coarse_splits(folder):
        labels = _spelled(folder / "coarse_labels", path)
        if not labels.is_file():
            found.skipped["coarse labels that a split names and that are not there"] += 1
            continue
        first, names = read_coarse(labels)
        if unknown := set(names) - set(classes):
            raise TableError(f"{labels}: {min(unknown)!r} is not in coarse-annotations/actions.csv")
        sequence = path.removesuffix(".txt").partition("_")[2]
        ego_view = _ego_view(root, sequence, set(), options) or ""
        recording = root / "recordings" / sequence
        ego, exo = recording / f"{ego_view}.mp4", recording / f"{EXO_VIEWS.get(options.exo, options.exo)}.mp4"
        name = path.removesuffix(".txt")
        videos.append(segmentation.LabelledVideo(name, split, names, FPS, first / FPS, ego, exo))
    found.expect("coarse actions", len(classes), 202)
    found.beside |= segmentation.layout(f"{out.stem}-segmentation", videos, classes)


def read_coarse(path: Path) -> tuple[int, list[str]]:
    """First frame, and the action of every frame from it on, of a file of `start end action [more]` at tabs.

    Ends are exclusive. Raises `TableError` for segments that do not follow on one another.
    """
    spans: list[tuple[int, int, str]] = []
    for line in segmentation.read_lines(path):
        start, end, action, *_ = [*line.split("\t"), "", ""]
        spans.append((integer(start, path, "a start"), integer(end, path, "an end"), action.strip()))
    spans.sort()
    if not spans:
        raise TableError(f"{path}: no segments")
    for (_, before, _), (after, _, _) in pairwise(spans):
        if before != after:
            raise TableError(f"{path}: a segment ends at frame {before}, the next starts at {after}")
    return spans[0][0], [action for first, last, action in spans for _ in range(first, last)]


def _spelled(folder: Path, name: str) -> Path:
    """The label file of that name; "disassembly" is written "disassebly" in places."""
    other = folder / name.replace("disassembly", "disassebly")
    return other if other.is_file() else folder / name.replace("disassebly", "disassembly")


def _coarse_classes(path: Path) -> list[dict[str, str]]:
    rows = read_csv(path, ("action_id", "action_cls"), "coarse actions of Assembly101")
    return sorted(rows, key=lambda row: integer(row["action_id"], path, "action_id"))


def _coarse_splits(folder: Path) -> list[tuple[str, str]]:
    """(label file, split) of all lists: `val_` or `validation_`, `disassembly` or `disassebly`."""
    lists = sorted((folder / "coarse_splits").glob("*_coarse_*.txt"))
    if not lists:
        raise MissingInputError(f"{folder / 'coarse_splits'}: no lists such as train_coarse_assembly.txt")
    found = []
    for path in lists:
        split = _SEGMENTATION_SPLITS.get(path.name.partition("_")[0])
        if split is not None:
            found += [(line.split("\t")[0].strip(), split) for line in segmentation.read_lines(path)]
    return found
