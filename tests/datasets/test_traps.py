"""Traps that the data sets' own modules do not test; and whether the table of all of them (README.md) is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from uniego.errors import TableError
from uniego.pipeline.clips import read_clip_table
from uniego.pipeline.config import DataConfig
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.pipeline.video import open_video

HERE = Path(__file__).parent
Call = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, str]]]


def test_every_trap_has_its_test() -> None:
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", (HERE / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for module, test in named:
        assert f"def {test}(" in (HERE / f"{module}.py").read_text(encoding="utf-8"), f"{module}.{test}"


def test_monochrome_ego_video_has_three_channels(assembly101: Path, tmp_path: Path, call: Call) -> None:
    for path in assembly101.glob("recordings/*/HMC_*.mp4"):
        write_gray(path)
    out = tmp_path / "clips.csv"
    result = call("build", "assembly101", "--root", assembly101, "--out", out)
    assert result.exit_code == 0, result.output
    with open_video(read_clip_table(out).clips[0].ego_path) as video:
        (frame,) = video.frames([5])
    assert frame.shape == (48, 64, 3)
    assert np.ptp(np.asarray(frame), axis=-1).max() == 0


def write_gray(path: Path) -> None:
    """A monochrome video of 120 frames at 60 per second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=60)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for number in range(120):
            picture = np.full((48, 64), number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode())


def test_pseudo_cameras_are_never_the_exo_view(egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    folder = "takes/sfu_cooking_003_5/frame_aligned_videos"  # nothing says which camera is best: the first by name
    collage = egoexo4d / folder / "downscaled/448/collage.mp4"
    collage.write_bytes((egoexo4d / folder / "downscaled/448/cam01.mp4").read_bytes())
    result = call("build", "egoexo4d", "--root", egoexo4d, "--out", tmp_path / "clips.csv")
    assert result.exit_code == 0, result.output
    assert {Path(row["exo_path"]).stem for row in rows(tmp_path / "clips.csv")} == {"cam01", "cam02"}


def test_classes_have_names_and_a_run_made_before_they_had_goes_on(
    assembly101: Path, tmp_path: Path, call: Call
) -> None:
    assert call("build", "assembly101", "--root", assembly101, "--out", tmp_path / "clips.csv").exit_code == 0
    config = preset("assembly101")
    Run.create(tmp_path, config.model_copy(update={"data": DataConfig(table="clips.csv", num_classes=24)}))
    stored = json.loads((tmp_path / "classes.json").read_text(encoding="utf-8"))
    assert (len(stored), stored[4], stored[18], stored[23]) == (24, "unscrew", "clap", "23")
    (tmp_path / "classes.json").write_text(json.dumps([str(label) for label in range(24)]), encoding="utf-8")
    assert Run.open(tmp_path).table().classes[18] == "clap"
    (tmp_path / "classes.json").write_text(json.dumps(["other", *stored[1:]]), encoding="utf-8")
    with pytest.raises(TableError, match="other classes than this run"):
        Run.open(tmp_path).table()
