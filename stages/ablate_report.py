"""What an ablation gives: a row per arm and seed, and one table of means, deviations and paired tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..pipeline import files
from ..pipeline.progress import results_console
from .ablate_cells import Cell
from .ablate_grid import Grid
from .ablate_work import read_seconds
from .paired import EXACT, FLIPS, Comparison, compare, summarise

COLUMNS = (
    "arm",
    "seed",
    "state",
    "top1",
    "top5",
    "mean_class_accuracy",
    "clips",
    "failed",
    "seconds",
    "weights",
    "problem",
)
HOLES = ("missing", "failed", "refused")
"""Why a cell has no number."""
_NOTE = "p: exact two-sided paired sign-flip test over seeds, not corrected for the number of arms"


def rows_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row per cell, with `COLUMNS`; of a cell that is not done everything but arm, seed, state and problem is None.

    `state`: "done"; "failed" at its last attempt; "refused", since what lies there was begun under other settings;
    "missing".
    """
    rows = []
    for cell in cells:
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"arm": cell.arm.name, "seed": cell.seed, "state": "missing"}
        results = cell.results()
        problem = str(cell.refused) if cell.refused is not None else cell.failure()
        if results is None and problem is not None:
            row |= {"state": "failed" if cell.refused is None else "refused", "problem": problem}
        if results is not None:
            row |= {name: results[name] for name in COLUMNS[3:8]}
            row |= {"state": "done", "seconds": read_seconds(cell.run.root), "weights": results["weights"]}
        rows.append(row)
    return rows


def summary_of(grid: Grid, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An entry per arm: n, mean, sd, missing, failed and refused (seeds), and against the baseline pairs, difference,
    p and exact.

    A number that is not known is None. Pairs are seeds that both arms have.
    """
    values = {arm.name: {row["seed"]: row[grid.metric] for row in rows if row["arm"] == arm.name} for arm in grid.arms}
    entries = []
    for name, found in values.items():
        known = [value for value in found.values() if value is not None]
        states = {row["seed"]: row["state"] for row in rows if row["arm"] == name}
        holes = {state: [seed for seed in grid.seeds if states.get(seed) == state] for state in HOLES}
        against: dict[str, Any] = {}
        if grid.baseline is not None and name != grid.baseline:
            pair = _pair(found, values[grid.baseline])
            against = {"pairs": pair.n, "difference": pair.difference, "p": pair.p, "exact": pair.exact}
        entries.append({"arm": name, **summarise(known)._asdict(), **holes, **against})
    return entries


def _pair(one: dict[int, float | None], other: dict[int, float | None]) -> Comparison:
    pairs = [(value, other[seed]) for seed, value in one.items() if value is not None and other[seed] is not None]
    return compare([a for a, _ in pairs], [b for _, b in pairs if b is not None])


def write_results(folder: Path, grid: Grid, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Write results.csv and table.md of what is done so far; returns the summary.

    Several processes may: the last one to write has seen what all have done.
    """
    with files.locked(folder / "results.lock"):
        return _write(folder, grid, rows_of(cells))


def _write(folder: Path, grid: Grid, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_bytes(folder / "results.csv", out.getvalue().encode())
    summary = summary_of(grid, rows)
    files.write_bytes(folder / "table.md", markdown(grid, summary).encode())
    return summary


def markdown(grid: Grid, summary: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    head, *lines = table_cells(grid, summary)
    body = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]
    return "\n".join([f"# {title(grid)}", "", *body, "", *notes(grid), ""])


def print_table(grid: Grid, summary: Sequence[dict[str, Any]]) -> None:
    """The table on standard output."""
    head, *lines = table_cells(grid, summary)
    table = Table(title=title(grid))
    for name in head:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console = results_console()
    console.print(table)
    for note in notes(grid):
        console.print(note, markup=False)


def title(grid: Grid) -> str:
    """What the table shows."""
    return f"{grid.name}: {grid.metric} on test, percent"


def notes(grid: Grid) -> list[str]:
    """How its numbers came about."""
    told = ["sd: over seeds, n - 1."]
    if grid.baseline is not None:
        told.append(f"difference: mean over the seeds that both have, against {grid.baseline}. {_NOTE}.")
        if len(grid.seeds) > EXACT:
            told.append(f"Above {EXACT} pairs p is estimated from {FLIPS} random flips.")
    return told


def table_cells(grid: Grid, summary: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Head and lines of the table as text."""
    compared, holes = grid.baseline is not None, any(entry[state] for entry in summary for state in HOLES)
    lines = [["arm", "n", "mean", "sd", *(["difference", "p"] if compared else [])]]
    lines[0] += ["seeds without a number"] if holes else []
    for entry in summary:
        none = next((state for state in ("failed", "refused") if entry[state]), "missing")
        line = [
            entry["arm"],
            f"{entry['n']} of {len(grid.seeds)}",
            _number(entry["mean"], none),
            _deviation(entry, none),
        ]
        if compared:
            base = entry["arm"] == grid.baseline
            line += ["baseline", ""] if base else _against(entry, len(grid.seeds), none)
        told = "; ".join(f"{', '.join(map(str, entry[state]))} {state}" for state in HOLES if entry[state])
        lines.append([*line, *([told] if holes else [])])
    return lines


def _number(value: float | None, none: str, how: str = ".2f") -> str:
    return none if value is None else format(value, how)


def _deviation(entry: dict[str, Any], none: str) -> str:
    """A single value has no deviation, but it is there."""
    return "one seed" if entry["n"] == 1 else _number(entry["sd"], none)


def _against(entry: dict[str, Any], seeds: int, none: str) -> list[str]:
    """Difference and p-value, and of how many pairs where these are not all."""
    if entry["p"] is None:
        why = none if entry["n"] == 0 else "no pair"
        return [why, why]
    text = f"{'' if entry['exact'] else '~'}{entry['p']:.4f}"
    return [
        _number(entry["difference"], none, "+.2f"),
        text if entry["pairs"] == seeds else f"{text} ({entry['pairs']} pairs)",
    ]
