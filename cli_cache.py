"""Commands about the feature cache: what it holds, how much of the clips it covers, exchange with other formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import cli_verify
from .cli_data import JsonOption, RunOption, SetOption, did_you_mean, open_run, print_json
from .errors import EXIT_COVERAGE, UsageError
from .pipeline.progress import size_text

if TYPE_CHECKING:
    from .pipeline.clips import Split
    from .stages.cache_report import Cell
    from .stages.exchange import Exchanged

TeacherOption = Annotated[
    list[str] | None,
    typer.Option("--teacher", metavar="KEY", help="Only this teacher; may be repeated. Default: the whole pool."),
]
SplitOption = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="NAME", help="Only this split; may be repeated. Default: all three."),
]
MinimumOption = Annotated[
    float | None,
    typer.Option(
        "--min-coverage",
        min=0.0,
        max=1.0,
        help="Exit with 3 if a teacher has features of a smaller share of a split, 0 to 1.",
    ),
]

app = typer.Typer(help="The feature cache.", no_args_is_help=True, rich_markup_mode=None)
app.command("gc")(cli_verify.gc)


@app.command()
def info(run: RunOption = Path(), as_json: JsonOption = False, overrides: SetOption = None) -> None:
    """What is in the cache: stores, rows, shapes, bytes, files, fingerprints."""
    opened = open_run(run, overrides)
    from .stages.cache_report import cache_info

    report = cache_info(opened)
    if as_json:
        print_json(report)
        return
    typer.echo(
        f"{report['cache']}: schema {report['schema_version']}, {report['rows']} clips in {report['shards']} shards of "
        f"at most {report['rows_per_shard']}, {size_text(report['bytes'])} in {report['files']} files"
    )
    for name, store in report["stores"].items():
        for line in _store_lines(name, store):
            typer.echo(line)
    clips = report["clip_store"]
    if clips is not None:
        typer.echo(
            f"clip store {clips['path']}: {clips['clips']} clips, {clips['stored']} stored, {clips['failed']} failed, "
            f"{size_text(clips['bytes'])}"
        )


def _store_lines(name: str, store: dict[str, Any]) -> list[str]:
    size = f"{size_text(store['bytes'])} in {store['files']} files"
    if "problem" in store:
        return [f"{name}: cannot be opened: {store['problem']}", f"    {size}"]
    arrays = [
        f"{array} {' x '.join(f'{size} {axis}' for axis, size in spec['dims'].items())} {spec['dtype']}"
        for array, spec in store["arrays"].items()
    ]
    stamps = [stamp for stamp in ("random", "reconstruction") if store[stamp]]
    marks = f" [{', '.join(stamps).upper()}]" if stamps else ""
    lines = [
        f"{name}: {'; '.join(arrays)}{marks}",
        f"    {store['done']} done, {store['failed']} failed, {store['missing']} missing, {store['pending']} pending",
        f"    {store['shards']} shards, {size}; fingerprint {store['fingerprint']}",
    ]
    return lines + ([f"    imported from {store['imported']['source']}"] if store["imported"] else [])


@app.command()
def coverage(
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    split: SplitOption = None,
    min_coverage: MinimumOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="List every failed clip and why.")] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """How many clips of each split have features of each teacher.

    done: they have. failed: tried; --failed says why. missing: the table names no such input. pending: not tried yet.
    The share counts missing clips against it."""
    opened = open_run(run, overrides, teacher)
    splits = _splits(split)
    from .stages.cache_report import coverage as stage
    from .stages.cache_report import failed_clips

    cells = stage(opened, teacher, splits)
    short = [cell for cell in cells if min_coverage is not None and cell.coverage.share < min_coverage]
    failures = failed_clips(opened, teacher, splits) if failed else iter(())
    if as_json:
        report: dict[str, Any] = {"coverage": [_cell_json(cell) for cell in cells]}
        if min_coverage is not None:
            report["below"] = [[cell.split, cell.teacher] for cell in short]
        print_json({**report, "failed": [clip._asdict() for clip in failures]} if failed else report)
    else:
        for line in _coverage_lines(cells):
            typer.echo(line)
        for clip in failures:
            typer.echo(f"{clip.split} {clip.clip_id} {clip.teacher} {clip.reason}: {clip.message}")
        for cell in short:
            least = f"{100 * (min_coverage or 0):g} %"
            typer.echo(f"{cell.teacher}: {_percent(cell)} of {cell.split}, below {least}", err=True)
    if short:
        raise typer.Exit(EXIT_COVERAGE)


def _splits(names: Sequence[str] | None) -> list[Split] | None:
    if not names:
        return None
    from .pipeline.clips import SPLITS

    for name in names:
        if name not in SPLITS:
            raise UsageError(f"no split {name!r}{did_you_mean(name, SPLITS)}; there are {', '.join(SPLITS)}")
    return [split for split in SPLITS if split in names]


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {"split": cell.split, "teacher": cell.teacher, **cell.coverage._asdict(), "share": cell.coverage.share}


def _coverage_lines(cells: Sequence[Cell]) -> list[str]:
    titles = ["split", "teacher", "clips", "done", "failed", "missing", "pending", "share"]
    table = [[cell.split, cell.teacher, *map(str, cell.coverage), _percent(cell)] for cell in cells]
    widths = [max(map(len, column)) for column in zip(titles, *table, strict=True)]
    aligned = [f"{'<' if place < 2 else '>'}{width}" for place, width in enumerate(widths)]
    return ["  ".join(map(format, row, aligned)) for row in [titles, *table]]


def _percent(cell: Cell) -> str:
    """Rounded down, so that only what is whole reads 100.0 %."""
    return f"{int(1000 * cell.coverage.share) / 10:.1f} %"


@app.command()
def stats(
    run: RunOption = Path(), teacher: TeacherOption = None, as_json: JsonOption = False, overrides: SetOption = None
) -> None:
    """Mean, variance, norm and dead dimensions of the features of the run's clips.

    Dead dimensions have the same value everywhere. Clips without features are left out."""
    opened = open_run(run, overrides, teacher)
    from .stages.cache_report import cache_statistics

    report = cache_statistics(opened, teacher)
    if as_json:
        print_json(report)
        return
    for name, arrays in report.items():
        for array, found in arrays.items():
            typer.echo(f"{name} {array}: {_stats_line(found)}")


def _stats_line(found: dict[str, Any]) -> str:
    if not found["vectors"]:
        return "no clip is done"
    norm, dead = found["norm"], found["dead"]
    width = len(found["per_dimension"]["mean"])
    shown = f" ({', '.join(map(str, dead[:8]))}{', …' * (len(dead) > 8)})" if dead else ""
    return (
        f"{found['clips']} clips, {found['vectors']} vectors; mean {found['mean']:.4g}, variance "
        f"{found['variance']:.4g}; norm {norm['mean']:.4g} ({norm['min']:.4g} to {norm['max']:.4g}); "
        f"{len(dead)} of {width} dimensions dead{shown}"
    )


@app.command("export")
def export_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write; must not exist.")],
    form: Annotated[str, typer.Option("--to", metavar="FORMAT", help="npy, hdf5 or safetensors.")],
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    names: Annotated[
        str, typer.Option(metavar="RULE", help="Names of .npy files: stem (of the clip's video) or id (of the clip).")
    ] = "stem",
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Write the features of the run's clips in another format.

    npy is the layout of released features, OUT/TEACHER/STEM.npy; clips without features have no file there. hdf5 and
    safetensors hold all that the cache knows, and `uniego cache import` reads them."""
    opened = open_run(run, overrides, teacher)
    from .stages.exchange import FORMATS, export_features

    if form not in FORMATS:
        raise UsageError(f"--to {form}{did_you_mean(form, FORMATS)}; there are {', '.join(FORMATS)}")
    if names not in ("stem", "id"):
        raise UsageError(f"--names {names}: stem or id wanted")
    _print_exchanged(export_features(opened, form, out, teacher, by_id=names == "id"), as_json)


@app.command("import")
def import_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="What `cache export` wrote, hdf5 or safetensors.")],
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    any_source: Annotated[
        bool, typer.Option("--any-source", help="Take features also of clips whose files are others here.")
    ] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Take exported features into the run's cache; nothing is overwritten.

    Features in other files, one per clip, are read by a teacher with network: precomputed."""
    opened = open_run(run, overrides, teacher)
    from .stages.exchange import import_features

    _print_exchanged(import_features(opened, path, teacher, any_source=any_source), as_json)


def _print_exchanged(done: Sequence[Exchanged], as_json: bool) -> None:
    if as_json:
        print_json([{"teacher": entry.teacher, **entry.coverage._asdict(), "zeros": entry.zeros} for entry in done])
