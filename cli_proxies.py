"""The command `train-proxies`: who trains, and how many at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_data import RunOption, SetOption, did_you_mean, open_run
from .cli_extract import Engine, EngineOption, OverwriteOption, SchedulerOption, StrictOption, TeacherOption
from .errors import UsageError

JobsOption = Annotated[
    str,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Proxies trained at a time on this machine. auto: one per GPU, more where they fit; on a CPU 1.",
    ),
]


def train_proxies(
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
    jobs: JobsOption = "auto",
    engine: EngineOption = Engine.local,
    scheduler: SchedulerOption = None,
) -> None:
    """Stage 2: a proxy per teacher.

    Trains each and stores its outputs on the train split; see docs/cluster.md about several at a time."""
    from .stages.proxy_options import ProxyOptions

    options = ProxyOptions(jobs=_number(jobs), engine=engine.value, scheduler=scheduler)
    opened = open_run(run, overrides, teacher)
    from .stages.train_proxies import train_proxies as stage

    stage(opened, teacher, overwrite=overwrite, strict=strict, options=options)


def _number(jobs: str) -> int | None:
    if jobs == "auto":
        return None
    if not jobs.isdecimal() or int(jobs) < 1:
        raise UsageError(f"--jobs {jobs}{did_you_mean(jobs, ['auto'])}: auto or a number from 1 wanted")
    return int(jobs)
