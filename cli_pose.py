"""The command `extract-pose`: which videos are meant, and where their skeletons go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError

VideosArgument = Annotated[list[Path] | None, typer.Argument(metavar="[VIDEO]...", help="Single videos.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="TABLE", help="All exo videos of a clip table, CSV or Parquet.")
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="With --data: where relative paths start. Default: its folder."),
]
RunOption = Annotated[Path | None, typer.Option("-r", "--run", metavar="DIR", help="All exo videos of a run's table.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The PYSKL pickle to write, FILE.pkl.")]
OverlayOption = Annotated[
    Path | None, typer.Option("--overlay", metavar="DIR", help="Draw the skeleton into some frames, as PNG files.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="DIR", help="Folder of the two networks. Default: the mediapipe package."),
]


def extract_pose(
    videos: Sequence[Path],
    data: Path | None,
    root: Path | None,
    run: Path | None,
    out: Path,
    overlay: Path | None,
    weights: Path | None,
) -> None:
    """Carry out `uniego extract-pose`. Raises `UsageError` unless videos are named in exactly one way."""
    if sum((bool(videos), data is not None, run is not None)) != 1:
        raise UsageError("name the videos in one way: VIDEO..., --data TABLE, or --run DIR")
    if root is not None and data is None:
        raise UsageError("--root belongs to --data")
    from .stages.extract_pose import exo_videos
    from .stages.extract_pose import extract_pose as stage

    backend = "pyav"
    if data is not None:
        from .pipeline.clips import read_clip_table

        videos = exo_videos(read_clip_table(data, root=root))
    elif run is not None:
        from .pipeline.rundir import Run

        opened = Run.open(run)
        videos, backend = exo_videos(opened.table()), opened.config.video.backend
    stage(list(dict.fromkeys(videos)), out, overlay=overlay, weights=weights, backend=backend)
