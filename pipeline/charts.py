"""Small charts as SVG text: lines, bars, dots and heat maps. Numbers in, a picture out; nothing is installed for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

Point = tuple[float, float]

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#dd7722", "#222255")
"""Told apart by most people who see colours differently (Paul Tol's bright scheme, and two more)."""

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 70, 150, 34, 40
_ROW = 22  # pixels of a bar, of a heat map's cell, of a line in a legend


def page(parts: Sequence[str]) -> str:
    """Charts below one another as one SVG file."""
    body, height = [], 0.0
    for part in parts:
        size = float(part.partition('height="')[2].partition('"')[0])
        body.append(f'<g transform="translate(0 {height:g})">{part}</g>')
        height += size
    width = max(float(part.partition('width="')[2].partition('"')[0]) for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def lines(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, top: float = 1.0) -> str:
    """Curves over a common axis that begins at 0; values from 0 to `top`. Points that are not finite are left out."""
    height = max(240, _TOP + _BOTTOM + _ROW * len(series))
    right, low = _WIDTH - _RIGHT, height - _BOTTOM
    points = {name: [p for p in curve if math.isfinite(p[1])] for name, curve in series.items()}
    end = max((x for curve in points.values() for x, _ in curve), default=0) or 1

    def place(x: float, y: float) -> str:
        return f"{_LEFT + (right - _LEFT) * x / end:.1f},{low - (low - _TOP) * min(y, top) / top:.1f}"

    parts = [_text(_LEFT, 18, title, size=13)]
    for tick in range(5):
        y = low - (low - _TOP) * tick / 4
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:g}" y2="{y:g}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{top * tick / 4:.3g}", "end"))
    parts += [_text(_LEFT, low + 16, "0"), _text(right, low + 16, f"{end:g}", "end")]
    parts += [_text((_LEFT + right) / 2, low + 30, x_label, "middle"), _text(4, _TOP - 4, y_label)]
    for number, (name, curve) in enumerate(points.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(*point) for point in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(curve) == 1:
            across, up = place(*curve[0]).split(",")
            parts.append(f'<circle cx="{across}" cy="{up}" r="3" fill="{colour}"/>')
        parts.append(_text(right + 10, _TOP + 12 + _ROW * number, name, fill=colour))
    return _chart(_WIDTH, height, parts)


def bars(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """One bar per row, divided into named shares (0 to 1) in the order and colours of `lines`."""
    names = list(dict.fromkeys(name for shares in rows.values() for name in shares))
    left = _label_width(rows)
    full = _WIDTH - left - _RIGHT
    parts = [_text(left, 18, title, size=13)]
    for number, (row, shares) in enumerate(rows.items()):
        x, y = float(left), _TOP + _ROW * number
        parts.append(_text(left - 6, y + 15, row, "end"))
        for name, share in shares.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            size = f'width="{full * share:.1f}" height="{_ROW - 4}"'
            told = f"<title>{escape(name)} {share:.4f}</title>"  # shown under the mouse
            parts.append(f'<rect x="{x:.1f}" y="{y + 2}" {size} fill="{colour}">{told}</rect>')
            x += full * share
    for number, name in enumerate(names):
        parts.append(_text(_WIDTH - _RIGHT + 10, _TOP + 12 + _ROW * number, name, fill=COLOURS[number % len(COLOURS)]))
    return _chart(_WIDTH, _TOP + _ROW * max(len(rows), len(names)) + 10, parts)


def dots(title: str, rows: Mapping[str, Sequence[float]], label: str) -> str:
    """A dot per value, one row for each name, and a line at their mean; the axis runs from 0 to what holds all."""
    left, top = _label_width(rows), max((value for values in rows.values() for value in values), default=0.0) or 1.0
    full, low = _WIDTH - left - 60, _TOP + _ROW * len(rows)
    parts = [_text(left, 18, title, size=13)]
    for tick in range(5):
        x = left + full * tick / 4
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{_TOP}" y2="{low}" stroke="#dddddd"/>')
        parts.append(_text(x, low + 14, f"{top * tick / 4:.3g}", "middle"))
    parts.append(_text(left + full / 2, low + 30, label, "middle"))
    for number, (name, values) in enumerate(rows.items()):
        y, colour = _TOP + _ROW * (number + 0.5), COLOURS[number % len(COLOURS)]
        parts.append(_text(left - 6, y + 4, name, "end"))
        for value in values:
            told = f"<title>{escape(name)} {value:.4g}</title>"
            place = f'cx="{left + full * value / top:.1f}"'
            parts.append(f'<circle {place} cy="{y:g}" r="3.5" fill="{colour}" fill-opacity="0.6">{told}</circle>')
        if values:
            mean = sum(values) / len(values)
            at = f"{left + full * mean / top:.1f}"
            parts.append(f'<line x1="{at}" x2="{at}" y1="{y - 9:g}" y2="{y + 9:g}" stroke="black" stroke-width="2"/>')
            parts.append(_text(left + full + 10, y + 4, f"{mean:.3g}"))
    return _chart(_WIDTH, low + _BOTTOM, parts)


def heat_map(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """A square of cells, white at 0 or below and blue at 1; None is grey, and every number is written in its cell."""
    left, cell = _label_width(names), 44
    top = _TOP + left  # the names stand upright above the columns
    parts = [_text(10, 18, title, size=13)]
    for number, name in enumerate(names):
        parts.append(_text(left - 6, top + _ROW * number + 15, name, "end"))
        x = left + cell * number + cell / 2 + 4
        parts.append(f'<text x="{x:g}" y="{top - 6}" transform="rotate(-90 {x:g} {top - 6})">{escape(name)}</text>')
        for column, value in enumerate(values[number]):
            x, y = left + cell * column, top + _ROW * number
            parts.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{_ROW - 1}" fill="{_shade(value)}"/>')
            dark = value is not None and value > 0.6
            text = "–" if value is None else f"{value:.2f}"
            parts.append(_text(x + cell / 2, y + 15, text, "middle", fill="white" if dark else "black"))
    return _chart(max(left + cell * len(names) + 10, 10 + 7 * len(title)), top + _ROW * len(names) + 10, parts)


def _label_width(names: Iterable[str]) -> int:
    return max(60, 12 + 7 * max((len(name) for name in names), default=0))


def _shade(value: float | None) -> str:
    if value is None:
        return "#cccccc"
    share = min(max(value, 0.0), 1.0)
    red, green, blue = (round(255 + (end - 255) * share) for end in (20, 60, 140))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _chart(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg width="{width:g}" height="{height:g}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, anchor: str = "start", *, fill: str = "black", size: int = 11) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{escape(text)}</text>'
