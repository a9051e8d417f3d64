"""Whoever computes the shards, and in whatever order, the cache holds the same bytes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import UsageError
from uniego.pipeline.rundir import Run
from uniego.stages.extract_options import ExtractOptions, Share


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_two_processes(run: Path, stored: dict[str, bytes], start: Any, chunks: Any, tasks: Any) -> None:
    process = start("extract-teachers", "--run", run, "--workers", 2)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert tasks(run) == {"local-0", "local-1"}
    assert chunks(run) == stored


def test_three_tasks_started_at_once_on_an_empty_cache(
    run: Path, stored: dict[str, bytes], start: Any, chunks: Any, tasks: Any
) -> None:
    """Nobody has planned yet: one does, the others wait and see the same plan."""
    processes = [start("extract-teachers", "--run", run, "--task-index", i, "--num-tasks", 3) for i in range(3)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert tasks(run) == {f"task-{i}-of-3" for i in range(3)}
    assert chunks(run) == stored
    assert sum("next: uniego train-proxies" in text for text in said) >= 1  # whoever ended last
    assert "nothing to do" in call("extract-teachers", "--run", run).output


def test_a_dask_cluster(run: Path, stored: dict[str, bytes], start: Any, chunks: Any, tasks: Any) -> None:
    process = start("extract-teachers", "--run", run, "--engine", "dask", "--workers", 2)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert "dashboard at http://" in out
    assert tasks(run) <= {"dask-0", "dask-1"}
    assert chunks(run) == stored


def test_a_share_is_the_same_whenever_a_task_starts(run: Path, stored: dict[str, bytes], chunks: Any) -> None:
    result = call("extract-teachers", "--run", run, "--task-index", 1, "--num-tasks", 4)
    assert result.exit_code == 0, result.output
    assert "this task's share is done, 4 shards of others are left" in result.output
    assert {name.rsplit("c.", 1)[1].split(".")[0] for name in chunks(run)} == {"1", "5"}
    entry = json.loads(call("status", "--run", run, "--json").stdout)["stages"]["extract-teachers"]["ego_dino"]
    assert (entry["state"], entry["done"], entry["pending"]) == ("partial", 4, 8)
    assert "nothing to do" in call("extract-teachers", "--run", run, "--task-index", 1, "--num-tasks", 4).output
    assert call("extract-teachers", "--run", run).exit_code == 0
    assert chunks(run) == stored


def test_the_exit_code_speaks_for_the_share(colours: Callable[..., Path], black: Path) -> None:
    run = colours("run", bad=0, black=black)
    codes = [call("extract-teachers", "--run", run, "--task-index", i, "--num-tasks", 6).exit_code for i in range(6)]
    assert codes == [3, 0, 0, 0, 0, 0]
    listed = (run / "extract" / "failures.csv").read_text(encoding="utf-8")
    assert listed.splitlines()[0] == "teacher,clip_id,reason,message"
    assert listed.splitlines()[1].startswith("ego_colour,r00clip00,non_finite,")


def test_shares_of_a_slurm_array() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "6"}
    assert Share.of_array({**array, "SLURM_ARRAY_TASK_COUNT": "4"}) == Share(2, 4)
    with pytest.raises(UsageError, match="with gaps"):
        Share.of_array({**array, "SLURM_ARRAY_TASK_COUNT": "3"})
    with pytest.raises(UsageError, match="no task of a Slurm job array"):
        Share.of_array({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "tcp://x:1"}, "belong to --engine dask"),
        ({"engine": "dask", "share": Share(0, 2)}, "leave --engine dask away"),
        ({"engine": "dask", "workers": 2, "slurm_workers": 2}, "exclude each other"),
        ({"sbatch": ("--mem=1G",)}, "--sbatch belongs to --slurm-workers"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExtractOptions(**options)


def test_refusals(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in call("extract-teachers", "--run", run, "--task-index", 3, "--num-tasks", 3).output
    assert "belong together" in call("extract-teachers", "--run", run, "--task-index", 3).output
    shared = ["--task-index", 0, "--num-tasks", 3]
    result = call("extract-teachers", "--run", run, *shared, "--overwrite")
    assert (result.exit_code, "every task would remove" in result.output) == (2, True)
    result = call("extract-teachers", "--run", run, *shared, "--set", "cache.root=s3://bucket/cache")
    assert (result.exit_code, "object storage" in result.output) == (2, True)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert "with --array it would take its share" in call("extract-teachers", "--run", run, "--dry-run").output


@pytest.mark.slow
@pytest.mark.fault
def test_a_task_that_waits_for_the_plan_stops_when_asked(run: Path, start: Any, until: Any) -> None:
    opened = Run.open(run)
    with opened.alone(lambda: None):  # as a process does that measures
        process = start("extract-teachers", "--run", run)
        waiting: list[str] = []
        until(lambda: waiting.append(process.stdout.readline()) or "another process plans" in waiting[-1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75
    assert not (run / "cache" / "index.json").exists()
