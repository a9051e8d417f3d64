"""What all builders share: rows of a clip table, what was left out and why, and the files that are written."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingInputError, TableError, UsageError
from ..pipeline import files
from ..pipeline.clips import Split
from ..pipeline.durations import header_seconds
from ..pipeline.video_frames import SUFFIX

COLUMNS = ("clip_id", "split", "label", "ego_path", "exo_path", "start_s", "end_s", "pose_path")


@dataclass(frozen=True)
class Row:
    """One clip: absolute paths, seconds from the videos' begin, an integer label. `extra`: further columns."""

    clip_id: str
    split: Split
    label: int
    ego: Path
    exo: Path | None = None
    start_s: float | None = None
    end_s: float | None = None
    pose: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Build:
    """What a builder found. `skipped`: rows left out, by reason. `notes`: choices that were made, and how often.

    `warnings`: totals that differ from the published ones. `classes`: (name, further columns) in the order of labels.
    `beside`: files written beside the table, by their path from its folder.
    """

    rows: list[Row] = field(default_factory=list)
    classes: list[dict[str, str]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    beside: dict[str, bytes] = field(default_factory=dict)
    _present: dict[Path, bool] = field(default_factory=dict)

    def has(self, path: Path) -> bool:
        """Whether a file or folder is there; each is looked at once."""
        if path not in self._present:
            self._present[path] = path.exists()
        return self._present[path]

    def expect(self, what: str, found: int, published: int) -> None:
        """Warn where a total differs from the published one."""
        if found != published:
            self.warnings.append(f"{found} {what}, but the data set is published with {published}")

    def frames_file(self, folder: Path, out: Path, name: str, settings: Mapping[str, Any]) -> Path:
        """Plan a `.frames` file of that name for a folder of pictures; where it will lie."""
        base = out.absolute().parent
        place = base / f"{out.stem}-frames" / f"{name}{SUFFIX}"
        inside = folder.is_relative_to(base)
        written = os.path.relpath(folder, place.parent) if inside else str(folder)
        self.beside[place.relative_to(base).as_posix()] = files.to_json({**settings, "folder": written})
        return place


@dataclass
class Lengths:
    """Seconds that videos last, each looked at once; None where the header says nothing."""

    known: dict[Path, float | None] = field(default_factory=dict)

    def of(self, path: Path) -> float | None:
        """Seconds of a video file, None where that is not known."""
        if path not in self.known:
            self.known[path] = header_seconds(path)
        return self.known[path]

    def shortened(self, build: Build, start_s: float, end_s: float, videos: Iterable[Path | None]) -> float | None:
        """The end of a segment within all videos; None, and counted as skipped, where one ends before its start."""
        known = [seconds for video in videos if video is not None and (seconds := self.of(video)) is not None]
        shortest = min(known, default=end_s)
        if shortest <= start_s:
            build.skipped["the segment starts after the video's end"] += 1
            return None
        if shortest < end_s - 0.1:  # a header may miss the last frames by so much
            build.notes["segments cut at the end of the shorter video"] += 1
            return shortest
        return end_s


def there(build: Build, keep_missing: bool, named: Mapping[str, Path | None]) -> bool:
    """Whether all files are there; the first that is not is counted, as skipped or, with `keep_missing`, as a note."""
    for what, path in named.items():
        if path is not None and not build.has(path):
            (build.notes if keep_missing else build.skipped)[f"{what} is not on the disk"] += 1
            return keep_missing
    return True


def pose_of(build: Build, what: str, candidates: Sequence[Path]) -> Path | None:
    """The first skeleton file that is there; where there is none that is counted as a note."""
    found = next((path for path in candidates if build.has(path)), None)
    if found is None:
        build.notes[f"clips without {what}"] += 1
    return found


def write_build(build: Build, out: Path, *, root: Path | None = None, overwrite: bool = False) -> list[Path]:
    """Write the table, the class map beside it, and the build's further files; what was written.

    Each file is whole or absent, and the table comes last. Paths are written from `root` where one is given, otherwise
    from the table's folder where they lie below it, else absolute. The same build gives the same bytes.

    Raises `UsageError` where `out` is no `.csv` file, where a file is there already and `overwrite` is not set, or
    there are no rows; `TableError` for two clips of one id.
    """
    if out.suffix != ".csv":
        raise UsageError(f"--out {out}: the table is a CSV file; name it FILE.csv")
    if not build.rows:
        raise UsageError(f"no clip is left to write; skipped: {summary(build.skipped) or 'none'}")
    content = {name: build.beside[name] for name in sorted(build.beside)}
    content[f"{out.stem}.classes.csv"] = _classes(build)
    content[out.name] = _table(build, out, root)
    paths = [out.parent / name for name in content]
    there_already = [path for path in paths if path.exists()]
    if there_already and not overwrite:
        raise UsageError(f"{there_already[0]} exists; give --overwrite to replace it, or choose another --out")
    for path, data in zip(paths, content.values(), strict=True):
        files.write_bytes(path, data)
    return paths


def summary(counts: Mapping[str, int]) -> str:
    """`3 x reason; 1 x reason`, most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{number} x {reason}" for reason, number in ordered)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file: UTF-8, one newline per row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


def seconds(value: float | None) -> str:
    """Seconds with up to six decimals, '' for None."""
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def read_json(path: Path, what: str) -> Any:
    """A JSON file of a data set. Raises `MissingInputError` where it is not there, `UsageError` where it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInputError(f"{path}: no {what}; is --root the data set's folder?") from None
    except ValueError as error:
        raise UsageError(f"{path}: no whole JSON text ({error}); download it again") from None


def read_csv(path: Path, needed: Sequence[str], what: str, hint: str = "") -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header, cells stripped, one after the other.

    Raises `MissingInputError` where it is not there, `TableError` where it is no such table or, with the hint, lacks
    a column; for a row of another length while the rows are read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInputError(f"{path}: no {what}; is --root the data set's folder?") from None
    except UnicodeDecodeError:
        raise TableError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or ()]
    if missing := [name for name in needed if name not in header]:
        raise TableError(f"{path}: no column {', '.join(missing)}; found {', '.join(header)}{hint}")
    reader.fieldnames = header
    return _stripped(path, reader)


def _stripped(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    for place, row in enumerate(reader, 2):
        if None in row or None in row.values():
            raise TableError(f"{path}: row {place} has not as many cells as its header")
        yield {name: cell.strip() for name, cell in row.items()}


def number(value: Any, path: Path, what: str) -> float:
    """A number out of an annotation. Raises `TableError` for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TableError(f"{path}: {what} is {value!r}, not a number") from None


def integer(text: str, path: Path, what: str) -> int:
    """An integer out of a cell, zero-padded or not. Raises `TableError` for anything else."""
    try:
        return int(text)
    except ValueError:
        raise TableError(f"{path}: {what} is {text!r}, not a whole number") from None


def _classes(build: Build) -> bytes:
    further = [name for name in (build.classes[0] if build.classes else {}) if name != "name"]
    rows = ([label, entry["name"], *(entry[name] for name in further)] for label, entry in enumerate(build.classes))
    return csv_bytes(["label", "name", *further], rows)


def _table(build: Build, out: Path, root: Path | None) -> bytes:
    seen: dict[str, Row] = {}
    for row in build.rows:
        if seen.setdefault(row.clip_id, row) is not row:
            raise TableError(f"two clips are named {row.clip_id!r}: {seen[row.clip_id].ego} and {row.ego}")
    base = (out.parent if root is None else root).absolute()
    extra = sorted({name for row in build.rows for name in row.extra})

    def cell(path: Path | None) -> str:
        if path is None:
            return ""
        return str(path.relative_to(base) if path.is_relative_to(base) else path)

    named = bool(build.classes)
    header = [*COLUMNS, *(["class_name"] if named else []), *extra]
    return csv_bytes(
        header,
        (
            [row.clip_id, row.split, row.label, cell(row.ego), cell(row.exo), seconds(row.start_s), seconds(row.end_s)]
            + [cell(row.pose)]
            + ([build.classes[row.label]["name"]] if named else [])
            + [row.extra.get(name, "") for name in extra]
            for row in sorted(build.rows, key=lambda row: row.clip_id)
        ),
    )
