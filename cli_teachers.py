"""Commands about the teachers: listing a pool, fetching its published weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_data import JsonOption, SetOption, did_you_mean
from .errors import UsageError, WeightsError

if TYPE_CHECKING:
    from .models.teachers import TeacherConfig, WeightsSource

RunOption = Annotated[
    Path | None,
    typer.Option(
        "-r",
        "--run",
        metavar="DIR",
        help="The run whose pool it is. Default: the run in this folder; where there is none, the paper's nine.",
    ),
]

app = typer.Typer(help="The teachers: what they are, and their weights.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def teachers(
    ctx: typer.Context, run: RunOption = None, as_json: JsonOption = False, overrides: SetOption = None
) -> None:
    """The teachers of a run, or the paper's nine.

    What they see, what they cost, whose weights they are, the licences of these, and whether they are at hand."""
    if ctx.invoked_subcommand is not None:
        if run is not None or as_json or overrides:
            raise UsageError(f"options go behind the command: uniego teachers {ctx.invoked_subcommand} …")
        return
    from .models.teachers.pool import describe_pool

    entries = describe_pool(_pool(run, overrides))
    if as_json:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    for entry in entries:
        for line in _lines(entry):
            typer.echo(line)


@app.command()
def fetch(
    run: RunOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", metavar="KEY", help="Only this teacher; may be repeated. Default: the whole pool."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Download the teachers' published weights and verify them.

    They go into the hub's local cache (HF_HOME). What is there already is verified only. Exit code 1 when weights
    that are named are not here at the end."""
    pool = _pool(run, overrides)
    for key in teacher or ():
        if key not in pool:
            raise UsageError(f"no teacher {key!r}{did_you_mean(key, pool)}; the pool has {', '.join(pool)}")
    fetch_pool({key: config for key, config in pool.items() if not teacher or key in teacher}, named=bool(teacher))


def _pool(run: Path | None, overrides: Sequence[str] | None) -> Mapping[str, TeacherConfig]:
    if run is None and not Path("run.yaml").is_file():
        from .models.teachers import default_teachers

        if overrides:
            raise UsageError("--set changes a run's configuration: name the run with -r")
        return default_teachers()
    from .pipeline.rundir import Run
    from .stages.train_teacher import pool_in_force

    return pool_in_force(Run.open(run or Path(), overrides or ()))


def _lines(entry: Mapping[str, Any]) -> list[str]:
    """A teacher of the listing: name, view, kind, width, cost, weights, licence; what it is; what is missing."""
    dim = "?" if entry["dim"] is None else str(entry["dim"])
    cost = "?" if entry["cost_per_clip"] is None else f"{entry['cost_per_clip']:.4g}"
    licence = f"{entry['license']}, NON-COMMERCIAL" if entry["non_commercial"] else entry["license"]
    weights = entry["weights"] or "none set"
    head = f"{entry['name']:<11} {entry['view']}  {entry['kind']:<14} {dim:>4}"
    lines = [f"{head}  {cost:>7} GFLOP/clip  {weights} ({licence})"]
    if entry["source"]:
        lines.append(f"            {entry['source']}")
    lines.append(f"            {'ready' if entry['ready'] else 'not ready: ' + entry['missing']}")
    return lines


def fetch_pool(pool: Mapping[str, TeacherConfig], *, named: bool) -> None:
    """Fetch and verify what the pool's teachers name, ids that several share once; tell each teacher's state.

    Raises `WeightsError` naming the teachers whose weights are not here at the end; those without any set count only
    if they were `named`.
    """
    from .models.teachers.local import local_weights

    shared: dict[str, list[str]] = {}
    missing: list[str] = []
    for key, config in pool.items():
        source = config.source
        if source is not None and source.kind == "hub":
            shared.setdefault(str(source), []).append(key)
            continue
        local = local_weights(key, config)
        if local.ready:
            typer.echo(f"{key}: {config.weights or config.network}: ready, nothing to fetch")
            continue
        unset = " Nobody publishes them: train them (uniego train-teacher), or set a checkpoint or features of yours"
        typer.echo(f"{key}: {local.why}.{unset if source is None else ''}")
        if source is not None or named:
            missing.append(key)
    missing += _fetch_shared(shared, pool)
    if missing:
        raise WeightsError(f"weights are missing for {', '.join(missing)}; see above")


def _fetch_shared(shared: Mapping[str, list[str]], pool: Mapping[str, TeacherConfig]) -> list[str]:
    """Fetch each hub id; the teachers that stay without. After one failure to reach the hub, none is asked again."""
    from .models.teachers.hub import HubUnreachable

    missing: list[str] = []
    unreachable = ""
    for text, keys in shared.items():
        source = pool[keys[0]].source
        assert source is not None
        try:
            typer.echo(f"{', '.join(keys)}: {text}: {_fetch(source, unreachable)}")
        except WeightsError as error:
            unreachable = unreachable or (str(error) if isinstance(error, HubUnreachable) else "")
            typer.echo(f"{', '.join(keys)}: {text}: {_advice(source, keys, str(error))}")
            missing += keys
    return missing


def _fetch(source: WeightsSource, unreachable: str) -> str:
    from .models.teachers.hub import HubUnreachable, ask_hub, fetch_model, verify
    from .models.teachers.local import local_source

    local, done = local_source(source), "there"
    if local.ready:
        size = verify(local)
    elif unreachable:
        raise HubUnreachable(unreachable)
    else:
        model = ask_hub(source)
        typer.echo(f"fetching {source}, {model.size / 1e9:.2f} GB, commit {model.commit}", err=True)
        local, done = fetch_model(source, model), "fetched"
        size = verify(local)
    return f"{done} and verified, {size / 1e9:.2f} GB, commit {local.commit}"


def _advice(source: WeightsSource, keys: Sequence[str], cause: str) -> str:
    from .models.teachers import TEACHERS

    sizes = [facts.gigabytes for facts in TEACHERS.values() if facts.hub == source.location and facts.gigabytes]
    size = f", about {sizes[0]} GB" if sizes else ""
    revision = f" --revision {source.revision}" if source.revision else ""
    name = source.location.rsplit("/", 1)[-1]
    fields = " and ".join(f"teachers.{key}.weights" for key in keys)
    return (
        f"missing{size}, and cannot be fetched here ({cause}). Where there is a network: "
        f"`hf download {source.location}{revision} --local-dir {name}`; bring the folder here and set {fields} to "
        f"dir:<path>/{name}"
    )
