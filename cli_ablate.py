"""The command `ablate`: a grid of arms and seeds, and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json
from .errors import UsageError


def ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="Arms and seeds; see docs/ablations.md.")],
    run: RunOption = Path(),
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="Pieces of work at a time, each in a process.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained; stop.")] = False,
    task_index: Annotated[
        int | None, typer.Option("--task-index", metavar="I", help="Only this task's share of the cells, from 0.")
    ] = None,
    num_tasks: Annotated[
        int | None, typer.Option("--num-tasks", metavar="N", min=1, help="How many tasks share the cells.")
    ] = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Arms x seeds over shared proxies, one table.

    Mean, standard deviation and exact paired tests; the same command continues."""
    if (task_index is None) != (num_tasks is None):
        raise UsageError("--task-index and --num-tasks belong together")
    opened = open_run(run, overrides)
    from .stages.ablate import ablate as stage
    from .stages.ablate_report import print_table

    share = (task_index or 0, num_tasks or 1)
    result = stage(opened, grid, jobs=jobs, dry_run=dry_run, share=share)
    if as_json:
        print_json(result.report)
    elif not dry_run:
        print_table(result.grid, result.report["arms"])
    if result.error is not None:
        raise result.error
