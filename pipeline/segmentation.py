"""The layout of data for temporal action segmentation that public heads read, and its writer.

FOLDER/groundTruth/<video>.txt          a class name per frame, one a line
FOLDER/mapping.txt                      "<number> <name>" a line, 0..C-1
FOLDER/splits/<part>.<split>.bundle     "<video>.txt" a line; part: train, test
FOLDER/features/<video>.npy             float32 [D, T]

Real files have Windows line ends, no newline at the end, or bundles without ".txt": all of that is read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import MissingInputError, TableError
from . import files

PARTS = ("train", "test")
FEATURES = "features"


@dataclass(frozen=True)
class Layout:
    """Videos of either part, class names in the order of their numbers, and each video's labels, int64 [frames]."""

    folder: Path
    classes: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    labels: dict[str, npt.NDArray[np.int64]]

    @property
    def videos(self) -> tuple[str, ...]:
        """All of them, train first."""
        return tuple(dict.fromkeys(video for part in PARTS for video in self.parts[part]))


def missing_part(folder: Path, split: str) -> str | None:
    """What a folder lacks to be such a layout, None if it has all."""
    wanted = ["groundTruth", "mapping.txt", *(f"splits/{part}.{split}.bundle" for part in PARTS)]
    missing = [name for name in wanted if not (folder / name).exists()]
    return ", ".join(missing) or None


def read_layout(folder: Path, split: str) -> Layout:
    """Read one split. Raises `MissingInputError` for files that are not there, `TableError` naming file and line."""
    missing = missing_part(folder, split)
    if missing:
        raise MissingInputError(f"{folder} is no segmentation layout of {split}: no {missing}")
    classes = read_mapping(folder / "mapping.txt")
    parts = {part: read_bundle(folder / "splits" / f"{part}.{split}.bundle") for part in PARTS}
    both = sorted(set(parts["train"]) & set(parts["test"]))
    if both:
        raise TableError(f"{folder}: {split} has {len(both)} videos in train and in test: {', '.join(both[:5])}")
    videos = [video for part in PARTS for video in parts[part]]
    return Layout(
        folder, classes, parts, {v: read_labels(folder / "groundTruth" / f"{v}.txt", classes) for v in videos}
    )


def read_mapping(path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, which must be 0..C-1."""
    names: dict[int, str] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line:
            continue
        first, _, name = line.partition(" ")
        if not first.isdigit() or not name.strip() or int(first) in names:
            raise TableError(f"{path}: line {number}: {line!r} is not a new '<number> <name>'")
        names[int(first)] = name.strip()
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names) or not names:
        raise TableError(f"{path}: the numbers must be 0..C-1, the names all different")
    return tuple(names[number] for number in range(len(names)))


def read_bundle(path: Path) -> tuple[str, ...]:
    """Names of videos, without ".txt", in the file's order."""
    names = [Path(line).name.removesuffix(".txt") for line in _lines(path) if line]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise TableError(f"{path}: {f'names {twice[0]} twice' if twice else 'names no video'}")
    return tuple(names)


def read_labels(path: Path, classes: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
    """Class of every frame, int64 [frames], as places in `classes`; None: the labels are numbers themselves."""
    lines = _lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise TableError(f"{path}: no labels in it")
    numbers = {name: place for place, name in enumerate(classes)} if classes is not None else None
    labels = np.empty(len(lines), np.int64)
    for place, text in enumerate(lines):
        number = (int(text) if text.isdigit() else None) if numbers is None else numbers.get(text)
        if number is None:
            what = "a number" if classes is None else "a class of mapping.txt"
            raise TableError(f"{path}: line {place + 1}: {text!r} is not {what}")
        labels[place] = number
    return labels


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def write_layout(
    folder: Path,
    classes: Sequence[str],
    parts: Mapping[str, Sequence[str]],
    labels: Mapping[str, Sequence[int]],
    split: str,
) -> None:
    """Write groundTruth, mapping.txt and the bundles of one split."""
    files.write_bytes(folder / "mapping.txt", "".join(f"{i} {name}\n" for i, name in enumerate(classes)).encode())
    for part, videos in parts.items():
        text = "".join(f"{video}.txt\n" for video in videos)
        files.write_bytes(folder / "splits" / f"{part}.{split}.bundle", text.encode())
    for video, numbers in labels.items():
        text = "".join(f"{classes[number]}\n" for number in numbers)
        files.write_bytes(folder / "groundTruth" / f"{video}.txt", text.encode())


def features_path(folder: Path, video: str) -> Path:
    """Where the features of a video lie."""
    return folder / FEATURES / f"{video}.npy"


def write_features(folder: Path, video: str, features: npt.NDArray[np.float32]) -> None:
    """Write features float32 [T, D] the field's way round, [D, T]."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(features.T))
    files.write_bytes(features_path(folder, video), out.getvalue())


def read_features(path: Path) -> npt.NDArray[np.float32]:
    """Features as float32 [D, T], as they lie."""
    found: npt.NDArray[np.float32] = np.load(path, allow_pickle=False).astype(np.float32, copy=False)
    if found.ndim != 2:
        raise TableError(f"{path}: features [D, T] wanted, not {[*found.shape]}")
    return found


def write_prediction(path: Path, names: Sequence[str]) -> None:
    """Frame labels as MS-TCN's evaluation reads them: a title line, then all labels on one line.

    Spaces divide labels there, so those inside a name become underscores.
    """
    text = " ".join("_".join(name.split()) for name in names)
    files.write_bytes(path, f"### Frame level recognition: ###\n{text}\n".encode())


def read_prediction(path: Path) -> list[str]:
    """Frame labels as `write_prediction` wrote them. Raises `TableError` for a file without them."""
    lines = _lines(path)
    if len(lines) < 2 or not lines[1]:
        raise TableError(f"{path}: no frame labels on its second line")
    return lines[1].split()
