"""Line charts and intervals as SVG that takes its colours from the page, light or dark; the mouse is told by titles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .pictures import render

Point = tuple[float, float]
_WIDTH, _HEIGHT = 480.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 12.0, 14.0, 44.0
_MOST = 80  # points of a curve; more are averaged
_STYLES = 9  # colours; from there on again, with another dash
_DASHES = ("", "7 4", "2 3", "10 3 2 3")


@dataclass(frozen=True)
class Curve:
    """A drawn series: `number` picks colour and dash; `dots`: (x, y, what the mouse tells)."""

    name: str
    number: int
    dash: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and its words."""

    place: float
    text: str


def lines(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    *,
    zero: bool = False,
    top: float | None = None,
    shares: bool = False,
) -> Markup:
    """Curves over common axes with a legend below. `zero`: the axis begins at 0; `top`: its end; `shares`: as percent.

    Points that are no finite numbers are left out, long curves are averaged over equal stretches.
    """
    found = {name: _thinned([p for p in curve if math.isfinite(p[1])]) for name, curve in series.items()}
    points = [point for curve in found.values() for point in curve]
    if not points:
        raise ValueError(f"nothing to draw: {title}")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, right = 0.0, max(xs) or 1.0  # steps and epochs count from 0
    marks = _ticks(0.0 if zero else min(ys), max(ys) if top is None else top)
    low, high = marks[0], marks[-1]

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - left) / (right - left)

    def up(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (min(max(y, low), high) - low) / (high - low))

    def shown(y: float) -> str:
        return f"{100 * y:.0f} %" if shares else f"{y:.4g}"

    curves = [
        Curve(
            name,
            place % _STYLES,
            _DASHES[(place // _STYLES + place) % len(_DASHES)] if len(found) > 1 else "",
            " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve),
            tuple((round(across(x), 1), round(up(y), 1), f"{name}: {shown(y)} at {x_label} {x:g}") for x, y in curve),
        )
        for place, (name, curve) in enumerate(found.items())
    ]
    return render(
        "lines.html",
        title=title,
        curves=curves,
        x_ticks=[Tick(across(x), f"{x:g}") for x in _x_ticks(left, right)],
        y_ticks=[Tick(up(y), shown(y)) for y in marks],
        x_label=x_label,
        box=(_WIDTH, _HEIGHT, _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM),
        told=_told(found, shown),
    )


def _told(found: Mapping[str, Sequence[Point]], shown: object) -> str:
    """What a screen reader says instead of the picture."""
    assert callable(shown)
    ends = [f"{name} from {shown(c[0][1])} to {shown(c[-1][1])}" for name, c in found.items() if c]
    return "; ".join(ends)


def _thinned(curve: Sequence[Point]) -> list[Point]:
    """At most `_MOST` points: means over equal stretches, the last point of each kept in place."""
    if len(curve) <= _MOST:
        return list(curve)
    size = len(curve) / _MOST
    parts = [curve[int(i * size) : int((i + 1) * size)] for i in range(_MOST)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _step(width: float, parts: int) -> float:
    """The round number (1, 2, 2.5 or 5 times a power of ten) that divides a width into about so many parts."""
    rough = width / parts
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _ticks(low: float, high: float) -> list[float]:
    """Round values that enclose a range, four to six of them."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = _step(high - low, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _x_ticks(left: float, right: float) -> list[float]:
    step = max(1.0, _step(right - left, 5))
    first, last = math.ceil(left / step), math.floor(right / step)
    return [step * i for i in range(first, last + 1)] or [left]


def intervals(title: str, rows: Mapping[str, tuple[float, tuple[float, float] | None]]) -> Markup:
    """A dot per row with its interval as a line, on a common axis: {name: (value, (low, high) or None)}."""
    ends = [end for value, interval in rows.values() for end in (value, *(interval or ()))]
    marks = _ticks(min(ends), max(ends))
    low, high = marks[0], marks[-1]

    def across(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    drawn = []
    for name, (value, interval) in rows.items():
        words = f"{name}: {value:.1f}" + (f", {interval[0]:.1f} to {interval[1]:.1f}" if interval else "")
        bounds = (across(interval[0]), across(interval[1])) if interval else None
        drawn.append((name, across(value), bounds, words, f"{value:.1f}"))
    ticks = [Tick(across(mark), f"{mark:g}") for mark in marks]
    return render("intervals.html", title=title, rows=drawn, ticks=ticks)
