"""What the README shows works when typed: its table, its commands, its Python."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.clips import read_clip_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[list[str]]:
    """Every `uniego …` line of the README's shell blocks, without comments."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("uniego ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """The README's table with videos and skeletons behind it, and an ego.mp4."""
    path = tmp_path_factory.mktemp("readme")
    (table,) = blocks("csv")
    rows = table.splitlines()
    more = [rows[1 + i % 2].replace("s01_000", f"s01_9{i}") for i in range(8)]  # a step takes eight clips
    (path / "clips.csv").write_text("\n".join([*rows, *more]) + "\n", encoding="utf-8")
    for name in ("s01_ego", "s01_exo", "s02_ego"):
        make_video(path / "videos" / f"{name}.mp4", frames=180, fps=10)
    make_video(path / "ego.mp4", frames=70, fps=10)
    (path / "poses").mkdir()
    return path


def test_the_table_is_read(folder: Path) -> None:
    table = read_clip_table(folder / "clips.csv")
    assert table.classes == ("pick up", "put down")
    assert table.clips[2].exo_path is None


def test_commands_and_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in their order; only the preset is another one, since its weights are not at hand here.

    `extract-pose` is left out where its extra is not installed; tests/stages/test_extract_pose.py says so aloud.
    """
    rng = np.random.default_rng(0)
    skeleton = rng.uniform(1, 40, (1, 180, 17, 3)).astype(np.float32)
    skeleton[..., 2] = 1.0
    _write_pose_pickle(folder / "poses" / "s01.pkl", "s01_exo", skeleton)
    monkeypatch.chdir(folder)
    for command in commands():
        if command[0] == "extract-pose" and importlib.util.find_spec("ai_edge_litert") is None:
            continue
        arguments = ["tiny" if word == "egoexo_fitness" else word for word in command]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, f"uniego {' '.join(arguments)}\n{result.output}"
        if arguments[0] == "init":
            monkeypatch.chdir(folder / "my-run")
    (snippet,) = blocks("python")
    monkeypatch.chdir(folder)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _write_pose_pickle(path: Path, name: str, skeleton: np.ndarray) -> None:
    import pickle

    annotation = {
        "frame_dir": name,
        "total_frames": skeleton.shape[1],
        "img_shape": (48, 64),
        "label": 0,
        "keypoint": skeleton[..., :2].astype(np.float16),
        "keypoint_score": skeleton[..., 2].astype(np.float16),
    }
    path.write_bytes(pickle.dumps([annotation]))


def test_every_command_of_the_program_is_in_the_readme() -> None:
    names = {command.name or "" for command in cli.app.registered_commands}
    assert {name for name in names if name and f"uniego {name}" not in README} == set()


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
