"""The command `report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_data import RunOption, open_run


def report(
    run: RunOption = Path(),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page. Default: RUN/report.html.")
    ] = None,
) -> None:
    """Everything known of a run as one HTML page.

    The file loads nothing from anywhere: what was run, curves, who taught whom, metrics, pictures. What the run does
    not have is said, with the command that makes it."""
    opened = open_run(run, None)
    from .stages.report.page import write_report

    typer.echo(f"report: {write_report(opened, out)}")
