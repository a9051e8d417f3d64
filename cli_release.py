"""`uniego release`: what the released code left in its folders into a run, and a run's work into such folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_cache import TeacherOption
from .cli_data import RunOption, SetOption, open_run
from .cli_extract import CoverageOption, OverwriteOption, RetryOption
from .errors import UsageError

What = Literal["features", "proxies", "merged", "student"]
WhatArgument = Annotated[What, typer.Argument(metavar="WHAT", help="features, proxies, merged or student.")]

app = typer.Typer(help="The layout of the released code's folders.", no_args_is_help=True, rich_markup_mode=None)


@app.command("import")
def import_command(
    what: WhatArgument,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with a folder per teacher; or a .pyth file.")],
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    heads: Annotated[
        int | None, typer.Option("--heads", metavar="N", min=1, help="Attention heads of the network, to be compared.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", metavar="N", min=1, help="Rows kept of each feature, where their number differs."),
    ] = None,
    zeros: Annotated[
        Literal["missing", "values"],
        typer.Option("--zeros", help="What features of zeros are: missing, as for the released code, or values."),
    ] = "missing",
    min_coverage: CoverageOption = None,
    retry_failed: RetryOption = False,
    overwrite: OverwriteOption = False,
    overrides: SetOption = None,
) -> None:
    """Take work of the released code into a run (docs/released.md).

    features: PATH/TEACHER/CLIP.npy. proxies: PATH/TEACHER/checkpoints/*.pyth and tokens_training. merged, student: a
    checkpoint. Later stages take them as the run's own, and say that they were imported."""
    opened = open_run(run, overrides, teacher)
    if what != "features" and (rows is not None or zeros != "missing" or min_coverage is not None or retry_failed):
        raise UsageError("--rows, --zeros, --min-coverage and --retry-failed are for features")
    if heads is not None and what == "features":
        raise UsageError("--heads is for networks")
    if teacher and what in ("merged", "student"):
        raise UsageError(f"--teacher: there is one {what} network")
    if what == "features":
        from .stages.extract_options import ExtractOptions
        from .stages.released_features import import_features

        options = ExtractOptions(min_coverage=min_coverage, retry_failed=retry_failed)
        import_features(
            opened, path, teacher, rows=rows, zeros_are_values=zeros == "values", overwrite=overwrite, options=options
        )
        return
    from .stages import release_import as stage

    if what == "proxies":
        stage.import_proxies(opened, path, teacher, heads=heads, overwrite=overwrite)
    elif what == "merged":
        stage.import_merged(opened, path, heads=heads, overwrite=overwrite)
    else:
        stage.import_student(opened, path, heads=heads, overwrite=overwrite)


@app.command("export")
def export_command(
    what: WhatArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder, or .pyth file, to write; must not exist.")],
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    names: Annotated[
        Literal["stem", "id"],
        typer.Option("--names", metavar="RULE", help="Names of .npy files: stem (of the clip's video) or id."),
    ] = "stem",
    overrides: SetOption = None,
) -> None:
    """Write a run's work in the layout of the released code (docs/released.md)."""
    opened = open_run(run, overrides, teacher)
    if teacher and what in ("merged", "student"):
        raise UsageError(f"--teacher: there is one {what} network")
    if what == "features":
        from .stages.exchange import export_features

        export_features(opened, "npy", out, teacher, by_id=names == "id")
        return
    from .stages import release_export as stage

    if what == "proxies":
        stage.export_proxies(opened, out, teacher, by_id=names == "id")
    elif what == "merged":
        stage.export_merged(opened, out)
    else:
        stage.export_student(opened, out)
