"""Commands that check a cache and clean it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json
from .errors import EXIT_FAILURE, EXIT_INTEGRITY, UsageError
from .pipeline.progress import size_text

if TYPE_CHECKING:
    from .cache.clip_gc import ClipGarbage
    from .cache.gc import Garbage
    from .stages.verify import Report

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
    opened = open_run(run, overrides, teacher)
    from .stages.cache_report import shards_to_do
    from .stages.verify import verify as stage

    report = stage(opened, teacher, full=full, recompute=recompute, mark=mark)
    left = {name: shards for name, shards in shards_to_do(opened).items() if name in report.stores}
    if as_json:
        print_json({**report.as_json(), "to_do": left})
    else:
        for line in _report_lines(report, left):
            typer.echo(line)
    if report.problems or report.clip_store:
        raise typer.Exit(EXIT_INTEGRITY)
    if report.unread:
        raise typer.Exit(EXIT_FAILURE)


def _report_lines(report: Report, left: Mapping[str, int]) -> list[str]:
    lines = [f"bad: {problem}" for problem in report.problems]
    for key, clips in report.recomputed.items():
        lines.append(f"{key}: {clips} clips computed again, {report.equal[key]} with the same bytes")
    for key, reasons in report.unread.items():
        lines.append(f"{key}: {len(reasons)} clips could not be compared: {reasons[0]}{'; …' * (len(reasons) > 1)}")
    for shard, problem in (report.clip_store or {}).items():
        lines.append(f"bad: clip store, shard {shard}: {problem}; run prepare-clips --verify")
    bad = len(report.problems) + len(report.clip_store or {})
    checked = f"{len(report.stores)} stores, {sum(report.stores.values())} shards in {report.cache}"
    lines.append(f"{bad} bad: {checked}" if bad else f"all good: {checked}")
    if left:
        shards = ", ".join(f"{number} of {name}" for name, number in left.items())
        lines.append(
            f"shards that are still to be done, marked ones included: {shards}; run extract-teachers (for a proxy-… "
            "store train-proxies)"
        )
    return lines


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
        print_json(_garbage_json(garbage, yes))
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
        "clip_store": _clip_json(garbage.clips),
    }


def _clip_lines(clips: ClipGarbage | None) -> list[str]:
    if clips is None:
        return []
    if clips.whole:
        return [f"clip store {clips.root}: made under settings of none of these runs ({size_text(clips.bytes)})"]
    names = ", ".join(map(str, [*clips.shards][:8])) + (", …" if len(clips.shards) > 8 else "")
    shards = [f"shards of dropped clips in the clip store: {names} ({size_text(sum(clips.shards.values()))})"]
    return (shards if clips.shards else []) + [
        f"left over: {path} ({size_text(size)})" for path, size in clips.partials.items()
    ]


def _clip_json(clips: ClipGarbage | None) -> dict[str, object] | None:
    if clips is None:
        return None
    return {
        "path": str(clips.root),
        "whole": clips.whole,
        "shards": {str(shard): size for shard, size in clips.shards.items()},
        "partials": {str(path): size for path, size in clips.partials.items()},
        "bytes": clips.bytes,
    }


def _garbage_lines(garbage: Garbage, removed: bool) -> list[str]:
    lines = [f"store {name}: {size_text(size)}" for name, size in garbage.stores.items()]
    for store, shards in garbage.shards.items():
        names = ", ".join(map(str, [*shards][:8])) + (", …" if len(shards) > 8 else "")
        lines.append(f"shards of dropped clips in {store}: {names} ({size_text(sum(shards.values()))})")
    lines += [f"left over: {path} ({size_text(size)})" for path, size in garbage.partials.items()]
    lines += _clip_lines(garbage.clips)
    if garbage.masked:
        lines.append(f"kept: {garbage.masked} rows of dropped clips, in shards with clips that are still wanted")
    if removed:
        return [*lines, f"{size_text(garbage.bytes)} removed from {garbage.place}"]
    end = "; --yes removes it" if garbage.bytes else ""
    return [*lines, f"{size_text(garbage.bytes)} to remove from {garbage.place}{end}"]
