"""A run in small shards, what it stores when one process computes it, and the program as a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli

Start = Callable[..., "subprocess.Popen[str]"]


def chunks(run: Path) -> dict[str, bytes]:
    """Every chunk file of the features and of the rows' states."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "cache").rglob("c.*"))}


def make_run(folder: Path, table: Path, rows_per_shard: int = 2) -> Path:
    """A run with a frame teacher of each view and a skeleton teacher, in small shards, one thread."""
    assert CliRunner().invoke(cli.app, ["init", str(folder), "--data", str(table), "--preset", "tiny"]).exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_rgb", "exo_skl")}
    raw["cache"]["rows_per_shard"] = rows_per_shard
    raw["compute"] |= {"threads": 1, "workers": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    """Twelve clips in six shards; nothing is extracted."""
    return make_run(tmp_path / "run", clip_table)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> dict[str, bytes]:
    """What one undisturbed process stores of that run."""
    folder = make_run(tmp_path_factory.mktemp("alone") / "run", clip_table)
    assert CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(folder)]).exit_code == 0
    return chunks(folder)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> tuple[Path, dict[str, bytes]]:
    """A table of 300 clips (25 times the twelve, under other names) and what one process stores of it."""
    head, *lines = clip_table.read_text(encoding="utf-8").splitlines()
    folder = tmp_path_factory.mktemp("many")
    table = clip_table.with_name("many.csv")
    table.write_text("\n".join([head, *(f"r{n:02d}{line}" for n in range(25) for line in lines)]) + "\n")
    made = make_run(folder / "run", table, 4)
    assert CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(made)]).exit_code == 0
    shutil.rmtree(made / "extract")
    return table, chunks(made)


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("extract-teachers", "--run", …)`: the program in a session of its own; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "uniego", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate()
