"""The cells of a clip table, and what is checked about them, column by column."""

from __future__ import annotations

import csv
import difflib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingInputError, TableError

LISTED = 10
"""Problems that one message spells out."""
MOST_CLASSES = 100_000
"""Largest number of classes that integer labels may ask for by themselves; a label beyond is a slip."""

_UP = re.compile(r"(^|[/\\])\.\.([/\\]|$)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass
class Cells:
    """The table as text: the row numbers of the file, and a list of cells per column, '' where empty."""

    path: Path
    rows: list[int]
    columns: dict[str, list[str]]

    def column(self, name: str) -> list[str]:
        """The cells of a column, all empty when the table has no such column."""
        cells = self.columns.get(name)
        return [""] * len(self.rows) if cells is None else cells


@dataclass
class Problems:
    """What is wrong with which row."""

    path: Path
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, what: str) -> None:
        """Note one problem of one row."""
        self.found.append((row, what))

    def refuse(self) -> None:
        """Raise `TableError` with the first problems, in the order of the rows, if there are any."""
        if not self.found:
            return
        self.found.sort(key=lambda problem: problem[0])
        lines = [f"  row {row}: {what}" for row, what in self.found[:LISTED]]
        if len(self.found) > LISTED:
            lines.append(f"  and {len(self.found) - LISTED} more")
        count = len({row for row, _ in self.found})
        rows = "1 row" if count == 1 else f"{count} rows"
        raise TableError("\n".join([f"{self.path}: {rows} cannot be used:", *lines]))


def read_cells(path: Path, required: Sequence[str]) -> Cells:
    """Read a CSV or Parquet file; the suffix `.parquet` (or `.pq`) decides.

    Raises `MissingInputError` when it is not there, `TableError` when it is not such a file, is empty, or
    lacks a required column.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such clip table; give the path of a CSV or Parquet file")
    parquet = path.suffix.lower() in {".parquet", ".pq"}
    cells = _read_parquet(path) if parquet else _read_csv(path)
    missing = [name for name in required if name not in cells.columns]
    if missing:
        raise TableError(_missing_columns(path, missing, list(cells.columns)))
    if not cells.rows:
        raise TableError(f"{path}: the table is empty: it has a header, but no clips")
    return cells


def _missing_columns(path: Path, missing: Sequence[str], found: Sequence[str]) -> str:
    columns = "columns" if len(missing) > 1 else "column"
    text = f"{path}: missing {columns} {', '.join(missing)}; found {', '.join(found)}"
    close = {name: difflib.get_close_matches(name, found, 1, 0.6) for name in missing}
    near = [f"{found_name[0]!r} for {name!r}" for name, found_name in close.items() if found_name]
    if near:
        text += f" (did you mean {', '.join(near)}?)"
    if len(found) == 1 and any(mark in found[0] for mark in ";\t|"):
        text += "; cells must be separated by commas"
    return text


def _read_csv(path: Path) -> Cells:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            records = list(csv.reader(stream, skipinitialspace=True, strict=True))
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise TableError(f"{path}: not a readable CSV file: {error}") from None
    numbered = [(number, record) for number, record in enumerate(records, 1) if any(map(str.strip, record))]
    if not numbered:
        raise TableError(f"{path}: the table is empty: it has no header and no clips")
    (_, header), *body = numbered
    names = [name.strip() for name in header]
    problems = Problems(path)
    for number, record in body:
        if len(record) != len(names):
            problems.add(number, f"{len(record)} cells, but the header names {len(names)} columns")
    problems.refuse()
    columns = list(map(list, zip(*(record for _, record in body), strict=True))) or [[] for _ in names]
    return Cells(path, [number for number, _ in body], _named(path, names, columns))


def _read_parquet(path: Path) -> Cells:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise TableError(
            f"{path}: reading Parquet needs pyarrow: pip install 'uniego[parquet]', or save the table as CSV"
        ) from None
    import pyarrow

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise TableError(f"{path}: not a readable Parquet file: {error}") from None
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    return Cells(path, list(range(1, table.num_rows + 1)), _named(path, table.column_names, columns))


def _text(value: Any) -> str:
    """A Parquet cell as a CSV would write it; whole floats as integers, as pandas stores labels with gaps."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _named(path: Path, names: Sequence[str], columns: Sequence[list[str]]) -> dict[str, list[str]]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TableError(f"{path}: column named twice: {', '.join(map(repr, twice))}")
    ours = {"clip_id", "split", "label", "ego_path", "exo_path", "start_s", "end_s", "pose_path"}
    return {
        name: [cell.strip() for cell in column] if name in ours else column
        for name, column in zip(names, columns, strict=True)
    }


def check_ids(cells: Cells, problems: Problems) -> None:
    """Clip ids are there, unique, and fit on a line."""
    first: dict[str, int] = {}
    for row, clip_id in zip(cells.rows, cells.columns["clip_id"], strict=True):
        if not clip_id:
            problems.add(row, "clip_id is empty")
        elif not clip_id.isprintable() and _breaks_lines(clip_id):
            problems.add(row, f"clip_id {clip_id!r} has control characters")
        elif (earlier := first.setdefault(clip_id, row)) != row:
            problems.add(row, f"clip_id {clip_id!r} is also in row {earlier}")


def _breaks_lines(text: str) -> bool:
    return any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in text)


def check_splits(cells: Cells, splits: Sequence[str], problems: Problems) -> None:
    """Every row belongs to a known split."""
    known = frozenset(splits)
    for row, split in zip(cells.rows, cells.columns["split"], strict=True):
        if split not in known:
            problems.add(row, f"unknown split {split!r}; expected {', '.join(splits)}")


def check_paths(cells: Cells, names: Sequence[str], problems: Problems) -> None:
    """The ego path is there, and no path climbs out of the folder it starts from."""
    for row, written in zip(cells.rows, cells.columns["ego_path"], strict=True):
        if not written:
            problems.add(row, "ego_path is empty")
    for name in names:
        for row, written in zip(cells.rows, cells.columns.get(name, ()), strict=False):
            if ".." in written and _UP.search(written):
                problems.add(row, f"{name} {written!r} contains '..'; write it from data.root, or absolute")
            elif "\0" in written:
                problems.add(row, f"{name} {written!r} contains a NUL character")


def check_times(cells: Cells, problems: Problems) -> list[tuple[float | None, float | None]]:
    """Start and end of every row in seconds, None where empty: finite, not negative, end after start."""
    times: list[tuple[float | None, float | None]] = []
    for row, first, last in zip(cells.rows, cells.column("start_s"), cells.column("end_s"), strict=True):
        start = _seconds(row, "start_s", first, problems) if first else None
        end = _seconds(row, "end_s", last, problems) if last else None
        if start is not None and start < 0:
            problems.add(row, f"start_s {first} is negative")
        elif end is not None and end <= (start or 0.0):
            problems.add(row, f"end_s {last} is not after start_s {first or 0}")
        times.append((start, end))
    return times


def _seconds(row: int, name: str, text: str, problems: Problems) -> float | None:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    problems.add(row, f"{name} {text!r} is not a number of seconds")
    return None


@dataclass(frozen=True)
class Labels:
    """Label per row, class names in label order, and the number of classes."""

    ids: list[int]
    classes: tuple[str, ...]
    count: int


def check_labels(cells: Cells, num_classes: int | None, problems: Problems) -> Labels:
    """Labels as integers: as written when all of them are, otherwise names become ids in sorted order."""
    texts = cells.columns["label"]
    for row, text in zip(cells.rows, texts, strict=True):
        if not text:
            problems.add(row, "label is empty")
    integer = {text: bool(_INTEGER.fullmatch(text)) for text in set(texts) if text}
    if all(integer.values()):
        return _integer_labels(cells, num_classes, problems)
    if any(integer.values()):
        _note_mixed(cells, integer, problems)
        return Labels([], (), 0)
    return _named_labels(cells, num_classes, sorted(integer), problems)


def _note_mixed(cells: Cells, integer: Mapping[str, bool], problems: Problems) -> None:
    numbers = sum(integer[text] for text in cells.columns["label"] if text)
    names = sum(not integer[text] for text in cells.columns["label"] if text)
    odd, kind, rest = (True, "an integer", "a name") if numbers <= names else (False, "a name", "an integer")
    for row, text in zip(cells.rows, cells.columns["label"], strict=True):
        if text and integer[text] is odd:
            problems.add(row, f"label {text!r} is {kind}, most rows have {rest}; use one kind throughout")


def _integer_labels(cells: Cells, num_classes: int | None, problems: Problems) -> Labels:
    most = MOST_CLASSES if num_classes is None else num_classes
    ids: list[int] = []
    for row, text in zip(cells.rows, cells.columns["label"], strict=True):
        label = int(text) if text else 0
        if not 0 <= label < most:
            problems.add(row, f"label {label} is out of range 0..{most - 1}")
            label = 0
        ids.append(label)
    count = max(ids) + 1 if num_classes is None else num_classes
    return Labels(ids, _class_names(cells, ids, count, problems), count)


def _class_names(cells: Cells, ids: Sequence[int], count: int, problems: Problems) -> tuple[str, ...]:
    """Names out of a column `class_name`; the number of a class that has none, and beside a name that several have."""
    names: dict[int, str] = {}
    for row, label, name in zip(cells.rows, ids, cells.columns.get("class_name", ()), strict=False):
        if name and names.setdefault(label, name) != name:
            problems.add(row, f"label {label} has class_name {name!r}, but {names[label]!r} in a row before")
    shared = Counter(names.values())
    told = (f"{names[i]} ({i})" if i in names and shared[names[i]] > 1 else names.get(i, str(i)) for i in range(count))
    return tuple(told)


def _named_labels(cells: Cells, num_classes: int | None, names: Sequence[str], problems: Problems) -> Labels:
    order = {name: position for position, name in enumerate(names)}
    count = len(names) if num_classes is None else num_classes
    ids = [order.get(text, 0) for text in cells.columns["label"]]
    if len(names) > count:
        for row, label in zip(cells.rows, ids, strict=True):
            if label >= count:
                what = f"label {names[label]!r} is out of range: number {label + 1} of {len(names)} names"
                problems.add(row, f"{what}, but num_classes is {count}")
    return Labels(ids, tuple(names), count)
