"""The command that makes the clip store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .cli_data import JsonOption, SetOption

RunOption = Annotated[Path, typer.Option("-r", "--run", metavar="DIR", help="The run's folder.")]


def prepare_clips(
    run: RunOption = Path(),
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every stored byte first; damaged shards are made again.")
    ] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Decode the ego clips once, for training to read.

    Optional: it takes disk space, and training with clips.source=store then hardly waits for data. See
    docs/clip-store.md."""
    from .pipeline.rundir import Run
    from .stages.prepare_clips import prepare_clips as stage

    report = stage(Run.open(run, overrides or ()), verify=verify)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
