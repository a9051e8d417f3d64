"""What the cache has of the run's clips, and which clips were quarantined and why."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from ...pipeline.rundir import Run
from ..cache_report import Cell, coverage, failed_clips
from .section import Absent, Section
from .tables import Bar, Number, Table, table

ID, TITLE = "cache-coverage", "Coverage of the cache"
FAILED_ID, FAILED_TITLE = "quarantined", "Quarantined clips"
SHOWN = 400  # failed clips that the page spells out


def cache_coverage(run: Run) -> Section | Absent:
    """A row per teacher, a column per split."""
    cells = coverage(run)
    if not any(cell.coverage.done + cell.coverage.failed + cell.coverage.missing for cell in cells):
        return Absent(ID, TITLE, f"nothing was extracted yet: run `{run.command('extract-teachers')}`")
    splits = list(dict.fromkeys(cell.split for cell in cells))
    found = {(cell.teacher, cell.split): cell for cell in cells}
    rows: list[tuple[str | Bar, ...]] = [
        (key, *(_bar(found[key, split]) for split in splits)) for key in run.config.teachers
    ]
    note = (
        "Failed: quarantined, with a reason below. Missing: the clip names no such video. Pending: not tried yet, "
        f"`{run.command('extract-teachers')}` continues."
    )
    return Section(ID, TITLE, table(Table("", ("teacher", *splits), rows, sort=True)), note)


def _bar(cell: Cell) -> Bar:
    counts = cell.coverage
    parts = [(name, getattr(counts, name)) for name in ("done", "failed", "missing", "pending")]
    total = max(counts.clips, 1)
    return Bar(tuple((name, count / total, f"{count} {name}") for name, count in parts), counts.share)


def quarantined(run: Run) -> Section:
    """Failed clips with their reasons, as many as a page can hold; the counts are of all."""
    reasons: Counter[tuple[str, str]] = Counter()
    teachers: dict[tuple[str, ...], list[str]] = {}
    for clip in failed_clips(run):
        reasons[clip.teacher, clip.reason] += 1
        row = (clip.clip_id, clip.split, clip.reason, clip.message)
        if row in teachers or len(teachers) < SHOWN:
            teachers.setdefault(row, []).append(clip.teacher)
    rows = [(*row[:2], ", ".join(keys), *row[2:]) for row, keys in sorted(teachers.items())]
    if not rows:
        return Section(FAILED_ID, FAILED_TITLE, Markup("<p>None: no clip that was tried has failed.</p>"))
    total = sum(reasons.values())
    head = ("clip", "split", "teachers", "reason", "message")
    body = table(_counts(reasons)) + table(Table("", head, rows, filter="Filter clips", sort=True, scroll=True))
    note = f"{total} features could not be made; the stages go on without them."
    if total > sum(map(len, teachers.values())):
        note += f" The first {len(rows)} are shown: `{run.command('cache coverage --failed')}` lists all."
    return Section(FAILED_ID, FAILED_TITLE, body, note)


def _counts(reasons: Counter[tuple[str, str]]) -> Table:
    rows = [(teacher, reason, Number(str(count), count)) for (teacher, reason), count in sorted(reasons.items())]
    return Table("", ("teacher", "reason", "clips"), rows, sort=True)
