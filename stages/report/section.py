"""A part of the report, or why it is not there."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A part of the page. `id`: its anchor; `body`: HTML; `note`: how it is to be read."""

    id: str
    title: str
    body: Markup
    note: str = ""


@dataclass(frozen=True)
class Absent:
    """A part that cannot be shown: why, and which command brings it."""

    id: str
    title: str
    reason: str
