"""The command `submit`: a stage as a Slurm job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_data import RunOption, SetOption, open_run
from .cli_extract import TeacherOption


def submit(
    context: typer.Context,
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="extract-teachers, train-proxies, distill, evaluate or ablate.")
    ],
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    overrides: SetOption = None,
    array: Annotated[
        int | None,
        typer.Option(
            "--array",
            metavar="N",
            min=1,
            help="extract-teachers, ablate (else one per arm): tasks; train-proxies: teachers at a time, else all.",
        ),
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Slurm's partition.")] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="LIMIT", help="Time limit, such as 4:00:00.")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="N", help="GPUs of each task.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", metavar="N", min=1, help="Cores of each task.")] = None,
    mem: Annotated[str | None, typer.Option("--mem", metavar="SIZE", help="Memory of each task, such as 32G.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Account to charge.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="ARG", help="Further argument of sbatch; may be repeated."),
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Show the script; submit and keep nothing.")] = False,
) -> None:
    """Run a stage as a Slurm job.

    The job saves, and goes back in the queue, when it is preempted or its time is up. What follows -- is the stage's
    own: uniego submit extract-teachers --array 8 -- --strict, uniego submit ablate -- GRID.yaml."""
    opened = open_run(run, overrides, teacher)
    from .stages.submit import Resources, script
    from .stages.submit import submit as stage_submit

    own = [word for key in teacher or () for word in ("--teacher", key)]
    own += [word for value in overrides or () for word in ("--set", value)]
    own = [*context.args, *own] if stage == "ablate" else [*own, *context.args]
    resources = Resources(partition, time, gpus, cpus, mem, account, array, tuple(_words(sbatch)))
    if print_only:
        typer.echo(script(opened, stage, resources, own), nl=False)
        return
    job, path = stage_submit(opened, stage, resources, own)
    typer.echo(f"submitted as job {job}; script and output are in {path.parent}")
    typer.echo(f"next: {opened.command('status')}; squeue -j {job}")


def _words(given: list[str] | None) -> list[str]:
    """Every argument on its own: --sbatch "--exclusive --nice=100" is two."""
    return [word for text in given or () for word in shlex.split(text)]
