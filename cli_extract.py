"""The command `extract-teachers`: who computes, and what is told before."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_data import RunOption, SetOption, open_run
from .errors import UsageError

if TYPE_CHECKING:
    from .stages.extract_options import Share


class Engine(StrEnum):
    """Who computes the shards."""

    local = "local"
    dask = "dask"


TeacherOption = Annotated[
    list[str] | None,
    typer.Option("--teacher", metavar="KEY", help="Only this teacher; may be repeated. Default: the whole pool."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start this stage anew.")]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Refuse missing files and teachers without features instead of going on."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and how long it takes; stop.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try clips again that failed.")]
CoverageOption = Annotated[
    float | None,
    typer.Option("--min-coverage", metavar="SHARE", min=0.0, max=1.0, help="Instead of extract.min_coverage."),
]
TaskOption = Annotated[
    int | None, typer.Option("--task-index", metavar="I", help="Only this task's share of the shards, from 0.")
]
TasksOption = Annotated[
    int | None, typer.Option("--num-tasks", metavar="N", help="Tasks that the shards are divided among.")
]
ArrayOption = Annotated[bool, typer.Option("--array", help="Take the share from Slurm's job array variables.")]
EngineOption = Annotated[Engine, typer.Option("--engine", help="Processes on this machine, or a Dask cluster.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="Processes on this machine. Default: one per GPU, or one."),
]
SchedulerOption = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Dask scheduler that runs: tcp://host:8786.")
]
SlurmWorkersOption = Annotated[
    int | None, typer.Option("--slurm-workers", metavar="N", min=1, help="Dask workers as so many Slurm jobs.")
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option("--sbatch", metavar="ARG", help="Argument of those jobs, such as --mem=32G; may be repeated."),
]


def extract_teachers(
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    min_coverage: CoverageOption = None,
    task_index: TaskOption = None,
    num_tasks: TasksOption = None,
    array: ArrayOption = False,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    slurm_workers: SlurmWorkersOption = None,
    sbatch: SbatchOption = None,
) -> None:
    """Stage 1: features of the frozen teachers.

    On this machine, as one of several tasks, or on a Dask cluster; see docs/cluster.md. The bytes are the same."""
    from .stages.extract_options import ExtractOptions

    options = ExtractOptions(
        share=_share(task_index, num_tasks, array),
        engine=engine.value,
        workers=workers,
        scheduler=scheduler,
        slurm_workers=slurm_workers,
        sbatch=tuple(sbatch or ()),
        dry_run=dry_run,
        retry_failed=retry_failed,
        min_coverage=min_coverage,
    )
    opened = open_run(run, overrides, teacher)
    from .stages.extract_teachers import extract_teachers as stage

    stage(opened, teacher, overwrite=overwrite, strict=strict, options=options)


def _share(index: int | None, count: int | None, array: bool) -> Share | None:
    """What the options say. A Slurm array alone changes nothing, since every task may be another run's."""
    from .pipeline.progress import warn
    from .stages.extract_options import Share

    if array:
        if index is not None or count is not None:
            raise UsageError("--array takes the share from Slurm: leave --task-index and --num-tasks away")
        return Share.of_array(os.environ)
    if (index is None) != (count is None):
        raise UsageError("--task-index and --num-tasks belong together")
    if index is not None and count is not None:
        return Share(index, count)
    if int(os.environ.get("SLURM_ARRAY_TASK_COUNT") or 1) > 1:
        warn("this is a task of a Slurm job array, and takes all shards: with --array it would take its share")
    return None
