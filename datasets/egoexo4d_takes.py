"""Takes of Ego-Exo4D: which of a take's videos is the ego view, and which camera saw best from outside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TableError
from .building import Build, read_json

_PSEUDO = {"collage", "best_exo"}
_SPLIT_SIZES = {"train": 3072, "val": 842, "test": 1121}


@dataclass(frozen=True)
class Take:
    """A take: its folder's name, its ego video, and its exo videos by camera; paths are relative to the folder."""

    uid: str
    name: str
    ego: str | None
    exo: Mapping[str, str]
    best_exo: str | None
    dropped: bool


def read_takes(path: Path) -> dict[str, Take]:
    """The takes of `takes.json`, by uid. Raises `MissingInputError`, and `TableError` for another file."""
    content = read_json(path, "list of takes of Ego-Exo4D")
    try:
        return {take["take_uid"]: _take(take) for take in content}
    except (KeyError, TypeError, AttributeError) as error:
        raise TableError(f"{path}: not the list of takes of Ego-Exo4D ({type(error).__name__}: {error})") from None


def _take(take: Mapping[str, Any]) -> Take:
    cameras = {camera["cam_id"]: camera for camera in (take.get("capture") or {}).get("cameras") or ()}
    ego: str | None = None
    exo: dict[str, str] = {}
    for name, streams in sorted((take.get("frame_aligned_videos") or {}).items()):
        if name in _PSEUDO or not streams:
            continue
        known = cameras.get(name, {})
        aria = known.get("device_type", "").lower() == "aria" or "aria" in name.lower()
        if aria and known.get("is_ego", True):
            ego = ego or _path(streams, "rgb")
        elif not aria and not known.get("is_ego", False) and (found := _path(streams, "0")):
            exo[name] = found
    name = str(take.get("take_name") or Path(take["root_dir"]).name)
    return Take(take["take_uid"], name, ego, exo, take.get("best_exo") or None, bool(take.get("is_dropped")))


def _path(streams: Mapping[str, Any], stream: str) -> str | None:
    return (streams.get(stream) or {}).get("relative_path") or None


@dataclass(frozen=True)
class Best:
    """Which exo camera showed best, by take, as (second, camera) in the order of time."""

    seen: Mapping[str, list[tuple[float, str]]]

    def majority(self, take: Take, start_s: float = 0.0, end_s: float = float("inf")) -> str | None:
        """The camera named most often from `start_s` to `end_s` that has a video; the first by name among equals."""
        votes = Counter(
            camera for second, camera in self.seen.get(take.uid, ()) if start_s <= second < end_s and camera in take.exo
        )
        return min(votes, key=lambda camera: (-votes[camera], camera), default=None)


def read_best(annotations: Path) -> Best:
    """The best exo cameras of the atomic descriptions that are there; none of rejected or unsure ones."""
    seen: dict[str, list[tuple[float, str]]] = {}
    for split in ("train", "val"):
        path = annotations / f"atomic_descriptions_{split}.json"
        if not path.is_file():
            continue
        try:
            for uid, annotators in (read_json(path, "atomic descriptions").get("annotations") or {}).items():
                seen.setdefault(uid, []).extend(pair for annotator in annotators for pair in _votes(annotator))
        except (KeyError, TypeError, AttributeError) as error:
            raise TableError(f"{path}: not atomic descriptions ({type(error).__name__}: {error})") from None
    return Best({uid: sorted(found) for uid, found in seen.items()})


def _votes(annotator: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(second, camera) of what one annotator described; nothing of a rejected one."""
    if _true(annotator.get("rejected")):
        return []
    sure = [text for text in annotator.get("descriptions") or () if not _true(text.get("unsure"))]
    named = [(text["timestamp"], (text.get("best_exo") or {}).get("cam_id")) for text in sure]
    return [(float(second), camera) for second, camera in named if camera]


def _true(value: Any) -> bool:
    """A boolean that is sometimes written as the text "0" or "1"."""
    return value is True or value == 1 or str(value).strip().lower() in {"1", "true"}


def choose_exo(take: Take, best: Best, span: tuple[float, float] | None, found: Build) -> str | None:
    """The exo camera of a clip, and a note of how it was found.

    In this order: what the atomic descriptions within `span` (seconds) name most often, where a span is given; the
    take's `best_exo`; what the descriptions of the whole take name most often; the first GoPro by name.
    """
    if span is not None and (camera := best.majority(take, *span)):
        found.notes["exo by the descriptions within the segment"] += 1
        return camera
    if take.best_exo in take.exo:
        found.notes["exo by the take's best_exo"] += 1
        return take.best_exo
    if camera := best.majority(take):
        found.notes["exo by the descriptions of the take, which has no best_exo"] += 1
        return camera
    fixed = sorted(camera for camera in take.exo if re.fullmatch(r"(cam|gp)\d+", camera))
    if fixed:
        found.notes["exo is the first camera by name: nothing says which is best"] += 1
        return fixed[0]
    return None


def check_splits(path: Path, found: Build) -> dict[str, str]:
    """The official split of each take, where splits.json is there; a warning where its sizes are not those of v2."""
    if not path.is_file():
        found.notes["splits.json is not there: the files' own splits are taken"] += 1
        return {}
    content = read_json(path, "splits of Ego-Exo4D")
    for split, published in _SPLIT_SIZES.items():
        found.expect(f"takes in {split}", len(content.get("split_to_take_uids", {}).get(split, ())), published)
    return dict(content.get("take_uid_to_split") or {})
