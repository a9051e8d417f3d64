"""Runs in small shards, what they store when one process computes them, and the program as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli

HERE = Path(__file__).parent
REAL = ("ego_dino", "exo_rgb", "exo_skl")


def _make(folder: Path, table: Path, teachers: dict[str, Any] | None, rows_per_shard: int) -> Path:
    result = CliRunner().invoke(cli.app, ["init", str(folder), "--data", str(table), "--preset", "tiny"])
    assert result.exit_code == 0, result.output
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = teachers or {key: raw["teachers"][key] for key in REAL}
    raw["cache"]["rows_per_shard"] = rows_per_shard
    raw["compute"] |= {"threads": 1, "workers": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def chunks() -> Callable[[Path], dict[str, bytes]]:
    """Every chunk file of a run's cache: features, and the states of rows."""

    def read(run: Path) -> dict[str, bytes]:
        return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "cache").rglob("c.*"))}

    return read


@pytest.fixture(scope="session")
def tasks() -> Callable[[Path], set[str]]:
    """Names of the tasks that wrote to a run's cache."""
    return lambda run: {path.stem for path in (run / "cache").glob("*/ledger/*.jsonl")}


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    """Twelve clips in six shards, three networks; nothing is extracted."""
    return _make(tmp_path / "run", clip_table, None, 2)


@pytest.fixture(scope="session")
def stored(
    tmp_path_factory: pytest.TempPathFactory, clip_table: Path, chunks: Callable[[Path], dict[str, bytes]]
) -> dict[str, bytes]:
    """What one undisturbed process stores of that run."""
    folder = _make(tmp_path_factory.mktemp("alone") / "run", clip_table, None, 2)
    result = CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(folder)])
    assert result.exit_code == 0, result.output
    return chunks(folder)


@pytest.fixture(scope="session")
def black(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of black frames."""
    path = tmp_path_factory.mktemp("black") / "black.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def colours(tmp_path: Path, clip_table: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`colours(name, times=1, bad=None)`: a run of the table's clips, `times` times, in shards of two, through the
    teacher of colours.py; the clip at place `bad` shows the video given as `black`. Nothing is extracted."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.syspath_prepend(str(HERE))

    def make(name: str, times: int = 1, bad: int | None = None, black: Path | None = None) -> Path:
        head, *lines = clip_table.read_text(encoding="utf-8").splitlines()
        if bad is not None:
            cells = lines[bad].split(",")
            cells[3] = str(black)
            lines[bad] = ",".join(cells)
        table = clip_table.with_name(f"{tmp_path.name}-{name}.csv")
        rows = [f"r{turn:02d}{line}" for turn in range(times) for line in lines]
        table.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        teacher = {"network": "colours:ColourTeacher"}
        return _make(tmp_path / name, table, {"ego_colour": teacher}, 2)

    return make


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start("extract-teachers", "--run", run, NAME="value")`: the program in a session of its own.

    Standard error comes with standard output. Nothing of it outlives the test.
    """
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "uniego", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **environment},
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        family = [process.pid, *(child.pid for child in children(process.pid))]
        for pid in family if process.poll() is None else ():
            kill(pid)
        process.communicate()


def children(pid: int) -> list[psutil.Process]:
    """All processes that come from one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(pid: int) -> None:
    """SIGKILL, if it is there."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).kill()


@pytest.fixture(scope="session")
def family() -> Callable[[int], list[psutil.Process]]:
    """All processes that come from one."""
    return children


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(condition, seconds=60)`: wait for it, or fail."""

    def wait(condition: Callable[[], Any], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], int]:
    """How many shards a run's ledgers name."""

    def count(run: Path) -> int:
        return sum(path.read_bytes().count(b"\n") for path in (run / "cache").glob("*/ledger/*.jsonl"))

    return count
