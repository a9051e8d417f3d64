"""Commands about data: making a run from a clip table, checking a table."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_build
from .errors import EXIT_FAILURE, UsageError

if TYPE_CHECKING:
    from .datasets.report import Report
    from .pipeline.clips import Clip, ClipTable
    from .pipeline.config import DataConfig, RunConfig
    from .pipeline.rundir import Run

LISTED = 5
"""Missing files that a message spells out."""

RunOption = Annotated[Path, typer.Option("-r", "--run", metavar="DIR", help="The run's folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as seed=1; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="Clip tables.", no_args_is_help=True, rich_markup_mode=None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the names, or nothing."""
    close = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def open_run(run: Path, overrides: Sequence[str] | None, teachers: Sequence[str] | None = None) -> Run:
    """The run in a folder. Raises `UsageError` for a teacher that its pool does not have."""
    from .pipeline.rundir import Run

    opened = Run.open(run, overrides or ())
    for key in teachers or ():
        if key not in opened.config.teachers:
            pool = list(opened.config.teachers)
            raise UsageError(f"no teacher {key!r}{did_you_mean(key, pool)}; the pool has {', '.join(pool)}")
    return opened


def print_json(report: Any) -> None:
    """Print it on standard output."""
    typer.echo(json.dumps(report, indent=2, ensure_ascii=False))


app.add_typer(cli_build.app, name="build")


@app.command()
def check(
    table: Annotated[Path | None, typer.Argument(metavar="[TABLE]", help="Clip table, CSV or Parquet.")] = None,
    run: Annotated[Path | None, typer.Option("-r", "--run", metavar="DIR", help="The table of a run.")] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="Where relative paths start. Default: the table's folder."),
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option("--sheets", metavar="DIR", help="Draw contact sheets of the sample into a folder.")
    ] = None,
    sampled: Annotated[int, typer.Option("--sample", metavar="N", min=0, help="Clips to decode.")] = 16,
    hashed: Annotated[
        int, typer.Option("--look-alikes", metavar="N", min=0, help="Clips of each split to compare by sight.")
    ] = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the samples.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Only count, and look for files that do not exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a clip table: files, durations, balance, leakage between splits, and a decoded sample.

    The exit code is 1 where files do not exist, clips of the sample do not decode, or ego clips of two splits share
    time of one file."""
    from .pipeline.clips import missing_files

    read, backend = _table_to_check(table, run, root)
    missing = missing_files(read)
    report = None
    if not quick:
        from .datasets.report import Options, examine

        options = Options(sampled, hashed, sheets, seed, backend)
        report = examine(read, options, leave_out=[clip for clip, _, _ in missing])
    elif sheets is not None:
        raise UsageError("--sheets needs clips to be decoded: leave --quick out")
    if as_json:
        print_json(_report(read, missing) | (report.as_json() if report is not None else {}))
    else:
        _print_check(read, missing, report)
    if missing or (report is not None and report.bad):
        raise typer.Exit(EXIT_FAILURE)


def _print_check(read: ClipTable, missing: Sequence[tuple[Clip, str, Path]], report: Report | None) -> None:
    from .datasets.report import describe

    for line in [*_describe(read), *(describe(report) if report is not None else [])]:
        typer.echo(line)
    for line in _describe_missing(read, missing, len(missing)):
        typer.echo(line)


def _table_to_check(table: Path | None, run: Path | None, root: Path | None) -> tuple[ClipTable, str]:
    """The table, and the backend that is to decode it."""
    if (table is None) == (run is None):
        raise UsageError("name one table: TABLE, or --run DIR")
    if run is not None:
        if root is not None:
            raise UsageError("--root belongs to TABLE; a run has data.root in run.yaml")
        opened = open_run(run, None)
        return opened.table(), opened.config.video.backend
    from .pipeline.clips import read_clip_table

    assert table is not None
    return read_clip_table(table, root=root), "pyav"


def make_run(directory: Path, data: Path, name: str, root: Path | None, overrides: Sequence[str]) -> None:
    """Carry out `uniego init`: read the table, tell what is missing, write run.yaml, say what comes next."""
    if (directory / "run.yaml").exists():
        raise UsageError(f"{directory / 'run.yaml'} exists: edit it, or choose another folder for a new run")
    if root is not None and not root.is_dir():
        raise UsageError(f"--root {root}: no such folder")
    from .pipeline.configfile import with_overrides
    from .pipeline.outlook import outlook
    from .pipeline.presets import RESULTS, notes, preset

    start = preset(name)
    located = start.data.model_copy(update=_location(directory, data, root))
    config = with_overrides(start.model_copy(update={"data": located}), overrides)

    from .pipeline.clips import missing_files
    from .pipeline.rundir import Run

    table, config, told = _fit_classes(directory, config)
    run = Run.create(directory, config, notes(name, config))
    base = name.removesuffix("-release")
    if base in RESULTS:
        told.append(f"published with this recipe: {RESULTS[base][0]} % top-1 (see docs/differences.md)")
        told.append(outlook(config, len(run.table().split("train")), len(run.table().split("test"))))
    for line in [*_describe(run.table()), *told]:
        typer.echo(line)
    for line in _describe_missing(table, missing_files(table), LISTED):
        typer.echo(f"warning: {line}" if not line.startswith(" ") else line, err=True)
    for line in _too_few(run.table(), config):
        typer.echo(f"warning: {line}", err=True)
    where = "" if directory.resolve() == Path.cwd() else f" -r {directory}"
    typer.echo(f"wrote {directory / 'run.yaml'}; next: uniego extract-teachers{where}")


def _too_few(table: ClipTable, config: RunConfig) -> list[str]:
    """Stages that would refuse the train split, since it makes no whole step: told before features are extracted."""
    clips = len(table.split("train"))
    steps = {"proxies.train": config.proxies.train.global_batch, "distill.train": config.distill.train.global_batch}
    return [
        f"{clips} train clips are fewer than a step takes: lower {name}.global_batch ({batch}) and {name}.micro_batch"
        for name, batch in steps.items()
        if clips < batch
    ]


def _location(directory: Path, data: Path, root: Path | None) -> dict[str, str | None]:
    """The table as run.yaml names it: from the run's folder when it lies inside, absolute otherwise."""
    table, folder = data.absolute(), directory.absolute()
    inside = table.is_relative_to(folder)
    return {
        "table": str(table.relative_to(folder) if inside else table),
        "root": None if root is None else str(root.absolute()),
    }


def _fit_classes(directory: Path, config: RunConfig) -> tuple[ClipTable, RunConfig, list[str]]:
    """The table, and the configuration with a number of classes that it fits."""
    from .pipeline.clips import read_clip_table

    data: DataConfig = config.data
    root = None if data.root is None else directory / data.root
    table = read_clip_table(directory / data.table, root=root)
    wanted = data.num_classes
    if wanted is not None and table.num_classes <= wanted:
        few = table.num_classes < wanted
        note = f"note: data.num_classes is {wanted}, the table has {table.num_classes} classes"
        return table, config, [note] if few else []
    fitted = data.model_copy(update={"num_classes": table.num_classes})
    notes = []
    if wanted is not None:
        notes.append(f"note: data.num_classes is {table.num_classes} as in the table, not the preset's {wanted}")
    return table, config.model_copy(update={"data": fitted}), notes


def _describe(table: ClipTable) -> list[str]:
    splits = ", ".join(f"{name} {count}" for name, count in table.splits.items())
    exo = sum(clip.exo_path is not None for clip in table.clips)
    pose = sum(clip.pose_path is not None for clip in table.clips)
    lines = [
        f"clips: {len(table.clips)} ({splits}); classes: {table.num_classes}; with exo video: {exo}; with poses: {pose}"
    ]
    lines.extend(_describe_extra(table))
    unseen = {clip.label for clip in table.split("test")} - {clip.label for clip in table.split("train")}
    if not table.splits["train"]:
        lines.append("note: the table has no train clips")
    elif unseen:
        names = [table.classes[label] for label in sorted(unseen)]
        shown = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
        lines.append(f"note: {len(names)} classes of the test split have no train clip: {shown}")
    return lines


def _describe_extra(table: ClipTable) -> list[str]:
    """Columns that mean nothing here, and the known one that each may have been meant for."""
    from .pipeline.clips import OPTIONAL

    extra = list(table.clips[0].extra)
    if not extra:
        return []
    lines = [f"further columns, kept as they are: {', '.join(extra)}"]
    for name in extra:
        close = difflib.get_close_matches(name.lower(), OPTIONAL, 1, 0.7)
        if close and not any(_named(clip, close[0]) for clip in table.clips):
            lines.append(f"warning: column {name!r} means nothing; did you mean {close[0]!r}?")
    return lines


def _named(clip: Clip, column: str) -> bool:
    return getattr(clip, column) is not None


def _describe_missing(table: ClipTable, missing: Sequence[tuple[Clip, str, Path]], most: int) -> list[str]:
    if not missing:
        return []
    clips = len({clip.clip_id for clip, _, _ in missing})
    lines = [f"{clips} of {len(table.clips)} clips name files that do not exist; extraction leaves these out:"]
    lines.extend(f"  {clip.clip_id}: {column} {path}" for clip, column, path in missing[:most])
    if len(missing) > most:
        lines.append(f"  and {len(missing) - most} more; `uniego data check` lists all")
    return lines


def _report(table: ClipTable, missing: Sequence[tuple[Clip, str, Path]]) -> dict[str, object]:
    return {
        "table": str(table.path),
        "clips": len(table.clips),
        "splits": table.splits,
        "num_classes": table.num_classes,
        "classes": list(table.classes),
        "missing": [{"clip_id": clip.clip_id, "column": column, "path": str(path)} for clip, column, path in missing],
    }
