"""Fault 2 in extraction: a stop signal to the whole process group, decoders and workers included; and kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli

pytestmark = pytest.mark.fault


def finish(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(run)])
    assert result.exit_code == 0, result.output


@pytest.fixture
def undisturbed(colours: Callable[..., Path], chunks: Any) -> dict[str, bytes]:
    """What one undisturbed process stores of `colours(…, times=2)`."""
    run = colours("undisturbed", times=2)
    finish(run)
    return chunks(run)


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        (["--set", "compute.workers=2"], signal.SIGUSR2),
        (["--workers", 2, "--set", "compute.workers=2"], signal.SIGTERM),
        pytest.param(["--engine", "dask", "--workers", 2], signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_fault_02_a_stop_signal_to_the_group_drops_the_shard_and_exits_75(
    engine: list[Any],
    number: int,
    colours: Callable[..., Path],
    undisturbed: dict[str, bytes],
    start: Any,
    until: Any,
    lines: Any,
    chunks: Any,
    family: Any,
) -> None:
    run = colours("run", times=2)
    process = start("extract-teachers", "--run", run, *engine, UNIEGO_TEST_SECONDS="0.4")
    until(lambda: lines(run) >= 2 or process.poll() is not None)
    others = family(process.pid)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert f"stopped on {signal.Signals(number).name}; run the same command again" in out
    until(lambda: not any(other.is_running() for other in others), 20)
    half = chunks(run)
    assert 0 < len(half) < len(undisturbed)
    assert half.items() <= undisturbed.items()
    finish(run)
    assert chunks(run) == undisturbed


def test_a_process_that_is_killed_stops_the_others_and_says_how(
    colours: Callable[..., Path],
    undisturbed: dict[str, bytes],
    start: Any,
    until: Any,
    lines: Any,
    chunks: Any,
    family: Any,
) -> None:
    run = colours("run", times=2)
    process = start("extract-teachers", "--run", run, "--workers", 2, UNIEGO_TEST_SECONDS="0.4")
    until(lambda: lines(run) >= 2)
    worker = next(child for child in family(process.pid) if "spawn_main" in " ".join(child.cmdline()))
    worker.kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, out
    assert "was killed by SIGKILL; what it had finished is kept" in out
    finish(run)
    assert chunks(run) == undisturbed


def test_workers_end_when_the_process_that_started_them_is_killed(
    colours: Callable[..., Path], start: Any, until: Any, lines: Any, family: Any
) -> None:
    run = colours("run", times=2)
    process = start("extract-teachers", "--run", run, "--workers", 2, UNIEGO_TEST_SECONDS="0.4")
    until(lambda: lines(run) >= 2)
    others = family(process.pid)
    process.kill()
    until(lambda: not any(other.is_running() for other in others), 20)
