"""Analyses of a finished run: likeness of representations, conflicts between teachers' gradients, ablations."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...errors import UniegoError
from ...pipeline.rundir import Run
from ..ablate_grid import read_grid
from ..ablate_report import COLUMNS, notes, summary_of, table_cells, title
from .plots import lines
from .section import Absent, Section
from .tables import GAP, HeatCell, Table, heat, number, table

CKA, CKA_TITLE = "cka", "Likeness of representations"
CONFLICTS, CONFLICTS_TITLE = "gradient-conflicts", "Conflicts between teachers' gradients"
ABLATIONS, ABLATIONS_TITLE = "ablations", "Ablations"


def likeness(run: Run) -> Section | Absent:
    """CKA of every pair of teachers, proxies and student."""
    path = run.analysis_folder("cka").path / "cka.json"
    if not path.exists():
        return Absent(CKA, CKA_TITLE, f"it was not computed: run `{run.command('analyze cka')}`")
    report = json.loads(path.read_text(encoding="utf-8"))
    names = report["names"]
    cells = [
        [_like(names[i], names[j], value, report["counts"][i][j]) for j, value in enumerate(row)]
        for i, row in enumerate(report["matrix"])
    ]
    words = {"low": "0 or less", "high": "1", "gap": "not defined"}
    body = heat("Debiased linear CKA, train split", names, names, cells, words=words)
    head = ("teacher", "teacher to student", "proxy to student", "teacher to proxy", "clips")
    rows = [
        (
            key,
            *(number(pair[name], 3) for name in ("teacher_student", "proxy_student", "teacher_proxy")),
            number(pair["teacher_student_clips"], 0),
        )
        for key, pair in report["pairs"].items()
    ]
    note = (
        f"Over {report['clips']} train clips; each pair over those that have both. 1: alike up to a rotation and scale."
    )
    return Section(CKA, CKA_TITLE, body + table(Table("Do proxies close the gap?", head, rows, sort=True)), note)


def _like(one: str, other: str, value: float | None, clips: int) -> HeatCell:
    told = f"{one} and {other}: {'not defined' if value is None else f'{value:.3f}'}, {clips} clips"
    return HeatCell(
        GAP if value is None else f"{value:.2f}", None if value is None else min(max(value, 0.0), 1.0), told
    )


def conflicts(run: Run) -> Section | Absent:
    """Share of negative cosines over each student's training, and pair by pair."""
    path = run.analysis_folder("conflicts").path / "conflicts.json"
    if not path.exists():
        return Absent(CONFLICTS, CONFLICTS_TITLE, f"they were not looked at: run `{run.command('analyze conflicts')}`")
    report = json.loads(path.read_text(encoding="utf-8"))
    students = report["students"]
    curves = {
        f"{name} ({student['method']})": [(e["step"], e["share"]) for e in student["steps"] if e["share"] is not None]
        for name, student in students.items()
    }
    curves = {name: curve for name, curve in curves.items() if curve}
    parts = []
    if curves:
        parts.append(lines("Share of cosines that are negative", curves, "step", zero=True, top=1.0, shares=True))
    parts += [_pairs(name, student) for name, student in students.items()]
    absent = [name for name, student in students.items() if student["share"] is None]
    note = f"Gradients on {report['clips']} train clips, in global batches of {report['global_batch']}."
    if absent:
        note += f" No pair of teachers taught together for {', '.join(absent)}: a clip has one teacher there."
    return Section(CONFLICTS, CONFLICTS_TITLE, Markup().join(parts), note)


def _pairs(name: str, student: Mapping[str, Any]) -> Markup:
    keys = student["teachers"]
    cells = []
    for i, one in enumerate(keys):
        row = []
        for j, other in enumerate(keys):
            negative, pairs = student["negative_by_pair"][i][j], student["pairs_by_pair"][i][j]
            mean = student["mean_cosines"][i][j]
            if i == j or not pairs:
                row.append(HeatCell("" if i == j else GAP, None, "" if i == j else f"{one} and {other}: no pair"))
                continue
            cosine = "" if mean is None else f", mean cosine {mean:.3f}"
            told = f"{one} and {other}: {negative} of {pairs} negative{cosine}"
            row.append(HeatCell(f"{100 * negative / pairs:.0f}", negative / pairs, told))
        cells.append(row)
    words = {"low": "0 %", "high": "100 %", "gap": "no pair"}
    title = f"{name} ({student['method']}): percent of cosines that are negative, by pair of teachers"
    return heat(title, keys, keys, cells, words=words)


def ablations(run: Run) -> Section | Absent:
    """The table of every grid that was begun in the run."""
    folders = sorted(path.parent for path in (run.root / "ablate").glob("*/results.csv"))
    if not folders:
        reason = f"none was carried out: `{run.command('ablate GRID.yaml')}` compares settings over seeds"
        return Absent(ABLATIONS, ABLATIONS_TITLE, reason)
    parts = [_ablation(run, folder) for folder in folders]
    return Section(ABLATIONS, ABLATIONS_TITLE, Markup().join(parts))


def _ablation(run: Run, folder: Path) -> Markup:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        cells: list[dict[str, Any]] = list(csv.DictReader(file))
    try:
        grid = read_grid(folder / "grid.yaml", run.config)
    except UniegoError as error:
        rows = [tuple(str(cell[name]) for name in COLUMNS[:6]) for cell in cells]
        words = Markup("<p class='absent-line'>The grid cannot be read any more ({}): every cell instead.</p>")
        return words.format(error) + table(Table(folder.name, COLUMNS[:6], rows, sort=True))
    known = [
        {**cell, "seed": int(cell["seed"]), grid.metric: float(cell[grid.metric]) if cell[grid.metric] else None}
        for cell in cells
    ]
    head, *lines_ = table_cells(grid, summary_of(grid, known))
    remarks = Markup("<p class='remark'>{}</p>").format(" ".join(notes(grid)))
    return table(Table(title(grid), head, lines_, sort=True)) + remarks
