"""The commands `uniego data build …`: a clip table out of what a data set publishes, or out of one's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UsageError

if TYPE_CHECKING:
    from .datasets.building import Build

RootOption = Annotated[
    Path, typer.Option("--root", metavar="DIR", exists=True, file_okay=False, help="The data set's folder.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The clip table to write, FILE.csv.")]
RelativeOption = Annotated[
    Path | None,
    typer.Option(
        "--relative-to", metavar="DIR", help="Write paths from this folder. Default: from the table's, or absolute."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
KeepOption = Annotated[
    bool, typer.Option("--keep-missing", help="Keep clips whose files are not on the disk. Default: skip them.")
]
SegmentationOption = Annotated[
    bool, typer.Option("--segmentation/--no-segmentation", help="Write per-frame ground truth beside the table.")
]
PairOption = Annotated[
    str, typer.Option("--pair", metavar="EGO=EXO", help="The exo video's name is the ego's with EGO replaced by EXO.")
]
RequireOption = Annotated[bool, typer.Option("--require-exo", help="Skip clips without an exo video.")]

app = typer.Typer(help="Make a clip table.", no_args_is_help=True, rich_markup_mode=None)


@app.command("egoexo-fitness")
def fitness(
    root: RootOption,
    out: OutOption,
    ego_views: Annotated[str, typer.Option("--ego-views", metavar="V,…", help="One clip per view.")] = "ego_m",
    exo_views: Annotated[
        str, typer.Option("--exo-views", metavar="V,…", help="The first that a record has.")
    ] = "exo_m,exo_l,exo_r",
    segments: Annotated[str, typer.Option(metavar="KIND", help="substep or action.")] = "substep",
    split: Annotated[str, typer.Option(metavar="MODE", help="official, record, actor or cvsv.")] = "official",
    test_share: Annotated[float, typer.Option(help="Of the clips, with --split record or actor.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Of the draw, with --split record or actor.")] = 0,
    cvsv: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of train_pairs_open.txt, with --split cvsv.")
    ] = None,
    poses: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Skeletons made by `uniego extract-pose`, for all clips.")
    ] = None,
    segmentation: SegmentationOption = True,
    relative_to: RelativeOption = None,
    keep_missing: KeepOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """EgoExo-Fitness: sub-steps or actions of 12 classes, out of frames_open and raw_annotations."""
    from .datasets import fitness as builder

    options = builder.Options(
        ego_views=_several("--ego-views", ego_views),
        exo_views=_several("--exo-views", exo_views),
        segments=_one_of("--segments", segments, ("substep", "action")),
        split=_one_of("--split", split, ("official", "record", "actor", "cvsv")),
        test_share=test_share,
        seed=seed,
        cvsv=cvsv,
        poses=None if poses is None else poses.absolute(),
        keep_missing=keep_missing,
        segmentation=segmentation,
    )
    _finish(builder.build(root, out, options), out, relative_to, overwrite)


@app.command("assembly101")
def assembly101(
    root: RootOption,
    out: OutOption,
    ego: Annotated[str, typer.Option(metavar="E", help="Ego view, e1 to e4.")] = "e4",
    exo: Annotated[str, typer.Option(metavar="V", help="Exo view, v1 to v8, or a camera such as C10118_rgb.")] = "v3",
    evaluate_on: Annotated[str, typer.Option(metavar="SPLIT", help="validation or test.")] = "validation",
    segmentation: SegmentationOption = True,
    relative_to: RelativeOption = None,
    keep_missing: KeepOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Assembly101: fine-grained segments of 24 verbs, out of recordings and fine-grained-annotations."""
    from .datasets import assembly101 as builder

    options = builder.Options(
        ego=_one_of("--ego", ego, tuple(builder.EGO_VIEWS)),
        exo=exo if exo in builder.EXO_VIEWS.values() else _one_of("--exo", exo, tuple(builder.EXO_VIEWS)),
        evaluate_on=_one_of("--evaluate-on", evaluate_on, ("validation", "test")),
        keep_missing=keep_missing,
        segmentation=segmentation,
    )
    _finish(builder.build(root, out, options), out, relative_to, overwrite)


@app.command("egoexo4d")
def egoexo4d(
    root: RootOption,
    out: OutOption,
    classes: Annotated[
        str, typer.Option(metavar="SET", help="keysteps (665), vocabulary, or benchmark (278).")
    ] = "keysteps",
    exo: Annotated[str, typer.Option(metavar="BY", help="Best camera of the take, or of the segment.")] = "take",
    resolution: Annotated[
        str, typer.Option(metavar="R", help="448, full, or auto: the smaller of what is there.")
    ] = "auto",
    relative_to: RelativeOption = None,
    keep_missing: KeepOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Ego-Exo4D: keysteps of Aria's RGB camera with the best exo camera, out of takes and annotations."""
    from .datasets import egoexo4d as builder

    options = builder.Options(
        classes=_one_of("--classes", classes, ("keysteps", "vocabulary", "benchmark")),
        exo=_one_of("--exo", exo, ("take", "segment")),
        resolution=_one_of("--resolution", resolution, ("auto", "448", "full")),
        keep_missing=keep_missing,
    )
    _finish(builder.build(root, out, options), out, relative_to, overwrite)


@app.command("folders")
def folders(
    root: RootOption,
    out: OutOption,
    pair: PairOption = "",
    require_exo: RequireOption = False,
    split: Annotated[str, typer.Option(metavar="S", help="Of all clips, where no folders are named so.")] = "train",
    relative_to: RelativeOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """A folder per class, or a folder per split (train, val, test) and in it a folder per class."""
    from .datasets.lists import from_folders

    default = _one_of("--split", split, ("train", "val", "test"))
    _finish(from_folders(root, _pairing(pair, require_exo), default), out, relative_to, overwrite)


@app.command("list")
def lists(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of train.csv, val.csv, test.csv.")],
    out: OutOption,
    prefix: Annotated[
        Path | None, typer.Option("--prefix", metavar="DIR", help="Where paths start. Default: DIR.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Between path and label. Default: comma, tab or space.")
    ] = None,
    pair: PairOption = "ego=exo",
    require_exo: RequireOption = False,
    relative_to: RelativeOption = None,
    keep_missing: KeepOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Lists of `path,label` without a header, one per split, as the published code reads them."""
    from .datasets.lists import from_lists, split_lists

    found = from_lists(
        split_lists(folder), prefix or folder, _pairing(pair, require_exo), separator or None, keep_missing
    )
    _finish(found, out, relative_to, overwrite)


@app.command("kinetics")
def kinetics(
    tables: Annotated[
        list[Path], typer.Argument(metavar="TABLE...", help="CSV of label,youtube_id,time_start,time_end,split.")
    ],
    videos: Annotated[Path, typer.Option("--videos", metavar="DIR", help="Where the videos lie.")],
    out: OutOption,
    pair: PairOption = "",
    require_exo: RequireOption = False,
    relative_to: RelativeOption = None,
    keep_missing: KeepOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Tables like those of Kinetics, one for all splits or one for each."""
    from .datasets.lists import from_kinetics

    found = from_kinetics(tables, videos, _pairing(pair, require_exo), keep_missing)
    _finish(found, out, relative_to, overwrite)


def _finish(found: Build, out: Path, relative_to: Path | None, overwrite: bool) -> None:
    """Say what was found and what was not, and write it."""
    from .datasets.building import write_build
    from .pipeline.clips import SPLITS

    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for counts, what in ((found.skipped, "skipped"), (found.notes, "note")):
        for reason, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if number:
                typer.echo(f"{what}: {number} x {reason}")
    written = write_build(found, out, root=relative_to, overwrite=overwrite)
    counts_of = {split: sum(row.split == split for row in found.rows) for split in SPLITS}
    text = ", ".join(f"{split} {number}" for split, number in counts_of.items())
    used = len({row.label for row in found.rows})
    exo = sum(row.exo is not None for row in found.rows)
    typer.echo(
        f"wrote {len(found.rows)} clips ({text}) of {used} classes, {exo} with exo video, to {out}"
        f"{f' and {len(written) - 1} files beside it' if len(written) > 1 else ''}"
    )
    typer.echo(f"skipped {sum(found.skipped.values())} in all; next: uniego data check {out}")


def _one_of(option: str, value: str, choices: Sequence[str]) -> Any:
    from .cli_data import did_you_mean

    if value not in choices:
        raise UsageError(f"{option} {value!r}: there are {', '.join(choices)}{did_you_mean(value, choices)}")
    return value


def _several(option: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(f"{option}: name at least one view")
    return names


def _pairing(text: str, required: bool) -> Any:
    from .datasets.lists import Pairing

    ego, _, exo = text.partition("=")
    if bool(ego) != bool(exo) or ego == exo != "":
        raise UsageError(f"--pair {text!r}: write EGO=EXO, two different texts, such as _ego=_exo")
    if required and not ego:
        raise UsageError("--require-exo needs --pair EGO=EXO")
    return Pairing(ego, exo, required)
