"""Commands for those who use a trained encoder: embeddings of videos, networks for others, released checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_data import JsonOption, RunOption, SetOption, open_run, print_json

ModelOption = Annotated[
    str,
    typer.Option("--model", metavar="RUN|DIR|hub:ID", help="A run, an exported folder, or an encoder on the hub."),
]

checkpoint_app = typer.Typer(help="Released .pyth checkpoints.", no_args_is_help=True, rich_markup_mode=None)


def encode(
    source: Annotated[Path, typer.Argument(metavar="VIDEO|DIR|TABLE", help="A video, a folder of them, a clip table.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="NAME.parquet, NAME.npy or NAME.zarr; with --dense a folder.")
    ],
    model: ModelOption = ".",
    every: Annotated[
        float | None, typer.Option("--every", metavar="S", help="Cut videos into clips of S seconds.")
    ] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Features of whole videos, by a window that slides.")] = False,
    window: Annotated[float | None, typer.Option("--window", metavar="S", help="With --dense: its length.")] = None,
    step: Annotated[float | None, typer.Option("--step", metavar="S", help="With --dense: how far it slides.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="Where the relative paths of a table start.")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Also class scores and the predicted class.")] = False,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Clips at once.")] = 8,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes that decode.")] = 2,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="Arithmetic of the network.")
    ] = "fp32",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Threads on a CPU. Default: all cores.")
    ] = None,
    min_coverage: Annotated[
        float,
        typer.Option("--min-coverage", metavar="SHARE", min=0.0, max=1.0, help="Exit with 3 if fewer are encoded."),
    ] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make the output anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Embeddings of videos, for those who want features only.

    Clips that cannot be decoded are listed in PATH.failures.csv. The same command continues; see docs/encoder.md."""
    from .errors import UsageError
    from .stages.encode import EncodeOptions
    from .stages.encode import encode as stage
    from .stages.video_list import VideoList

    options = EncodeOptions(logits, device, precision, batch, workers, threads, min_coverage, overwrite)
    videos = VideoList(source, every, root)
    if dense:
        from .pipeline.sliding import Sliding
        from .stages.encode_dense import encode_dense

        if window is None or step is None:
            raise UsageError(
                "--dense needs --window and --step, in seconds: a window as long as the clips that the encoder has "
                "learned from, a step per feature"
            )
        record = encode_dense(videos, out, model, Sliding(window, step), options)
    elif window is not None or step is not None:
        raise UsageError("--window and --step belong to --dense; to cut videos into clips there is --every")
    else:
        record = stage(videos, out, model, options)
    if as_json:
        print_json(record)


def export(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make; empty, or not there yet.")],
    run: RunOption = Path(),
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="student, or proxy:KEY for the proxy of a teacher.")
    ] = "student",
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx, compared with the network.")] = False,
    overrides: SetOption = None,
) -> None:
    """A trained network as a folder for others.

    config.json, model.safetensors and a model card, as the Hugging Face hub has them."""
    opened = open_run(run, overrides)
    from .stages.model_export import export_model

    export_model(opened, out, model=model, onnx=onnx)


@checkpoint_app.command("import")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The released checkpoint, FILE.pyth.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make; empty, or not there yet.")],
    heads: Annotated[
        int | None,
        typer.Option("--heads", metavar="N", min=1, help="Attention heads, which no shape tells. Default: width / 64."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Names of the classes: JSON list, or a line each.")
    ] = None,
    policy: Annotated[
        Literal["window", "fit"], typer.Option("--policy", help="How frames are taken; window is the released code's.")
    ] = "window",
    views: Annotated[int, typer.Option("--views", metavar="N", min=1, help="Temporal views per clip.")] = 1,
    crops: Annotated[int, typer.Option("--crops", metavar="N", help="Crops per view: 1 or 3.")] = 3,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="DIR|FILE", help="A network whose names and shapes it must have."),
    ] = None,
) -> None:
    """Make a released checkpoint a folder that `uniego encode --model` takes.

    Strict: entries that are missing, unknown or of another shape are named, and nothing is written."""
    from .errors import UsageError
    from .stages.checkpoint_files import import_checkpoint as stage

    if crops not in (1, 3):
        raise UsageError(f"--crops {crops}: there are 1 and 3")
    stage(file, out, heads=heads, classes=classes, policy=policy, views=views, crops=crops, like=like)


@checkpoint_app.command("export")
def export_checkpoint(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="An exported or imported folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write, FILE.pyth.")],
) -> None:
    """Write a network in the layout of released checkpoints."""
    from .stages.checkpoint_files import export_checkpoint as stage

    stage(model, out)
