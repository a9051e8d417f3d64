"""`uniego evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json
from .cli_extract import OverwriteOption


def evaluate(
    run: RunOption = Path(),
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="student, proxy:KEY, teacher:KEY (its features) or an encoder's folder (with a /).",
        ),
    ] = "student",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="recognition, retrieval, segmentation or probe; may be repeated. Default: all.",
        ),
    ] = None,
    as_json: JsonOption = False,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """What a model can do, on the test split.

    Recognition, retrieval, segmentation and probes: all that the data allow, each number with its protocol in
    RUN/evaluate/NAME/results.json."""
    opened = open_run(run, overrides)
    from .stages.evaluate import evaluate as stage

    results = stage(opened, model=model, tasks=task or (), overwrite=overwrite, quiet=as_json)
    if as_json:
        print_json(results)
