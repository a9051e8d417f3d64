"""`uniego report`: everything that is known of a run as one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ... import __version__
from ...errors import Stopped
from ...pipeline import files
from ...pipeline.progress import Meter, warn
from ...pipeline.rundir import Run
from . import analyses, classes, coverage, gallery, lessons, measured, overview, samples, strips, trainings
from .pictures import PICTURES, Budget, render
from .section import Absent, Section

PAGE = "report.html"
LIMIT = 5_000_000
"""Bytes that the page stays under."""
_FRAME = 120_000  # of them for what holds the sections together
_HEADLINES = 4  # numbers under the title

Part = Callable[[Run], "Section | Absent"]


@dataclass(frozen=True)
class Group:
    """A tab: its anchor, its name, and its sections."""

    id: str
    title: str
    sections: tuple[Section | Absent, ...]


_NUMBERS: tuple[tuple[str, str, tuple[tuple[str, str, Part], ...]], ...] = (
    (
        "run",
        "Run",
        (
            (overview.STAGES_ID, overview.STAGES_TITLE, overview.stages),
            (coverage.ID, coverage.TITLE, coverage.cache_coverage),
            (coverage.FAILED_ID, coverage.FAILED_TITLE, coverage.quarantined),
            (overview.MADE_ID, overview.MADE_TITLE, overview.made_with),
            (overview.CONFIG_ID, overview.CONFIG_TITLE, overview.configuration),
        ),
    ),
    (
        "training",
        "Training",
        (
            (trainings.CURVES, trainings.CURVES_TITLE, trainings.training_curves),
            (lessons.MERGE, lessons.MERGE_TITLE, lessons.merge_weights),
            (lessons.TAUGHT, lessons.TAUGHT_TITLE, lessons.who_taught_whom),
        ),
    ),
    (
        "results",
        "Results",
        (
            (measured.ID, measured.TITLE, measured.metrics),
            (measured.METHODS, measured.METHODS_TITLE, measured.methods),
            (analyses.ABLATIONS, analyses.ABLATIONS_TITLE, analyses.ablations),
            (classes.TABLE_ID, classes.TABLE_TITLE, classes.per_class),
            (classes.ID, classes.TITLE, classes.confusion),
        ),
    ),
    (
        "analyses",
        "Analyses",
        (
            (analyses.CKA, analyses.CKA_TITLE, analyses.likeness),
            (analyses.CONFLICTS, analyses.CONFLICTS_TITLE, analyses.conflicts),
        ),
    ),
)
_PICTURES = (
    (strips.ID, strips.TITLE, strips.segmentation_strips),
    (gallery.ID, gallery.TITLE, gallery.retrieval_gallery),
    (samples.ID, samples.TITLE, samples.sample_clips),
)


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write RUN/report.html, or `out`, and return where it is. The same run gives the same bytes.

    A section that cannot be made is told as absent, with the reason; the others are not touched by it.
    """
    path = run.root / PAGE if out is None else out
    files.write_bytes(path, report(run).encode())
    return path


def report(run: Run) -> str:
    """The page."""
    groups = []
    with Meter("report", sum(len(parts) for _, _, parts in _NUMBERS) + len(_PICTURES)) as meter:
        for group, title, parts in _NUMBERS:
            groups.append(Group(group, title, _made(run, parts, meter)))
        said = sum(len(section.body.encode()) for group in groups for section in group.sections if _there(section))
        budget = Budget(max(0, min(PICTURES, LIMIT - _FRAME - said)))
        shown = tuple((id, title, lambda run, make=make: make(run, budget)) for id, title, make in _PICTURES)
        groups.append(Group("pictures", "Pictures", _made(run, shown, meter)))
    return str(_page(run, groups))


def _there(section: Section | Absent) -> bool:
    return isinstance(section, Section)


def _made(run: Run, parts: Sequence[tuple[str, str, Any]], meter: Meter) -> tuple[Section | Absent, ...]:
    made = []
    for id, title, make in parts:
        made.append(_guarded(run, id, title, make))
        meter.advance(1)
    return tuple(made)


def _guarded(run: Run, id: str, title: str, make: Part) -> Section | Absent:
    """A section, or why it cannot be made: what lies on the disk may be damaged in any way."""
    try:
        return make(run)
    except Stopped:
        raise
    except Exception as error:
        reason = f"{error}" or type(error).__name__
        if not isinstance(error, OSError | UserWarning) and type(error).__module__ == "builtins":
            reason = f"{type(error).__name__}: {reason}"
        warn(f"report: {title} is left out: {reason}")
        return Absent(id, title, f"it cannot be read: {reason}")


def _page(run: Run, groups: Sequence[Group]) -> Markup:
    script = _template("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "page.html",
        name=run.root.resolve().name,
        place=str(run.root.resolve()),
        preset=run.config.preset,
        seed=run.config.seed,
        version=__version__,
        groups=[{"id": g.id, "title": g.title, "sections": g.sections, "there": _count(g)} for g in groups],
        headlines=_headlines(run),
        script=Markup(script),
        digest=digest,
        style=Markup(_template("pictures.css") + _template("page.css")),
    )


def _count(group: Group) -> int:
    return sum(map(_there, group.sections))


def _headlines(run: Run) -> list[tuple[str, str, str]]:
    """The numbers that a reader wants first: (what, number, interval); none of what is not known."""
    try:
        tasks = measured.evaluations(run)["student"]["tasks"]
        found = []
        for what, task, kind, metric in (
            ("top-1", "recognition", None, "top1"),
            ("retrieval mAP", "retrieval", "ego_to_ego", "map"),
            ("frames right (MoF)", "segmentation", None, "mof"),
            ("linear probe", "probe", "linear", "top1"),
        ):
            results = tasks.get(task, {}) if kind is None else tasks.get(task, {}).get(kind, {})
            if results.get(metric) is not None:
                number = measured.score(results, metric)
                found.append((what, number.text, number.beside))
    except (KeyError, TypeError, ValueError, AttributeError, OSError):  # the section of metrics says what is wrong
        return []
    return found[:_HEADLINES]


@cache
def _template(name: str) -> str:
    return (resources("uniego.stages.report") / "templates" / name).read_text(encoding="utf-8")
