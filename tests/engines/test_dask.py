"""Fault 24: workers of a Dask cluster are killed, its scheduler restarts, a shard kills every worker that takes it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli

pytestmark = pytest.mark.fault
SLOW = {"UNIEGO_TEST_SECONDS": "0.2"}


def finish(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(run)])
    assert result.exit_code == 0, result.output


def dask_workers(processes: list[Any]) -> list[Any]:
    """Worker processes among these; the program's own tracker of resources is none."""
    return [p for p in processes if p.is_running() and "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.slow
def test_killed_workers_lose_nothing(
    colours: Callable[..., Path], start: Any, until: Any, lines: Any, chunks: Any, family: Any, full: bool
) -> None:
    run, twin = colours("run", times=4), colours("twin", times=4)
    finish(twin)
    process = start(
        "extract-teachers", "--run", run, "--engine", "dask", "--workers", 2, **SLOW,
        DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="20",
    )  # fmt: skip
    for kill in range(6 if full else 2):
        until(lambda seen=3 * kill: lines(run) > seen)
        dask_workers(family(process.pid))[0].kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert chunks(run) == chunks(twin)


@pytest.fixture
def cluster() -> Iterator[Callable[[int], tuple[str, list[subprocess.Popen[bytes]]]]]:
    """`cluster(port)`: a scheduler and one worker as an operator starts them: (address, processes)."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(port: int) -> tuple[str, list[subprocess.Popen[bytes]]]:
        address = f"tcp://127.0.0.1:{port}"
        program = [sys.executable, "-m", "distributed.cli"]
        commands = [
            [f"{program[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
            [f"{program[2]}.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"],
        ]
        environment = {**os.environ, **SLOW}
        made = [
            subprocess.Popen(
                [*program[:2], *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for command in commands
        ]
        begun.extend(made)
        return address, made

    yield begin
    end(begun)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill them and what they started."""
    import psutil

    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_scheduler_that_is_restarted(
    colours: Callable[..., Path], cluster: Any, start: Any, until: Any, lines: Any, chunks: Any, tasks: Any
) -> None:
    run, twin = colours("run", times=4), colours("twin", times=4)
    finish(twin)
    port = free_port()
    address, made = cluster(port)
    process = start("extract-teachers", "--run", run, "--engine", "dask", "--scheduler", address)
    until(lambda: lines(run) >= 3 or process.poll() is not None)
    end(made)
    time.sleep(2)
    assert process.poll() is None, process.communicate()[0]
    cluster(port)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "no connection to the Dask scheduler; trying again" in out
    assert chunks(run) == chunks(twin)
    assert all(name.startswith("dask-tcp-127-0-0-1-") for name in tasks(run))


@pytest.mark.slow
def test_a_scheduler_that_stays_away_stops_the_work_in_words(
    colours: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniego.stages.engines import cluster as module

    monkeypatch.setattr(module, "_PATIENCE", 1.0)
    run = colours("run")
    arguments = ["extract-teachers", "--run", str(run), "--engine", "dask"]
    result = CliRunner().invoke(cli.app, [*arguments, "--scheduler", f"tcp://127.0.0.1:{free_port()}"])
    assert result.exit_code == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:" in result.output
    assert "the same command continues when it is back" in result.output


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_named_and_all_others_are_done(
    colours: Callable[..., Path], black: Path, start: Any, tmp_path: Path, chunks: Any
) -> None:
    run = colours("run", times=2, bad=2, black=black)
    process = start(
        "extract-teachers", "--run", run, "--engine", "dask", "--workers", 1,
        UNIEGO_TEST_DEADLY="1", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
    )  # fmt: skip
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1, out
    assert "2 shards killed every worker that tried, all others are done:" in out
    assert "shard 1 (ego_colour): clips r00clip02, r00clip03" in out
    assert len({name for name in chunks(run) if "/features/" in name}) == 10
    (tmp_path / "cure").touch()
    process = start("extract-teachers", "--run", run, UNIEGO_TEST_CURE=str(tmp_path / "cure"))
    assert process.wait(timeout=60) == 0
