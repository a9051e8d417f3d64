"""Ego-Exo4D: keysteps as clips of whole, frame-aligned takes; Aria's RGB camera is the ego view.

Frame i of every aligned video of a take is the same instant. Two sets of classes are offered: all keysteps that occur
(665 in the publication), and those of the benchmark (278, with at least 20 samples each).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import TableError
from ..pipeline.clips import Split
from .building import Build, Lengths, Row, number, pose_of, read_csv, read_json, there
from .egoexo4d_takes import Best, Take, check_splits, choose_exo, read_best, read_takes

Classes = Literal["keysteps", "vocabulary", "benchmark"]
Resolution = Literal["auto", "448", "full"]

_ALL, _BENCHMARK = 665, 278
_TRAIN_TAKES, _SCENARIOS = 668, 17
_FILES: tuple[tuple[str, Split], ...] = (("train", "train"), ("val", "test"))
"""The labels of the official test split are withheld: what is officially `val` is tested on."""


@dataclass(frozen=True)
class Options:
    """`classes`: keysteps (those with a segment), vocabulary (all that have a name) or benchmark. `exo`: the best
    camera of the take, or of the segment. `resolution`: the aligned videos, or those scaled down to 448."""

    classes: Classes = "keysteps"
    exo: Literal["take", "segment"] = "take"
    resolution: Resolution = "auto"
    keep_missing: bool = False


@dataclass(frozen=True)
class _Segment:
    uid: str
    split: Split
    start_s: float
    end_s: float
    step: int


def build(root: Path, out: Path, options: Options) -> Build:
    """The clips of the data set under `root`; `out` is not looked at.

    Raises `MissingInputError` for annotations that are not there, `TableError` for others than expected.
    """
    root = root.absolute()
    found, lengths = Build(), Lengths()
    takes = read_takes(root / "takes.json")
    official = check_splits(root / "annotations" / "splits.json", found)
    best = read_best(root / "annotations")
    if options.classes == "benchmark":
        segments, labels = _benchmark(root / "annotations" / "keystep_benchmark", found)
    else:
        segments, labels = _keysteps(root / "annotations", options.classes, found)
    once = dict.fromkeys(segments)
    if len(once) < len(segments):
        found.skipped["the same step at the same time, a second time"] += len(segments) - len(once)
    for segment in once:
        take = takes.get(segment.uid)
        if take is None:
            found.skipped["the take is not in takes.json"] += 1
        elif take.dropped:
            found.skipped["the take was dropped"] += 1
        elif official.get(segment.uid, "train" if segment.split == "train" else "val") == "test":
            found.skipped["the take is in the official test split"] += 1
        else:
            _add(found, root, take, segment, labels[segment.step], best, options, lengths)
    return found


def _keysteps(annotations: Path, classes: Classes, found: Build) -> tuple[list[_Segment], dict[int, int]]:
    """All segments, and the label of each step_unique_id: its place among the ids in use, which have gaps."""
    segments: list[_Segment] = []
    names: dict[int, str] = {}
    scenario: dict[int, str] = {}
    scenarios: set[str] = set()
    for part, split in _FILES:
        path = annotations / f"keystep_{part}.json"
        content = read_json(path, "keysteps of Ego-Exo4D")
        try:
            names |= {int(step): name for step, name in (content.get("vocabulary") or {}).items()}
            scenarios |= set(content.get("taxonomy") or ())
            if part == "train":
                found.expect("takes with keysteps in train", len(content["annotations"]), _TRAIN_TAKES)
            for uid, take in content["annotations"].items():
                for entry in take["segments"]:
                    step = int(entry["step_unique_id"])
                    names.setdefault(step, entry["step_name"])
                    scenario.setdefault(step, str(take.get("scenario", "")))
                    start, end = (number(entry[key], path, key) for key in ("start_time", "end_time"))
                    segments.append(_Segment(uid, split, start, end, step))
        except (KeyError, TypeError, AttributeError) as error:
            raise TableError(f"{path}: not keysteps of Ego-Exo4D ({type(error).__name__}: {error})") from None
    found.expect("scenarios", len(scenarios), _SCENARIOS)
    steps = sorted(names if classes == "vocabulary" else {segment.step for segment in segments})
    found.expect("classes", len(steps), _ALL)
    found.classes = [
        {"name": names[step], "step_unique_id": str(step), "scenario": scenario.get(step, "")} for step in steps
    ]
    return segments, {step: label for label, step in enumerate(steps)}


def _benchmark(folder: Path, found: Build) -> tuple[list[_Segment], dict[int, int]]:
    """The benchmark's segments, and the label of each step_unique_id as its label_mapping.csv says."""
    path = folder / "label_mapping.csv"
    rows = list(read_csv(path, ("label_id", "step_unique_id", "step_name"), "label map of the keystep benchmark"))
    try:
        labels = {int(row["step_unique_id"]): int(row["label_id"]) for row in rows}
    except ValueError as error:
        raise TableError(f"{path}: {error}") from None
    if sorted(labels.values()) != list(range(len(rows))):
        raise TableError(f"{path}: label_id is not 0 to {len(rows) - 1}, each once")
    found.expect("classes", len(rows), _BENCHMARK)
    ordered = sorted(rows, key=lambda row: int(row["label_id"]))
    found.classes = [
        {"name": r["step_name"], "step_unique_id": r["step_unique_id"], "scenario": r.get("scenario_name", "")}
        for r in ordered
    ]
    return [
        segment for part, split in _FILES for segment in _benchmark_part(folder, part, split, labels, found)
    ], labels


def _benchmark_part(
    folder: Path, part: str, split: Split, labels: Mapping[int, int], found: Build
) -> Iterator[_Segment]:
    path = folder / f"keystep_segment_{part}.json"
    content: Any = read_json(path, "segments of the keystep benchmark")
    try:
        for entry in content["segments"]:
            step = int(entry["step_unique_id"])
            if labels.get(step) != int(entry["label_id"]):
                found.skipped["label_id and label_mapping.csv disagree"] += 1
                continue
            start, end = (number(entry[key], path, key) for key in ("start_time", "end_time"))
            yield _Segment(entry["take_uid"], split, start, end, step)
    except (KeyError, TypeError) as error:
        raise TableError(f"{path}: not the benchmark's segments ({type(error).__name__}: {error})") from None


def _add(
    found: Build,
    root: Path,
    take: Take,
    segment: _Segment,
    label: int,
    best: Best,
    options: Options,
    lengths: Lengths,
) -> None:
    if segment.end_s <= segment.start_s:
        found.skipped["the segment is empty"] += 1
        return
    if take.ego is None:
        found.skipped["the take has no RGB video of Aria glasses"] += 1
        return
    span = (segment.start_s, segment.end_s) if options.exo == "segment" else None
    camera = choose_exo(take, best, span, found)
    if camera is None and not options.keep_missing:
        found.skipped["the take has no exo video"] += 1
        return
    ego = _video(found, root, take, take.ego, options.resolution)
    exo = None if camera is None else _video(found, root, take, take.exo[camera], options.resolution)
    if not there(found, options.keep_missing, {"the ego video": ego, "the exo video": exo}):
        return
    start, name = max(0.0, segment.start_s), f"{take.name}_{segment.step}_{_milliseconds(segment)}"
    end = lengths.shortened(found, start, segment.end_s, (path for path in (ego, exo) if path and found.has(path)))
    if end is None:
        return
    body, hand = (_pose(found, root, take, segment.split, kind) for kind in ("body", "hand"))
    extra = {"take": take.name, "take_uid": take.uid, "exo_view": camera or "", "hand_pose_path": str(hand or "")}
    found.rows.append(Row(name, segment.split, label, ego, exo, start, end, body, extra))


def _milliseconds(segment: _Segment) -> str:
    """The segment in a name without dots: some readers take a name for what stands before its first dot."""
    return f"{round(segment.start_s * 1000):07d}_{round(segment.end_s * 1000):07d}"


def _video(found: Build, root: Path, take: Take, written: str, resolution: Resolution) -> Path:
    """A take's video, `written` from its folder: full size, or scaled down, which lies in a folder below."""
    full = root / "takes" / take.name / written
    small = full.parent / "downscaled" / "448" / full.name
    if resolution == "auto":
        return small if found.has(small) or not found.has(full) else full
    return small if resolution == "448" else full


def _pose(found: Build, root: Path, take: Take, split: Split, kind: str) -> Path | None:
    """Skeletons of a take: those that people placed before those that were estimated."""
    folder = root / "annotations" / "ego_pose" / ("train" if split == "train" else "val") / kind
    return pose_of(found, f"{kind} poses", [folder / made / f"{take.uid}.json" for made in ("annotation", "automatic")])
