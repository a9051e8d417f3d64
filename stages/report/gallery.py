"""The retrieval gallery: what the student finds nearest to clips of the test split, with real frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.clips import Clip, View
from ...pipeline.rundir import Run
from ..evaluation.recognition import class_names
from ..evaluation.retrieval import NEAREST, exo_nearest
from .answers import outdated
from .choice import hits_and_misses
from .pictures import Box, Budget, Picture, Wanted, look, render
from .section import Absent, Section

ID, TITLE = "retrieval-gallery", "Retrieval gallery"
QUERIES, NEIGHBOURS = 8, 5
BOX: Box = (184, 138)


@dataclass(frozen=True)
class Found:
    """A neighbour: `mark` is "right" (of the query's class), "partner" (its own other view) or "wrong"."""

    picture: Picture
    clip_id: str
    name: str
    cosine: float
    mark: str


@dataclass(frozen=True)
class Query:
    """A query and its neighbours, nearest first."""

    picture: Picture
    clip_id: str
    name: str
    hit: bool
    found: tuple[Found, ...]


def retrieval_gallery(run: Run, budget: Budget) -> Section | Absent:
    """Queries of the test split with their five nearest clips: ego → ego, and ego → exo where that was measured."""
    folder = run.evaluation_folder("student").path / "retrieval"
    if not (folder / NEAREST).exists():
        command = run.command("evaluate --task retrieval")
        return Absent(ID, TITLE, f"retrieval was not measured for the student: run `{command}`")
    results = json.loads((folder / "record.json").read_text(encoding="utf-8")).get("results", {})
    rows = [_gallery(run, budget, folder / NEAREST, "ego", "Ego → ego", results.get("ego_to_ego", {}))]
    best = _best_exo(results)
    if best is not None and exo_nearest(folder, best).exists():
        title = f"Ego → exo, by the features of {best}"
        entry = results["ego_to_exo"][best]
        rows.append(_gallery(run, budget, exo_nearest(folder, best), "exo", title, entry))
    absent = _without_exo(run, results, best, rows)
    return Section(
        ID, TITLE, render("pictures_gallery.html", galleries=rows, absent=absent), f"{_NOTE} {outdated(run)}".strip()
    )


_NOTE = (
    "Queries are drawn by the run's seed, one class after the other: half of them found a clip of their class first, "
    "half did not, as far as there are as many. The number under a picture is the cosine."
)


def _best_exo(results: Mapping[str, Any]) -> str | None:
    """The exo teacher whose features are found best, by mAP of the class, or of the partner where no class repeats."""
    entries = {key: entry for key, entry in results.get("ego_to_exo", {}).items() if "class" in entry}
    scores = {key: [entry[kind]["map"] for kind in ("class", "partner")] for key, entry in entries.items()}
    return max(scores, key=lambda key: [score or 0.0 for score in scores[key]]) if scores else None


def _without_exo(run: Run, results: Mapping[str, Any], best: str | None, rows: Sequence[Any]) -> str:
    """Why there is no gallery of exo clips; empty where there is one."""
    if len(rows) > 1:
        return ""
    if best is not None:
        command = run.command("evaluate --task retrieval --overwrite")
        return f"Ego → exo was measured before the nearest clips were kept: `{command}` writes them down."
    reasons = "; ".join(f"{key}: {why}" for key, why in results.get("absent", {}).items())
    return f"No exo features to search in{f' ({reasons})' if reasons else ''}."


def _gallery(
    run: Run, budget: Budget, path: Path, view: View, title: str, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Values for the template: what was measured, and the queries that were chosen."""
    clips = {clip.clip_id: clip for clip in run.table().split("test")}
    chosen = _chosen(run, path, clips)
    pictures = _pictures(run, budget, chosen, clips, view)
    names = class_names(run, run.table().num_classes)

    def found(query: str, clip_id: str, cosine: float) -> Found:
        clip = clips.get(clip_id)
        same = clip is not None and clip.label == clips[query].label
        mark = "partner" if view == "exo" and clip_id == query else "right" if same else "wrong"
        name = "no longer in the table" if clip is None else names[clip.label]
        return Found(pictures[view, clip_id], clip_id, name, cosine, mark)

    queries = [
        Query(
            pictures["ego", query],
            query,
            names[clips[query].label],
            bool(near) and near[0][0] in clips and clips[near[0][0]].label == clips[query].label,
            tuple(found(query, *pair) for pair in near),
        )
        for query, near in chosen.items()
    ]
    return {"title": title, "queries": queries, "measured": _measured(measured), "view": view}


def _measured(entry: Mapping[str, Any]) -> str:
    """Numbers of the whole split, in a line."""
    parts = []
    for name, words in (("class", "a clip of the class, its own partner left out"), ("partner", "its own partner")):
        if name in entry and entry[name]["map"] is not None:
            parts.append(f"{words}: mAP {entry[name]['map']:.1f}, R@1 {entry[name]['r@1']:.1f}")
    if entry.get("map") is not None:
        parts.append(f"mAP {entry['map']:.1f}, R@1 {entry['r@1']:.1f}, over {entry['queries']} queries")
    way = entry.get("protocol", {}).get("map")
    return "; ".join([*parts, *([f"mapped by {way}"] if way else [])])


def _chosen(run: Run, path: Path, clips: Mapping[str, Clip]) -> dict[str, list[tuple[str, float]]]:
    """Nearest clips by query, half hits and half misses by the class of the nearest one."""
    hits: list[Clip] = []
    misses: list[Clip] = []
    for query, near in _lines(path):
        if query in clips and near:
            nearest = clips.get(near[0][0])
            hit = nearest is not None and nearest.label == clips[query].label
            (hits if hit else misses).append(clips[query])
    ids = [clip.clip_id for clip in hits_and_misses(hits, misses, QUERIES, run.config.seed)]
    near_of = {query: near for query, near in _lines(path) if query in ids}
    return {query: near_of[query] for query in ids}


def _lines(path: Path) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Query and its nearest clips with their cosines, line by line: the file may be long."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            yield entry["clip_id"], [(clip_id, cosine) for clip_id, cosine in entry["nearest"][:NEIGHBOURS]]


def _pictures(
    run: Run,
    budget: Budget,
    chosen: Mapping[str, Sequence[tuple[str, float]]],
    clips: Mapping[str, Clip],
    view: View,
) -> dict[tuple[View, str], Picture]:
    """The middle frame of every clip that is shown, by view and id; each is decoded once."""
    places: list[tuple[View, str]] = [("ego", query) for query in chosen]
    places += [(view, clip_id) for near in chosen.values() for clip_id, _ in near]
    there = [place for place in dict.fromkeys(places) if place[1] in clips]
    pictures = {
        place: Picture(place[1], reason="the clip table does not have it any more")
        for place in places
        if place not in there
    }
    for place, looked in zip(there, look(run, [Wanted(clips[i], v, 1) for v, i in there]), strict=True):
        alt = f"{place[0]} frame of {place[1]}"
        gap = Picture(alt, reason=str(looked.error))
        pictures[place] = gap if looked.frames is None else budget.picture(looked.frames[0], BOX, alt)
    return pictures
