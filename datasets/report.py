"""What `uniego data check` tells of a table beside missing files: durations, balance, pairs, leakage, a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pipeline.clips import SPLITS, Clip, ClipTable
from ..pipeline.durations import header_seconds
from ..pipeline.progress import Meter
from .leakage import OVERLAP_S, Overlap, Visual, look_alikes, overlaps
from .looking import Looked, look, sample, write_sheets

LISTED = 5
"""Examples that are spelled out."""


@dataclass(frozen=True)
class Options:
    """`sampled`: clips that are decoded. `hashed`: clips per split that are compared by sight. `sheets`: the folder of
    contact sheets, None for none."""

    sampled: int = 16
    hashed: int = 50
    sheets: Path | None = None
    seed: int = 0
    backend: str = "pyav"


@dataclass
class Report:
    """What was found. `bad`: whether the table should not be used as it is."""

    splits: dict[str, dict[str, Any]]
    overlaps: list[Overlap]
    visual: Visual | None
    decoded: int
    looked: Looked
    sheets: list[Path]

    @property
    def bad(self) -> bool:
        """Whether clips of the sample do not decode, or ego clips of two splits share time of one file."""
        return bool(self.looked.errors) or any(overlap.view == "ego" for overlap in self.overlaps)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        errors = [
            {"clip_id": clip, "view": view, "reason": error.reason, "message": str(error)}
            for (clip, view), error in self.looked.errors.items()
        ]
        return {
            "by_split": self.splits,
            "overlaps": [asdict(overlap) for overlap in self.overlaps],
            "look_alikes": None if self.visual is None else asdict(self.visual),
            "decoded": {"clips": self.decoded, "errors": errors},
            "sheets": [str(path) for path in self.sheets],
        }


def examine(table: ClipTable, options: Options, *, leave_out: Sequence[Clip] = ()) -> Report:
    """Look at a table; clips to `leave_out`, whose files are known to be missing, are not decoded.

    Raises `OSError` of the machine.
    """
    absent = {clip.clip_id for clip in leave_out}
    there = [clip for clip in table.clips if clip.clip_id not in absent]
    chosen = sample(there, options.sampled, options.seed)
    present = ClipTable(table.path, tuple(there), table.classes, table.num_classes)
    hashing = sum(min(len(present.split(split)), options.hashed) for split in SPLITS) if _splits_of(present) > 1 else 0
    with Meter("data check", len(chosen) + hashing, unit="clips") as meter:
        looked = look(chosen, options.backend, lambda: meter.advance(1))
        visual = None
        if hashing:
            visual = look_alikes(present, options.hashed, options.seed, options.backend, lambda: meter.advance(1))
    sheets = [] if options.sheets is None else write_sheets(table, chosen, looked, options.sheets)
    splits: dict[str, dict[str, Any]] = {s: _split(table, clips) for s in SPLITS if (clips := table.split(s))}
    return Report(splits, overlaps(table), visual, len(chosen), looked, sheets)


def _splits_of(table: ClipTable) -> int:
    return sum(count > 0 for count in table.splits.values())


def _split(table: ClipTable, clips: Sequence[Clip]) -> dict[str, Any]:
    """Seconds and clips per class of one split; of clips without an end the header of a few files tells."""
    counts = Counter(clip.label for clip in clips)
    known = [clip.end_s - (clip.start_s or 0.0) for clip in clips if clip.end_s is not None]
    whole = [clip for clip in clips if clip.end_s is None]
    asked = sample(whole, LISTED * 4)
    lasting = [whole_s - (c.start_s or 0.0) for c in asked if (whole_s := header_seconds(c.ego_path)) is not None]
    seconds = np.array(known + lasting)
    duration = None
    if len(seconds):
        estimate = float(np.sum(known)) + (len(whole) * float(np.mean(lasting)) if lasting else 0.0)
        duration = {
            "shortest_s": round(float(seconds.min()), 3),
            "median_s": round(float(np.median(seconds)), 3),
            "longest_s": round(float(seconds.max()), 3),
            "hours": round(estimate / 3600, 3),
            "whole_files_looked_at": len(asked),
        }
    return {
        "clips": len(clips),
        "without_exo": sum(clip.exo_path is None for clip in clips),
        "without_pose": sum(clip.pose_path is None for clip in clips),
        "classes": len(counts),
        "fewest_per_class": min(counts.values()),
        "median_per_class": float(np.median(list(counts.values()))),
        "most_per_class": max(counts.values()),
        "duration": duration,
    }


def describe(report: Report) -> list[str]:
    """The report in lines."""
    lines = []
    for name, split in report.splits.items():
        balance = f"{split['fewest_per_class']} to {split['most_per_class']} clips each"
        lines.append(f"{name}: {split['classes']} classes of {balance}; without exo video: {split['without_exo']}")
        if (duration := split["duration"]) is not None:
            spread = f"{duration['shortest_s']:g} to {duration['longest_s']:g} s, median {duration['median_s']:g} s"
            lines.append(f"  clips of {spread}; about {duration['hours']:.2f} hours")
    for view in ("ego", "exo"):
        mine = [overlap for overlap in report.overlaps if overlap.view == view]
        if mine:
            shared = f"shares more than {OVERLAP_S} s of an {view} video with another split"
            lines.append(f"leakage: {len(mine)} times a clip {shared}:")
            lines += [f"  {o.clip} ({o.split}) and {o.other} ({o.other_split})" for o in mine[:LISTED]]
    lines += [*_describe_visual(report), *_describe_sample(report)]
    return lines


def _describe_visual(report: Report) -> list[str]:
    visual = report.visual
    if visual is None:
        return []
    compared = ", ".join(f"{count} of {split}" for split, count in visual.compared.items())
    text = f"look-alikes between splits: {len(visual.pairs)} pairs, in a sample ({compared or 'none'}; not all clips)"
    if visual.flat:
        text += f"; {visual.flat} clips with nearly one-coloured frames were not compared"
    lines = [text]
    for pair in visual.pairs[:LISTED]:
        where = ", the same file" if pair.same_file else ""
        lines.append(
            f"  {pair.clip} ({pair.split}) and {pair.other} ({pair.other_split}): {pair.bits} of 64 bits differ{where}"
        )
    return lines


def _describe_sample(report: Report) -> list[str]:
    lines = [f"decoded: {report.decoded} clips of the table, both views; {len(report.looked.errors)} errors"]
    for (clip, view), error in list(report.looked.errors.items())[:LISTED]:
        lines.append(f"  {clip}, {view}: {error}")
    if report.sheets:
        lines.append(f"contact sheets: {', '.join(map(str, report.sheets))}")
    return lines
