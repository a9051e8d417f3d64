"""Commands that check a cache and clean it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_data import JsonOption, SetOption
from .errors import EXIT_INTEGRITY, UsageError

if TYPE_CHECKING:
    from .cache.gc import Garbage
    from .stages.verify import Report

RunOption = Annotated[Path, typer.Option("-r", "--run", metavar="DIR", help="The run's folder.")]
RunsOption = Annotated[
    list[Path] | None,
    typer.Option("-r", "--run", metavar="DIR", help="A run that uses the cache; name every one of them."),
]
TeacherOption = Annotated[
    list[str] | None,
    typer.Option("--teacher", metavar="KEY", help="Only this teacher; may be repeated. Default: all, and all proxies."),
]


def verify(
    run: RunOption = Path(),
    teacher: TeacherOption = None,
    full: Annotated[bool, typer.Option("--full", help="Read and compare every byte.")] = False,
    recompute: Annotated[
        int,
        typer.Option("--recompute", metavar="K", min=0, help="Compute K clips of each teacher again and compare."),
    ] = 0,
    mark: Annotated[bool, typer.Option(help="Mark bad shards, so that they are done again.")] = True,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """Check that stored features are what was computed.

    By default ledgers and sizes. Exit code 4 names bad shards; the next extract-teachers redoes exactly these."""
    from .pipeline.rundir import Run
    from .stages.verify import verify as stage

    report = stage(Run.open(run, overrides or ()), teacher, full=full, recompute=recompute, mark=mark)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        for line in _report_lines(report):
            typer.echo(line)
    if report.problems:
        raise typer.Exit(EXIT_INTEGRITY)


def _report_lines(report: Report) -> list[str]:
    lines = [f"bad: {problem}" for problem in report.problems]
    for key, clips in report.recomputed.items():
        lines.append(f"{key}: {clips} clips computed again, {report.equal[key]} with the same bytes")
    bad = len(report.problems)
    shards = sum(report.stores.values())
    checked = f"{len(report.stores)} stores, {shards} shards in {report.cache}"
    if not bad:
        return [*lines, f"all good: {checked}"]
    again = "; run extract-teachers (for a proxy-… store train-proxies) to redo what is marked"
    return [*lines, f"{bad} bad: {checked}{again}"]


def gc(
    run: RunsOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only listed.")] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
) -> None:
    """List, or with --yes remove, what no named run needs.

    Left-over files of killed writers, shards of which every clip was dropped, stores that no run refers to."""
    from .cache.gc import collect
    from .pipeline.rundir import Run
    from .stages.gc import find_garbage

    if not run:
        raise UsageError("name every run that uses the cache with -r DIR: what none of them needs is garbage")
    garbage = find_garbage([Run.open(folder, overrides or ()) for folder in run])
    if yes:
        collect(garbage)
    if as_json:
        typer.echo(json.dumps(_garbage_json(garbage, yes), indent=2, ensure_ascii=False))
    else:
        for line in _garbage_lines(garbage, yes):
            typer.echo(line)


def _garbage_json(garbage: Garbage, removed: bool) -> dict[str, object]:
    return {
        "cache": garbage.place,
        "removed": removed,
        "bytes": garbage.bytes,
        "stores": garbage.stores,
        "shards": {
            store: {str(shard): size for shard, size in found.items()} for store, found in garbage.shards.items()
        },
        "partials": {str(path): size for path, size in garbage.partials.items()},
        "masked_rows_kept": garbage.masked,
    }


def _garbage_lines(garbage: Garbage, removed: bool) -> list[str]:
    lines = [f"store {name}: {size / 1e6:.1f} MB" for name, size in garbage.stores.items()]
    for store, shards in garbage.shards.items():
        names = ", ".join(map(str, [*shards][:8])) + (", …" if len(shards) > 8 else "")
        lines.append(f"shards of dropped clips in {store}: {names} ({sum(shards.values()) / 1e6:.1f} MB)")
    lines += [f"left over: {path} ({size} bytes)" for path, size in garbage.partials.items()]
    if garbage.masked:
        lines.append(f"kept: {garbage.masked} rows of dropped clips, in shards with clips that are still wanted")
    if removed:
        return [*lines, f"{garbage.bytes / 1e6:.1f} MB removed from {garbage.place}"]
    end = "; --yes removes it" if garbage.bytes else ""
    return [*lines, f"{garbage.bytes / 1e6:.1f} MB to remove from {garbage.place}{end}"]
