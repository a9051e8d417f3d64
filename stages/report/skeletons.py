"""A skeleton as SVG, over the frame that it was seen in, or by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from ...models.graphs import GRAPHS, graph_of
from ...pipeline.poses import Pose
from .pictures import Picture

_SURE = 0.3  # score from which on a joint is drawn in full
_PERSONS = 4
_SIDE = 200  # of a drawing by itself
_COLOURS = ("#ffd400", "#00e5ff", "#ff7ad9", "#9cff57")  # on a dark outline, seen over any picture


def skeleton_svg(pose: Pose, share: float, picture: Picture) -> Markup:
    """The skeleton at `share` (0 to 1) of the clip, with its bones where the number of joints says which they are.

    Over `picture` where the pose is in pixels; else alone, seen along the axis in which it is thinnest. Says so where
    nobody is seen at that moment.
    """
    steps = pose.keypoints.shape[1]
    persons = pose.keypoints[:_PERSONS, min(int(share * steps), steps - 1)]  # [M,V,3]
    graph = graph_of(persons.shape[1])
    bones = GRAPHS[graph].bones if graph else ()
    placed = pose.image_size is not None
    height, width = pose.image_size or (_SIDE, _SIDE)
    points = [person[:, :2] if placed else _flat(person) for person in persons]
    radius = max(width, height) / 90
    drawn = [
        _person(where, person, bones, colour, radius, scored=placed)
        for where, person, colour in zip(points, persons, _COLOURS, strict=False)
        if person.any()
    ]
    if not drawn:
        drawn = [f'<text x="{width / 2:g}" y="{height / 2:g}" font-size="{width / 14:g}">nobody is seen here</text>']
    said = escape(f"{picture.alt}, {len(persons)} × {persons.shape[1]} joints{f' ({graph})' if graph else ''}")
    image = ""
    if placed and picture.source:
        size = f'width="{width}" height="{height}"'
        image = f'<image href="{escape(picture.source)}" {size} preserveAspectRatio="none"/>'
    return Markup(
        f'<svg class="pic-skeleton" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{said}">{image}{"".join(drawn)}</svg>'
    )


def _person(
    where: npt.NDArray[np.float32],
    person: npt.NDArray[np.float32],
    bones: tuple[tuple[int, int], ...],
    colour: str,
    radius: float,
    *,
    scored: bool,
) -> str:
    """Lines and dots of one person; joints of low score are pale, those that were not found are left out."""
    there = np.asarray(person.any(axis=1))

    def strength(*joints: int) -> str:
        sure = not scored or min(float(person[joint, 2]) for joint in joints) >= _SURE
        return "" if sure else ' opacity="0.45"'

    def line(a: int, b: int, stroke: str, thick: float) -> str:
        (x1, y1), (x2, y2) = where[a], where[b]
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        return f'<line {place} stroke="{stroke}" stroke-width="{thick:.2f}"{strength(a, b)}/>'

    seen = [(a, b) for a, b in bones if there[a] and there[b]]
    parts = [line(a, b, "#101010", radius * 1.5) for a, b in seen]
    parts += [line(a, b, colour, radius * 0.8) for a, b in seen]
    for joint in np.flatnonzero(there).tolist():
        x, y = where[joint]
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" fill="{colour}" stroke="#101010" '
            f'stroke-width="{radius / 3:.2f}"{strength(joint)}/>'
        )
    return "".join(parts)


def _flat(person: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Two of three axes as places in a square of `_SIDE`, the longer one upright; zeros stay joints not found."""
    there = person.any(axis=1)
    if not there.any():
        return np.zeros((len(person), 2), np.float32)
    spans = np.ptp(person[there], axis=0)
    up, across = np.argsort(-spans, kind="stable")[:2]
    points = np.stack([person[:, across], -person[:, up]], axis=1)
    low, high = points[there].min(axis=0), points[there].max(axis=0)
    scale = 0.84 * _SIDE / max(float((high - low).max()), 1e-6)
    placed: npt.NDArray[np.float32] = ((points - (low + high) / 2) * scale + _SIDE / 2).astype(np.float32)
    return placed
