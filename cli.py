"""The command line: each command parses, calls one function, and its errors become exit codes.

Torch and the stages are imported inside the commands, so that `uniego --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import (
    __version__,
    cli_ablate,
    cli_analyze,
    cli_cache,
    cli_clips,
    cli_data,
    cli_encode,
    cli_evaluate,
    cli_extract,
    cli_pose,
    cli_proxies,
    cli_release,
    cli_report,
    cli_submit,
    cli_teachers,
    cli_verify,
)
from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json
from .cli_extract import OverwriteOption, StrictOption
from .errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, EXIT_USAGE, Stopped, UniegoError, UsageError


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that is told in one message; None for one that deserves a traceback."""
    if isinstance(error, UniegoError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, OSError):
        return EXIT_FAILURE
    pydantic = sys.modules.get("pydantic_core")
    return EXIT_USAGE if pydantic is not None and isinstance(error, pydantic.ValidationError) else None


class _Commands(TyperGroup):
    """The group of commands; tells errors on standard error and exits with their code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _silence_stdout()
            raise typer.Exit(EXIT_FAILURE) from None
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code(error)
            if code is None:
                raise
            if isinstance(error, Stopped):
                code = _stop(error)
            else:
                _tell(error)
            raise typer.Exit(code) from None


def _tell(error: BaseException) -> None:
    if os.environ.get("UNIEGO_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        typer.echo("interrupted; the same command continues", err=True)
    else:
        typer.echo(f"error: {_rank()}{error}", err=True)


def _rank() -> str:
    """Who speaks, of processes that torchrun started."""
    from .pipeline.launch import place

    here = place()
    return f"rank {here.rank}: " if here.world > 1 else ""


def _stop(error: Stopped) -> int:
    """A stage stopped on a signal: 75; in a Slurm job that could be put back in the queue, 0.

    With --overwrite the job would begin anew every time: it is left to the user."""
    from .pipeline.slurm import requeue

    anew = "--overwrite" in sys.argv
    typer.echo(f"stopped: {_rank()}{error}{' (without --overwrite)' if anew else ''}", err=True)
    job = None if anew else requeue()
    if job is not None:
        typer.echo(f"Slurm job {job} is back in the queue and will continue", err=True)
    return EXIT_STOPPED if job is None else EXIT_OK


def _silence_stdout() -> None:
    """Nobody reads any more: what is left to flush goes nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = None


app = typer.Typer(
    cls=_Commands,
    help="Distil nine frozen ego-exo teachers into one encoder that needs the ego video alone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="The configuration of a run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(cli_analyze.app, name="analyze")
app.add_typer(cli_cache.app, name="cache")
app.add_typer(cli_encode.checkpoint_app, name="checkpoint")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_release.app, name="release")
app.add_typer(cli_teachers.app, name="teachers")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"uniego {__version__}")
        raise typer.Exit()


VersionOption = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
]


@app.callback()
def _root(version: VersionOption = False) -> None:
    """Distil nine frozen ego-exo teachers into one encoder that needs the ego video alone."""


STAGES = {
    "extract-pose",
    "train-teacher",
    "extract-teachers",
    "prepare-clips",
    "train-proxies",
    "distill",
    "evaluate",
    "ablate",
    "analyze",
    "encode",
    "release",
    "demo",
}


def _stop_before_start() -> None:
    """Until a stage listens to stop signals itself, one ends the process at once: nothing has been begun."""

    def end(*_: object) -> None:
        from .pipeline.slurm import stopped_exit_code

        os._exit(stopped_exit_code())

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, end)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new run.")],
    data: Annotated[Path, typer.Option("--data", metavar="TABLE", help="Clip table, CSV or Parquet.")],
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="egoexo_fitness, assembly101, egoexo4d or tiny; NAME-release computes as the released code does.",
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", help="Where relative paths start. Default: the table's folder."),
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Make a run from a clip table.

    Writes DIR/run.yaml with every field documented."""
    cli_data.make_run(directory, data, preset, root, overrides or ())


@app.command("extract-pose")
def extract_pose(
    out: cli_pose.OutOption,
    videos: cli_pose.VideosArgument = None,
    data: cli_pose.DataOption = None,
    root: cli_pose.RootOption = None,
    run: cli_pose.RunOption = None,
    overlay: cli_pose.OverlayOption = None,
    weights: cli_pose.WeightsOption = None,
) -> None:
    """Skeletons out of exo videos.

    BlazePose follows one person through each; what to install is in docs/poses.md."""
    cli_pose.extract_pose(videos or (), data, root, run, out, overlay, weights)


@app.command("train-teacher")
def train_teacher(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The teacher: exo_rgb, exo_skl or one of that kind.")],
    run: RunOption = Path(),
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a teacher on the data set's labels.

    For exo_rgb (video) and exo_skl (skeletons), whose weights nobody publishes."""
    opened = open_run(run, overrides, [key])
    from .stages.train_teacher import train_teacher as stage

    stage(opened, key, overwrite=overwrite)


app.command("extract-teachers")(cli_extract.extract_teachers)


app.command("prepare-clips")(cli_clips.prepare_clips)


app.command("train-proxies")(cli_proxies.train_proxies)


@app.command()
def distill(
    run: RunOption = Path(),
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="spd, naive, all-proxies, random, best-proxy or ce; others than spd are for comparison.",
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--init", metavar="NAME", help="merged, average, imagenet or proxy:KEY.")
    ] = None,
    overrides: SetOption = None,
    overwrite: OverwriteOption = False,
    strict: StrictOption = False,
) -> None:
    """Stage 3: merge the proxies, train the student.

    The student learns by Selective Proxy Distillation, from the merged proxies. Students of another --method or --init
    are trained beside it, in distill/variants (docs/distill.md)."""
    chosen = [f"distill.{name}={value}" for name, value in (("method", method), ("init", start)) if value is not None]
    opened = open_run(run, [*(overrides or ()), *chosen])
    from .stages.distill import distill as stage

    stage(opened, overwrite=overwrite, strict=strict)


app.command("evaluate")(cli_evaluate.evaluate)
app.command("ablate")(cli_ablate.ablate)


app.command("encode")(cli_encode.encode)
app.command("export")(cli_encode.export)


@app.command()
def status(
    run: RunOption = Path(),
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", metavar="S", min=0.1, help="With --watch: seconds between.")] = 3.0,
    overrides: SetOption = None,
) -> None:
    """What is done, running, stale or failed."""
    opened = open_run(run, overrides)
    if watch:
        if as_json:
            raise UsageError("--watch is for people: --json prints one report")
        from .stages.watch import watch as view

        raise typer.Exit(view(opened, every))
    from .stages.status import print_status
    from .stages.status import status as stage

    report = stage(opened)
    if as_json:
        print_json(report)
    else:
        print_status(report)


app.command("report")(cli_report.report)
app.command("verify")(cli_verify.verify)
app.command("submit", context_settings={"allow_extra_args": True})(cli_submit.submit)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where everything goes.")] = Path("uniego-demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed is another data set.")] = 0,
    clips: Annotated[int, typer.Option("--clips", min=24, help="Clips, eight to a person.")] = 240,
    size: Annotated[int, typer.Option("--size", min=64, help="Side of the videos, pixels.")] = 96,
    data_only: Annotated[bool, typer.Option("--data-only", help="Stop after the data and the picture sheet.")] = False,
) -> None:
    """The whole road on a rendered ego-exo world, in minutes.

    Writes DIR/data, DIR/sheet.png and one run, DIR/run, and compares the distilled student with ego-only training."""
    from .demo.journey import demo as journey

    journey(out, seed=seed, clips=clips, size=size, data_only=data_only)


@config_app.callback()
def _config() -> None:
    """Keeps `config` a group although it has one command."""


@config_app.command("show")
def config_show(run: RunOption = Path(), overrides: SetOption = None) -> None:
    """Print the configuration in force."""
    from .pipeline.configfile import dump_config

    typer.echo(dump_config(open_run(run, overrides).config), nl=False)


def main() -> None:
    """Entry point of the console script and of `python -m uniego`."""
    if STAGES & set(sys.argv[1:2]):
        _stop_before_start()
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # odd file names, terminals without Unicode
    try:
        app(prog_name="uniego")
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
