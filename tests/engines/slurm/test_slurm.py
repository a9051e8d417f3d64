"""`uniego submit` on a real Slurm: arrays, preemption, time limits, Dask workers as jobs; the bytes are the same."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli

pytestmark = pytest.mark.slurm
CORES = str(os.cpu_count())


def call(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return str(result.output)


def submit(*arguments: object) -> str:
    """The number of the job that `uniego submit` makes."""
    said = call("submit", *arguments)
    assert "next: uniego status" in said
    return said.split("submitted as job ")[1].split(";")[0]


def output(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "slurm").glob("*.out")))


@pytest.fixture
def twin(colours: Callable[..., Path], chunks: Any) -> Callable[[int], dict[str, bytes]]:
    """What one process stores of the same clips."""

    def make(times: int) -> dict[str, bytes]:
        run = colours("twin", times=times)
        call("extract-teachers", "--run", run)
        return chunks(run)

    return make


@pytest.fixture
def finish(ask: Any, job: Any, until: Any) -> Callable[..., None]:
    """`finish(run, *jobs)`: wait until they are completed; those that were put back in the queue start at once."""

    def wait(run: Path, *names: str, seconds: float = 180) -> None:
        def done() -> bool:
            states = {name: job(name).get("JobState") for name in names}
            assert not set(states.values()) & {"FAILED", "TIMEOUT", "CANCELLED"}, (states, output(run))
            for name, state in states.items():
                if state == "PENDING":
                    ask("scontrol", "update", f"JobId={name}", "StartTime=now")
            return set(states.values()) == {"COMPLETED"}

        try:
            until(done, seconds)
        except AssertionError:
            print({name: job(name) for name in names}, output(run), sep="\n")
            raise

    return wait


def test_an_array_shares_the_shards(
    slurm: Path, run: Path, stored: dict[str, bytes], chunks: Any, tasks: Any, finish: Any
) -> None:
    number = submit("extract-teachers", "--run", run, "--array", 3, "--time", "10", "--", "--min-coverage", "0.9")
    finish(run, *(f"{number}_{task}" for task in range(3)))
    assert tasks(run) == {f"task-{task}-of-3" for task in range(3)}
    assert chunks(run) == stored
    assert output(run).count("at least 90.0 %") == 3


@pytest.mark.fault
def test_preempted_tasks_put_themselves_back_in_the_queue(
    slurm: Path,
    colours: Any,
    twin: Any,
    monkeypatch: Any,
    chunks: Any,
    ask: Any,
    job: Any,
    finish: Any,
    until: Any,
    lines: Any,
) -> None:
    """Each task of the array only itself, and once."""
    run, wanted = colours("run", times=2), twin(2)
    monkeypatch.setenv("UNIEGO_TEST_SECONDS", "0.7")
    number = submit("extract-teachers", "--run", run, "--array", 2, "--cpus", 1, "--partition", "low")
    both = [f"{number}_{task}" for task in range(2)]
    until(lambda: lines(run) >= 4, 90)
    ask("sbatch", "--partition=high", f"--cpus-per-task={CORES}", "--output=/dev/null", "--wrap=sleep 2")
    until(lambda: output(run).count("is back in the queue and will continue") == 2, 60)
    assert chunks(run).items() < wanted.items()
    finish(run, *both)
    assert [job(name)["Restarts"] for name in both] == ["1", "1"]
    assert chunks(run) == wanted


@pytest.mark.fault
@pytest.mark.slow
def test_a_cancelled_job_does_not_come_back(
    slurm: Path, colours: Any, monkeypatch: Any, ask: Any, job: Any, until: Any, lines: Any
) -> None:
    run = colours("run", times=2)
    monkeypatch.setenv("UNIEGO_TEST_SECONDS", "0.7")
    number = submit("extract-teachers", "--run", run)
    until(lambda: lines(run) >= 1, 90)
    ask("scancel", number)
    until(lambda: "EndTime" in job(number) and job(number)["JobState"] == "CANCELLED", 60)
    until(lambda: "stopped on SIGTERM" in output(run), 60)
    time.sleep(3)
    assert job(number)["JobState"] == "CANCELLED"
    assert "back in the queue" not in output(run)


@pytest.mark.fault
@pytest.mark.slow
def test_a_time_limit_is_no_end(
    slurm: Path, colours: Any, twin: Any, monkeypatch: Any, chunks: Any, job: Any, finish: Any
) -> None:
    run, wanted = colours("run", times=3), twin(3)
    monkeypatch.setenv("UNIEGO_TEST_SECONDS", "3")
    number = submit("extract-teachers", "--run", run, "--time", "2", "--sbatch", "--signal=B:TERM@60")
    finish(run, number, seconds=400)
    assert int(job(number)["Restarts"]) >= 1
    assert "is back in the queue and will continue" in output(run)
    assert chunks(run) == wanted


@pytest.mark.fault
@pytest.mark.slow
def test_dask_workers_as_jobs_of_which_one_is_cancelled(
    slurm: Path, colours: Any, twin: Any, start: Any, chunks: Any, tasks: Any, ask: Any, until: Any, lines: Any
) -> None:
    pytest.importorskip("dask_jobqueue")
    run, wanted = colours("run", times=4), twin(4)
    process = start(
        "extract-teachers", "--run", run, "--engine", "dask", "--slurm-workers", 2, "--sbatch", "--mem=500",
        UNIEGO_TEST_SECONDS="0.5", DASK_JOBQUEUE__SLURM__INTERFACE="lo",
    )  # fmt: skip
    until(lambda: lines(run) >= 3 or process.poll() is not None, 90)
    ask("scancel", ask("squeue", "-h", "-t", "R", "-o", "%A").split()[0])
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert chunks(run) == wanted
    assert tasks(run)
    until(lambda: not ask("squeue", "-h", "-o", "%A").split(), 30)


@pytest.mark.slow
def test_proxies_of_different_teachers_train_side_by_side(slurm: Path, run: Path, job: Any, finish: Any) -> None:
    first = submit("extract-teachers", "--run", run)
    finish(run, first)
    number = submit("train-proxies", "--run", run)
    finish(run, *(f"{number}_{task}" for task in range(3)))
    said = call("train-proxies", "--run", run)
    assert said.count("finished before, nothing to do") == 3


@pytest.mark.slow
def test_the_cells_of_a_grid_are_shared_by_an_array(slurm: Path, run: Path, job: Any, finish: Any) -> None:
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_skl")}
    raw["merge"]["epochs"] = 1
    for section in ("proxies", "distill"):
        raw[section]["train"]["epochs"] = 1
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    call("extract-teachers", "--run", run)
    grid = run / "grid.yaml"
    grid.write_text("name: g\nseeds: [0]\nbaseline: a\narms: {a: , b: {distill.top_k: 2, distill.threshold: 9.0}}\n")
    number = submit("ablate", "--run", run, "--cpus", 1, "--", grid)
    finish(run, *(f"{number}_{task}" for task in range(2)))
    with (run / "ablate" / "g" / "results.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["state"] for row in csv.DictReader(stream)] == ["done", "done"]
    shared = run / "ablate" / "shared"
    assert len(list(shared.glob("proxies/*/record.json"))) == 2
    for path in shared.glob("proxies/*/metrics.jsonl"):
        assert path.read_text(encoding="utf-8").count('"loss"') == 1, "trained once"
    assert len(list(shared.glob("merges/*/record.json"))) == 1
