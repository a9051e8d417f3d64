"""Tables and heat maps of the report: plain values in, HTML out. Numbers stand right, gaps say what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .pictures import render

GAP = "–"
"""Stands where there is no number; a note beside the table says why."""


@dataclass(frozen=True)
class Number:
    """A number as it is shown, and what it is sorted by; None: there is none, it goes last. `beside`: small print."""

    text: str
    value: float | None
    beside: str = ""


@dataclass(frozen=True)
class Bar:
    """Shares of a whole as a bar, with what they are beside it: (class of colour, share 0 to 1, words)."""

    parts: tuple[tuple[str, float, str], ...]
    value: float


@dataclass(frozen=True)
class State:
    """A state of `status.STATED` as a mark with its word."""

    name: str


Cell = str | Markup | Number | Bar | State


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first cell of a row names it. `filter`: the label of a search box over the rows, empty for
    none; `sort`: whether a click on a column sorts; `scroll`: it may be long and scrolls in a box of its own."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    filter: str = ""
    sort: bool = False
    scroll: bool = False


def number(value: float | None, digits: int = 1, beside: str = "") -> Number:
    """A number with so many digits after the point."""
    return Number(GAP if value is None else f"{value:.{digits}f}", value, beside)


def percent(share: float | None, digits: int = 0) -> Number:
    """A share of 0 to 1 as percent."""
    return Number(GAP if share is None else f"{100 * share:.{digits}f} %", share)


def table(content: Table) -> Markup:
    """A table that scrolls in its own box where it is too wide."""
    numeric = [
        any(isinstance(row[column], Number) for row in content.rows if column < len(row))
        for column in range(len(content.head))
    ]
    return render("table.html", table=content, numeric=numeric, kinds=_kinds)


def _kinds(cell: Any) -> str:
    return type(cell).__name__


@dataclass(frozen=True)
class HeatCell:
    """A cell: what stands in it, how strongly it is coloured (0 to 1; None: a gap), what the mouse tells."""

    text: str
    strength: float | None
    told: str = ""
    mark: str = ""


def heat(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[HeatCell]],
    corner: str = "",
    *,
    sort: bool = False,
    search: str = "",
    words: Mapping[str, str] | None = None,
) -> Markup:
    """A matrix of coloured cells, every number written in its cell; `words`: what the ends of the scale mean."""
    return render(
        "heat.html",
        caption=caption,
        rows=list(zip(rows, cells, strict=True)),
        columns=columns,
        corner=corner,
        sort=sort,
        search=search,
        words=words or {},
    )
