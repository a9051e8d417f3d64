"""Folders of pictures go the whole road: extraction, clip store, training, evaluation, encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniego
import yaml
from PIL import Image
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore
from uniego.pipeline.rundir import Run


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten clips out of two folders of 60 pictures, the exo pictures lying on their side; one has a hole."""
    rng = np.random.default_rng(0)
    lines = ["clip_id,split,label,ego_path,exo_path,start_s,end_s"]
    for label in range(2):
        for view, rotation in (("ego", 0), ("exo", 90)):
            folder = tmp_path / f"{view}{label}"
            folder.mkdir()
            for number in range(1, 61):
                noise = rng.integers(0, 60, (48, 64, 3)) + np.array((120 * label, number * 2, 20))
                Image.fromarray(np.rot90(noise.astype(np.uint8), -rotation // 90)).save(folder / f"f_{number:05d}.jpg")
            said = {"folder": folder.name, "fps": 30, "rotation": rotation, "first": 1}
            (tmp_path / f"{view}{label}.frames").write_text(json.dumps(said))
        for part in range(5):
            name, split = f"c{label}{part}", "test" if part == 4 else "train"
            times = f"{0.4 * part:.1f},{0.4 * part + 0.4:.1f}"
            lines.append(f"{name},{split},{label},ego{label}.frames,exo{label}.frames,{times}")
    (tmp_path / "exo1/f_00055.jpg").unlink()  # within clip c14
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "run"
    good("init", folder, "--data", tmp_path / "clips.csv", "--preset", "tiny")
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_dino")}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def test_the_whole_road(run: Path) -> None:
    refused = call("extract-teachers", "--run", run)
    assert refused.exit_code == 3  # one clip in ten
    assert "frame 54 has no picture" in refused.output
    opened = Run.open(run)
    index = ClipIndex.open(opened.cache_root)
    store = FeatureStore.open(opened.cache_root / "ego_dino", index)
    assert "pictures" in store.fingerprint["decoder"]
    failures = (run / "extract/failures.csv").read_text()
    assert failures.count("\n") == 2
    assert "exo_dino,c14,truncated" in failures
    good("prepare-clips", "--run", run)
    stored = ["--set", "clips.source=store"]
    for stage in ("train-proxies", "distill", "evaluate"):
        good(stage, "--run", run, *stored)
    ego = run.parent / "ego1.frames"
    token = uniego.load(run).encode(ego, start_s=0.2, end_s=0.8)
    assert bool(torch.isfinite(token).all())
    changed = json.loads(ego.read_text()) | {"rotation": 180}
    ego.write_text(json.dumps(changed))
    assert not torch.equal(uniego.load(run).encode(ego, start_s=0.2, end_s=0.8), token)
    again = good("extract-teachers", "--run", run, "--teacher", "ego_dino")
    assert "5 of 10 clips" in again, again  # those of the folder that is read otherwise now


def test_training_reads_the_pictures_themselves(run: Path) -> None:
    good("extract-teachers", "--run", run, "--teacher", "ego_dino")
    good("train-proxies", "--run", run, "--teacher", "ego_dino")
