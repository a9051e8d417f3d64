"""`uniego ablate`: the arms of a grid, each with every seed, over shared features, proxies and merges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UniegoError, UsageError
from ..pipeline import files
from ..pipeline.progress import count, say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .ablate_cells import Cell, make_cells
from .ablate_grid import Grid, read_grid
from .ablate_report import rows_of, summary_of, write_results
from .ablate_schedule import Schedule
from .ablate_work import Crew, Workers, workers


class Ablation(NamedTuple):
    """What came out. `report`: JSON-able, see `ablate`; `error`: what went wrong in cells, None if nothing did."""

    grid: Grid
    report: dict[str, Any]
    error: UniegoError | None


def ablate(run: Run, path: Path, *, jobs: int = 1, dry_run: bool = False, share: tuple[int, int] = (0, 1)) -> Ablation:
    """Train and evaluate every cell of the grid in a file that is not done yet; `jobs` pieces of work at a time.

    Writes RUN/ablate/<grid>/results.csv and table.md; a dry run only says what there is to do. A cell that fails stops
    no other. `share` (i, n): only every n-th cell from the i-th on, of n calls that fill the table together; "plan" and
    "problems" are then those of the share. The report has "grid", "run", "metric", "baseline", "plan" (what there was
    to do, see `plan`), "cells" (rows of results.csv), "arms" (the table) and "problems" (messages by what failed).
    Raises `ConfigError` for a grid that cannot be used, `MissingInputError` for features that are not there, `Stopped`
    after saving.
    """
    if run.origin is not None:
        raise UsageError(f"{run.root} is itself a cell of an ablation: name the run that it was made from")
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least 1")
    grid = read_grid(path, run.config)
    if not run.table().split("test"):
        raise UniegoError(f"{run.table().path} has no clip in the test split: the arms could not be compared")
    cells = make_cells(run, grid)
    index, number = share
    if not 0 <= index < number:
        raise UsageError(f"task {index} of {number}: give 0 <= --task-index < --num-tasks")
    mine = cells[index::number]
    counts = plan(mine)
    if number > 1:
        say(f"task {index} of {number}: {', '.join(cell.title for cell in mine) or 'nothing to do'}")
    _say_plan(run, grid, mine, counts)
    if dry_run:
        return Ablation(grid, _report(run, grid, cells, counts, {}), None)
    folder = run.root / "ablate" / grid.name
    files.write_bytes(folder / "grid.yaml", path.read_bytes())
    write_results(folder, grid, cells)
    logs = folder / ("logs" if number == 1 else f"logs-{index}-of-{number}")
    with StopFlag() as flag:
        crew = workers(jobs, run, logs)
        _say_workers(crew, logs)
        schedule = Schedule(run, mine, crew, lambda: write_results(folder, grid, cells))
        schedule.work(flag)
        write_results(folder, grid, cells)
    say(f"results: {folder / 'results.csv'}, {folder / 'table.md'}")
    return Ablation(grid, _report(run, grid, cells, counts, schedule.problems), schedule.error())


def plan(cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
    """Of "proxies", "merges" and "cells": the "total", how many are "done", and how many "to_do" cells still need.

    Proxies and merges that several cells share count once; those of the ablated run itself that they can have are
    done. "taken_over": of the cells to do, those whose network the run has, so that they are only evaluated.
    """
    left = [cell for cell in cells if cell.results() is None and cell.refused is None]
    proxies = {folder.path: key in cell.finished for cell in cells for key, folder in cell.proxies.items()}
    needed = {folder.path for cell in left for folder in cell.proxies.values()}
    merges = {cell.merge.path: cell.merge.done or cell.takes_merge for cell in cells if cell.merge is not None}
    wanted = {cell.merge.path for cell in left if cell.merge is not None}
    done = sum(cell.results() is not None for cell in cells)
    return {
        "proxies": _counts(proxies, needed),
        "merges": _counts(merges, wanted),
        "cells": {
            "total": len(cells),
            "done": done,
            "to_do": len(left),
            "taken_over": sum(cell.takes_network for cell in left),
        },
    }


def _counts(done: dict[Path, bool], needed: set[Path]) -> dict[str, int]:
    to_do = sum(not ready for path, ready in done.items() if path in needed)
    return {"total": len(done), "done": sum(done.values()), "to_do": to_do}


def _report(
    run: Run, grid: Grid, cells: Sequence[Cell], counts: dict[str, dict[str, int]], problems: dict[str, str]
) -> dict[str, Any]:
    rows = rows_of(cells)
    return {
        "grid": grid.name,
        "run": str(run.root.resolve()),
        "metric": grid.metric,
        "baseline": grid.baseline,
        "plan": counts,
        "cells": rows,
        "arms": summary_of(grid, rows),
        "problems": problems,
    }


def _say_plan(run: Run, grid: Grid, cells: Sequence[Cell], counts: dict[str, dict[str, int]]) -> None:
    """What there is to do, before it begins."""
    config = run.config
    clips = len(run.table().split("train"))
    say(f"{grid.name}: {count(len(grid.arms), 'arm')} x {count(len(grid.seeds), 'seed')}")
    for arm in grid.arms:
        say(f"  {arm}")
    for name, epochs in (
        ("proxies", config.proxies.train.epochs),
        ("merges", config.merge.epochs),
        ("cells", config.distill.train.epochs),
    ):
        entry = counts[name]
        what = "students or other networks" if name == "cells" else name
        say(
            f"  {what}: {entry['to_do'] - entry.get('taken_over', 0)} to train, {entry['done']} of "
            f"{entry['total']} done "
            f"(each {count(epochs, 'epoch')} of {count(clips, 'clip')}, unless an arm says otherwise)"
        )
    for cell in cells:
        if cell.results() is None and cell.takes_network:
            say(f"  {cell.title}: {run.root} has trained it")
        if cell.refused is not None:
            say(f"  {cell.title}: cannot go on, {cell.refused}")


def _say_workers(crew: Workers, logs: Path) -> None:
    if not isinstance(crew, Crew):
        return
    say(f"{crew.count} processes; what they say is in {logs}")
    if crew.threads is not None:
        say(
            f"compute.threads is null: {count(crew.threads, 'thread')} each. Results differ by rounding from those of "
            "other numbers; set compute.threads for the same bytes whatever --jobs is"
        )
