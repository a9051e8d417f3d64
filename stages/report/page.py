"""`uniego report`: everything that is known of a run as one HTML file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files as resources
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from ... import __version__
from ...errors import Stopped, UniegoError
from ...pipeline import files
from ...pipeline.progress import Meter, warn
from ...pipeline.rundir import Run
from . import analyses, classes, coverage, gallery, lessons, measured, overview, samples, strips, trainings
from .pictures import PICTURES, Budget, render
from .section import Absent, Section
from .tables import Number

PAGE = "report.html"
LIMIT = 5_000_000
"""Bytes that the page stays under."""
_FRAME = 120_000  # of them for what holds the sections together

Make = Callable[[Run], "Section | Absent"]


class Part(NamedTuple):
    """A section to be made: its anchor and title, where it cannot be, and who makes it."""

    id: str
    title: str
    make: Make


@dataclass(frozen=True)
class Group:
    """A tab: its anchor, its name, and its sections."""

    id: str
    title: str
    sections: tuple[Section | Absent, ...]


_NUMBERS: dict[str, tuple[Part, ...]] = {
    "Run": (
        Part(overview.STAGES_ID, overview.STAGES_TITLE, overview.stages),
        Part(coverage.ID, coverage.TITLE, coverage.cache_coverage),
        Part(coverage.FAILED_ID, coverage.FAILED_TITLE, coverage.quarantined),
        Part(overview.MADE_ID, overview.MADE_TITLE, overview.made_with),
        Part(overview.CONFIG_ID, overview.CONFIG_TITLE, overview.configuration),
    ),
    "Training": (
        Part(trainings.CURVES, trainings.CURVES_TITLE, trainings.training_curves),
        Part(lessons.MERGE, lessons.MERGE_TITLE, lessons.merge_weights),
        Part(lessons.TAUGHT, lessons.TAUGHT_TITLE, lessons.who_taught_whom),
    ),
    "Results": (
        Part(measured.ID, measured.TITLE, measured.metrics),
        Part(measured.METHODS, measured.METHODS_TITLE, measured.methods),
        Part(analyses.ABLATIONS, analyses.ABLATIONS_TITLE, analyses.ablations),
        Part(classes.TABLE_ID, classes.TABLE_TITLE, classes.per_class),
        Part(classes.ID, classes.TITLE, classes.confusion),
    ),
    "Analyses": (
        Part(analyses.CKA, analyses.CKA_TITLE, analyses.likeness),
        Part(analyses.CONFLICTS, analyses.CONFLICTS_TITLE, analyses.conflicts),
    ),
}
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
    """The page. Pictures get what room the numbers leave."""
    with Meter("report", sum(map(len, _NUMBERS.values())) + len(_PICTURES)) as meter:
        groups = [_group(run, title, parts, meter) for title, parts in _NUMBERS.items()]
        said = sum(len(part.body.encode()) for group in groups for part in group.sections if isinstance(part, Section))
        budget = Budget(max(0, min(PICTURES, LIMIT - _FRAME - said)))
        parts = [Part(anchor, title, partial(make, budget=budget)) for anchor, title, make in _PICTURES]
        groups.append(_group(run, "Pictures", parts, meter))
    return str(_page(run, groups))


def _group(run: Run, title: str, parts: Sequence[Part], meter: Meter) -> Group:
    made = []
    for part in parts:
        made.append(_made(run, part))
        meter.advance(1)
    return Group(title.lower(), title, tuple(made))


def _made(run: Run, part: Part) -> Section | Absent:
    """A section, or why it cannot be made: what lies on the disk may be damaged in any way."""
    try:
        return part.make(run)
    except Stopped:
        raise
    except Exception as error:
        told = isinstance(error, UniegoError | OSError)  # of others the message alone says too little
        reason = f"{error}" if told else f"{type(error).__name__}: {error}"
        warn(f"report: {part.title} is left out: {reason}")
        return Absent(part.id, part.title, f"it cannot be read: {reason}")


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
        groups=groups,
        headlines=_headlines(run),
        script=Markup(script),
        digest=digest,
        style=Markup(_template("pictures.css") + _template("page.css")),
    )


def _headlines(run: Run) -> list[tuple[str, Number]]:
    """The student's numbers that a reader wants first, those that are known."""
    try:
        tasks = measured.evaluations(run)["student"]["tasks"]
        places = (
            ("top-1", tasks.get("recognition", {}), "top1"),
            ("retrieval mAP", tasks.get("retrieval", {}).get("ego_to_ego", {}), "map"),
            ("frames right (MoF)", tasks.get("segmentation", {}), "mof"),
            ("linear probe", tasks.get("probe", {}).get("linear", {}), "top1"),
        )
        return [(what, measured.score(entry, name)) for what, entry, name in places if entry.get(name) is not None]
    except (KeyError, TypeError, ValueError, AttributeError, OSError):  # the section of metrics says what is wrong
        return []


@cache
def _template(name: str) -> str:
    return (resources("uniego.stages.report") / "templates" / name).read_text(encoding="utf-8")
