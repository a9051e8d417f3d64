"""Segmentation strips: what happens in the untrimmed test videos, and what was predicted, over time."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ...errors import UniegoError
from ...metrics import SegmentationScores
from ...metrics.segmentation import Run as Stretch
from ...metrics.segmentation import runs
from ...pipeline import segmentation as layouts
from ...pipeline.charts import COLOURS
from ...pipeline.rundir import Run
from ..evaluation.segmentation import NAMES, layout_folder
from .answers import outdated
from .pictures import Budget, render
from .section import Absent, Section

ID, TITLE = "segmentation-strips", "Segmentation strips"
MODELS = ("student", "ego-only")
VIDEOS = 6
_BACKGROUND = "#9a9a9a"
_COLOURS = [{"#222255": "#8f6a3a"}.get(colour, colour) for colour in COLOURS if colour != "#bbbbbb"]
"""Those of the charts but for the grey one, and a brown in place of the one that is lost on a dark page."""
_HEIGHT = 26  # pixels of a strip
_MOST = 400  # segments of a strip; one that has more is drawn from as many samples
_TOLD = 60  # segments that are read out
_NUMBERED = 0.028  # share of the video from which on a segment carries its number


@dataclass(frozen=True)
class Strip:
    """One row of a video. `scores`: percent by name, empty for the truth."""

    title: str
    svg: Markup
    scores: Mapping[str, float]


def segmentation_strips(run: Run, budget: Budget) -> Section | Absent:
    """Truth and prediction of some test videos side by side; the best and the worst predicted are among them."""
    found = {model: _predictions(run, model) for model in MODELS}
    models = [model for model in MODELS if found[model]]
    if not models:
        return Absent(ID, TITLE, f"no model was measured: run `{run.command('evaluate --task segmentation')}`")
    config = run.config.evaluate.segmentation
    try:
        layout = layouts.read_layout(layout_folder(run), config.split)
    except UniegoError as error:
        return Absent(ID, TITLE, f"the ground truth cannot be read: {error}")
    names = [_joined(name) for name in layout.classes]
    truth = {video: [names[label] for label in labels.tolist()] for video, labels in layout.labels.items()}
    background = frozenset(_joined(name) for name in config.background)
    scores = {
        (model, video): _scores(predicted, truth[video], background)
        for model in models
        for video, predicted in found[model].items()
        if video in truth and len(predicted) <= len(truth[video])
    }
    videos = _spread([video for video in found[models[0]] if (models[0], video) in scores], scores, models[0])
    if not videos:
        return Absent(ID, TITLE, "the predictions are of other videos than the ground truth: evaluate again")
    predicted = [found[model].get(video, []) for model in models for video in videos]
    order = _classes(names, background, [truth[video] for video in videos] + predicted)
    rows = {video: _rows(video, truth[video], found, models, scores, order) for video in videos}
    legend = [{"number": str(n), "name": name.replace("_", " "), "colour": c} for name, (n, c) in order.items()]
    body = render(
        "pictures_strips.html",
        videos=rows,
        lengths={video: len(truth[video]) for video in videos},
        legend=legend,
        measured={model: _measured(run, model) for model in models},
        names=NAMES,
        labels="labels" if config.label_fps is None else f"labels at {config.label_fps:g} per second",
    )
    budget.spend(len(body))
    shown, total = len(videos), len(found[models[0]])
    note = f"{shown} of {total} test videos, from the best to the worst predicted by frames. "
    note += "Ticks under a prediction: where it is not the truth."
    return Section(ID, TITLE, body, f"{note} {outdated(run, models[0])}".strip())


def _joined(name: str) -> str:
    """As it stands in a file of predictions."""
    return "_".join(name.split())


def _predictions(run: Run, model: str) -> dict[str, list[str]]:
    folder = _folder(run, model)
    if not (folder / "record.json").exists():
        return {}
    paths = sorted((folder / "predictions").glob("*.txt"))
    return {path.stem: layouts.read_prediction(path) for path in paths}


def _folder(run: Run, model: str) -> Path:
    return run.evaluation_folder(model).path / "segmentation"


def _measured(run: Run, model: str) -> dict[str, float]:
    """The numbers over all test videos."""
    record = json.loads((_folder(run, model) / "record.json").read_text(encoding="utf-8"))
    return {name: record["results"][name] for name in NAMES if name in record.get("results", {})}


def _scores(predicted: Sequence[str], truth: Sequence[str], background: frozenset[str]) -> dict[str, Any]:
    scores = SegmentationScores(background)
    scores.add(predicted, truth[: len(predicted)])  # labels beyond the last feature were not predicted
    return scores.metrics()


def _spread(videos: Sequence[str], scores: Mapping[tuple[str, str], Mapping[str, float]], model: str) -> list[str]:
    """Up to `VIDEOS` of them at even distances from the best to the worst."""
    ranked = sorted(videos, key=lambda video: (-scores[model, video]["mof"], video))
    if len(ranked) <= VIDEOS:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (VIDEOS - 1))] for place in range(VIDEOS)]


def _classes(
    names: Sequence[str], background: frozenset[str], shown: Sequence[Sequence[str]]
) -> dict[str, tuple[int, str]]:
    """Number and colour of every class that is shown, in the order of the classes; background is grey."""
    present = {name for labels in shown for name in labels}
    ordered = [name for name in names if name in present] + sorted(present - set(names))
    coloured = [name for name in ordered if name not in background]
    colours = {name: _colour(place, len(coloured)) for place, name in enumerate(coloured)}
    return {name: (place, colours.get(name, _BACKGROUND)) for place, name in enumerate(ordered)}


def _colour(place: int, count: int) -> str:
    """One of the colours of the charts while they last, else one of `count` hues in three shades."""
    if count <= len(_COLOURS):
        return _COLOURS[place]
    red, green, blue = colorsys.hls_to_rgb(place / count, (0.42, 0.58, 0.72)[place % 3], 0.6)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _rows(
    video: str,
    truth: Sequence[str],
    found: Mapping[str, Mapping[str, Sequence[str]]],
    models: Sequence[str],
    scores: Mapping[tuple[str, str], Mapping[str, float]],
    order: Mapping[str, tuple[int, str]],
) -> list[Strip]:
    rows = [Strip("truth", _svg(f"truth of {video}", truth, None, len(truth), order), {})]
    for model in models:
        if (model, video) in scores:
            title = f"{model}'s prediction of {video}"
            svg = _svg(title, found[model][video], truth, len(truth), order)
            rows.append(Strip(model, svg, scores[model, video]))
    return rows


def _svg(
    title: str,
    labels: Sequence[str],
    truth: Sequence[str] | None,
    length: int,
    order: Mapping[str, tuple[int, str]],
) -> Markup:
    """A strip as wide as the page lets it be; below a prediction, ticks where it differs from `truth`."""
    stretches = runs(labels)
    said = ", ".join(f"{str(s.label).replace('_', ' ')} {s.start}–{s.end}" for s in stretches[:_TOLD])
    if len(stretches) > _TOLD:
        said += f" and {len(stretches) - _TOLD} more segments"
    if len(stretches) > _MOST:
        labels, truth, length, stretches = _coarse(labels, truth, length)
        said += f"; drawn from {_MOST} samples"
    parts = [_segment(stretch, length, order) for stretch in stretches]
    height = _HEIGHT
    if truth is not None:
        height += 6
        for wrong in runs([str(a != b) for a, b in zip(labels, truth, strict=False)], background=("False",)):
            x, width = 100 * wrong.start / length, 100 * (wrong.end - wrong.start) / length
            parts.append(f'<rect class="pic-off" x="{x:.3f}%" y="{_HEIGHT + 2}" width="{width:.3f}%" height="4"/>')
    size = f'width="100%" height="{height}"'
    told = f'role="img" aria-label="{escape(title)}: {escape(said)}"'
    return Markup(f'<svg class="pic-strip" {size} {told}>{"".join(parts)}</svg>')


def _coarse(
    labels: Sequence[str], truth: Sequence[str] | None, length: int
) -> tuple[Sequence[str], Sequence[str] | None, int, list[Stretch]]:
    """As `_MOST` samples at even distances of a video of `length` labels, of which not all may be predicted."""
    places = [(2 * step + 1) * length // (2 * _MOST) for step in range(_MOST)]
    labels = [labels[place] for place in places if place < len(labels)]
    return labels, None if truth is None else [truth[place] for place in places], _MOST, runs(labels)


def _segment(stretch: Stretch, length: int, order: Mapping[str, tuple[int, str]]) -> str:
    """A coloured rectangle with its class under the mouse, and its number where there is room."""
    number, colour = order[str(stretch.label)]
    x, width = 100 * stretch.start / length, 100 * (stretch.end - stretch.start) / length
    told = escape(f"{str(stretch.label).replace('_', ' ')}, {stretch.start} to {stretch.end}")
    drawn = f'<rect x="{x:.3f}%" width="{width:.3f}%" height="{_HEIGHT}" fill="{colour}"><title>{told}</title></rect>'
    if (stretch.end - stretch.start) / length >= _NUMBERED and colour != _BACKGROUND:
        drawn += f'<text x="{x + width / 2:.3f}%" y="{_HEIGHT - 8}" fill="{_ink(colour)}">{number}</text>'
    return drawn


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.18 else "#ffffff"
