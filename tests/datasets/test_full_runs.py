"""From each data set's published layout to a measured student: its preset, scaled down, through all stages."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline import yamltext
from uniego.pipeline.presets import preset

STAGES = ("extract-teachers", "train-proxies", "distill", "evaluate")
SMALL = (  # docs/datasets.md has the same
    "student={image_size: 32, patch_size: 8, num_frames: 4, width: 48, depth: 2, heads: 4}",
    "augment.short_side=[36, 44]",
    "evaluate.single_short_side=36",
    "evaluate.resamples=0",
    "proxies.train={epochs: 1, global_batch: 2, micro_batch: 2}",
    "distill.train={epochs: 2, global_batch: 2, micro_batch: 2}",
    "merge.epochs=1",
    "compute={device: cpu, threads: 1, workers: 0}",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "builder", "recipe"),
    [
        ("fitness", "egoexo-fitness", "egoexo_fitness"),
        ("assembly101", "assembly101", "assembly101"),
        ("egoexo4d", "egoexo4d", "egoexo4d-release"),
    ],
)
def test_from_download_to_metrics(
    fixture: str, builder: str, recipe: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    began = time.monotonic()
    table, run = tmp_path / "clips.csv", tmp_path / "run"
    root = request.getfixturevalue(fixture)
    if fixture == "egoexo4d":
        follow_the_body(root / "annotations/ego_pose/train/body/automatic/uid-a.json")
    good("data", "build", builder, "--root", root, "--out", table)
    teachers = yamltext.scalar(random_teachers(recipe))
    sets = [word for value in (*SMALL, f"teachers={teachers}") for word in ("--set", value)]
    told = good("init", run, "--data", table, "--preset", recipe, *sets)
    assert "published with this recipe" in told
    assert "GPU-hours" in told
    for stage in STAGES:
        good(stage, "-r", run)
    assert json.loads((run / "evaluate/student/results.json").read_text(encoding="utf-8"))
    with (run / "evaluate/student/recognition/per_class.csv").open(newline="", encoding="utf-8") as stream:
        names = [row["class"] for row in csv.DictReader(stream)]
    with (tmp_path / "clips.csv").open(newline="", encoding="utf-8") as stream:
        known = {row["class_name"] for row in csv.DictReader(stream)}
    assert known <= set(names)  # classes by name, not by number
    assert time.monotonic() - began < 60


def random_teachers(recipe: str) -> dict[str, dict[str, Any]]:
    """The small untrained nine, which read the skeletons that the recipe's teachers read."""
    small, own = preset("tiny").teachers, preset(recipe).teachers
    return {
        key: {**one.model_dump(), **{name: getattr(own[key], name) for name in ("edges", "pose_dims", "crop")}}
        for key, one in small.items()
    }


def follow_the_body(path: Path) -> None:
    """The one annotated frame's joints in all of the video's."""
    (frame,) = json.loads(path.read_text(encoding="utf-8")).values()
    path.write_text(json.dumps({str(number): frame for number in range(60)}), encoding="utf-8")


def good(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return str(result.output)
