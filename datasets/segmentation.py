"""Ground truth of temporal action segmentation in the field's layout, as MS-TCN and its successors read it.

    groundTruth/<video>.txt      one class name per frame and line
    mapping.txt                  `<number> <name>` per line
    splits/<split>.split1.bundle one `<video>.txt` per line
    videos.csv                   video, frames per second, start of its first line in seconds, ego and exo file

Names have underscores instead of spaces, since readers split the lines of mapping.txt and of predictions at spaces.
Every file ends in a newline: those readers drop what follows the last one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .building import csv_bytes, seconds


@dataclass(frozen=True)
class LabelledVideo:
    """One video's labels: `names` one per frame at `fps`, the first frame being shown at `start_s`."""

    name: str
    split: str
    names: Sequence[str]
    fps: float
    start_s: float = 0.0
    ego: Path | None = None
    exo: Path | None = None


def layout(folder: str, videos: Iterable[LabelledVideo], classes: Sequence[str]) -> dict[str, bytes]:
    """The files of a data set, by their path; `classes` in the order of their numbers."""
    ordered = sorted(videos, key=lambda video: video.name)
    content = {f"{folder}/groundTruth/{video.name}.txt": lines(map(plain, video.names)) for video in ordered}
    content[f"{folder}/mapping.txt"] = lines(f"{place} {plain(name)}" for place, name in enumerate(classes))
    splits: dict[str, list[str]] = defaultdict(list)
    for video in ordered:
        splits[video.split].append(f"{video.name}.txt")
    content |= {f"{folder}/splits/{split}.split1.bundle": lines(names) for split, names in sorted(splits.items())}
    header = ["video", "fps", "start_s", "frames", "ego_path", "exo_path"]
    rows = [[v.name, f"{v.fps:g}", seconds(v.start_s), len(v.names), v.ego or "", v.exo or ""] for v in ordered]
    content[f"{folder}/videos.csv"] = csv_bytes(header, rows)
    return content


def plain(name: str) -> str:
    """A class name without spaces."""
    return "_".join(name.split())


def lines(texts: Iterable[str]) -> bytes:
    """Lines, each ended by a newline."""
    return "".join(f"{text}\n" for text in texts).encode()


def read_lines(path: Path) -> list[str]:
    """The lines of a label or bundle file: CRLF or LF, with or without a final newline, empty ones left out."""
    return [text for line in path.read_text(encoding="utf-8-sig").splitlines() if (text := line.strip())]
