"""Commands that look into finished work: what representations have in common, where teachers disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json
from .cli_extract import Engine, SbatchOption, SchedulerOption, SlurmWorkersOption
from .errors import UsageError

app = typer.Typer(help="Analyses of a trained run.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def cka(
    run: RunOption = Path(),
    engine: Annotated[Engine, typer.Option("--engine", help="This process, or a Dask cluster.")] = Engine.local,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Dask workers on this machine.")
    ] = None,
    scheduler: SchedulerOption = None,
    slurm_workers: SlurmWorkersOption = None,
    sbatch: SbatchOption = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """How alike teachers, proxies and student are.

    Debiased linear CKA over the train split; a table, and JSON, CSV and a picture in RUN/analyze/cka."""
    from .stages.extract_options import ExtractOptions

    if workers is not None and engine is Engine.local:
        raise UsageError("--workers belongs to --engine dask")
    options = ExtractOptions(
        engine=engine.value,
        workers=workers,
        scheduler=scheduler,
        slurm_workers=slurm_workers,
        sbatch=tuple(sbatch or ()),
    )
    opened = open_run(run, overrides)
    from .stages.analyze_cka import analyze_cka, print_cka

    report = analyze_cka(opened, options if engine is Engine.dask else None)
    if as_json:
        print_json(report)
    else:
        print_cka(opened, report)


@app.command()
def conflicts(
    run: RunOption = Path(),
    batches: Annotated[int, typer.Option("--batches", metavar="N", min=1, help="Global batches to probe with.")] = 8,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """How often teachers' gradients point apart.

    On the student's shared parameters, over training where distill.snapshots kept some of it."""
    opened = open_run(run, overrides)
    from .stages.analyze_conflicts import analyze_conflicts, print_conflicts

    report = analyze_conflicts(opened, batches)
    if as_json:
        print_json(report)
    else:
        print_conflicts(opened, report)
