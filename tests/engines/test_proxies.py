"""Several proxies at a time: the bytes of one after the other, whatever is stopped or killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.config import ComputeConfig
from uniego.stages.engines.places import CONTEXT, fitting, places_for, threads_each

pytestmark = pytest.mark.fault
TIMES = ("clips_per_s", "data_wait")


def made(run: Path) -> dict[str, Any]:
    """What the stage makes: hashes of files, and metrics without the times in them."""
    found: dict[str, Any] = {}
    for path in sorted([*(run / "proxies").rglob("*"), *(run / "cache").glob("proxy-*/**/c.*")]):
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.relative_to(run))] = [
                {name: value for name, value in line.items() if name not in TIMES} for line in lines
            ]
        elif path.is_file() and path.name != "lock":
            found[str(path.relative_to(run))] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """Features of three teachers; no proxy is begun. Read only."""
    run = tmp_path_factory.mktemp("extracted") / "run"
    result = CliRunner().invoke(cli.app, ["init", str(run), "--data", str(clip_table), "--preset", "tiny"])
    assert result.exit_code == 0, result.output
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("exo_skl", "exo_rgb", "ego_dino")}
    raw["compute"] |= {"threads": 1, "workers": 0}
    raw["proxies"]["train"] |= {"epochs": 10, "global_batch": 2, "micro_batch": 1}
    raw["proxies"]["train"]["checkpoint"]["every_steps"] = 2
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["extract-teachers", "--run", str(run)])
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="module")
def alone(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes, one proxy after the other."""
    run = Path(shutil.copytree(extracted, tmp_path_factory.mktemp("alone") / "run"))
    result = CliRunner().invoke(cli.app, ["train-proxies", "--run", str(run), "--jobs", "1"])
    assert result.exit_code == 0, result.output
    return made(run)


@pytest.fixture
def run(extracted: Path, tmp_path: Path) -> Path:
    """A copy in which the proxies are to be trained."""
    return Path(shutil.copytree(extracted, tmp_path / "run"))


def begun(run: Path, number: int) -> Callable[[], bool]:
    """Whether so many proxies have a checkpoint."""
    return lambda: len({path.parts[-3] for path in run.glob("proxies/*/checkpoints/step-*")}) >= number


def trainers(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that train; the tracker of resources is none."""
    return [process for process in processes if "spawn_main" in " ".join(process.cmdline())]


def test_two_at_a_time_make_the_bytes_of_one_after_the_other(run: Path, alone: dict[str, Any], start: Any) -> None:
    out, _ = (process := start("train-proxies", "--run", run, "--jobs", 2)).communicate(timeout=120)
    assert process.returncode == 0, out
    assert "train-proxies: 3 proxies, 2 at a time, on cpu" in out
    assert all(f"proxy {key}: done" in out for key in ("exo_skl", "exo_rgb", "ego_dino"))
    assert made(run) == alone


@pytest.mark.slow
def test_fault_02_a_stop_signal_to_the_group_saves_all_and_the_same_command_goes_on(
    run: Path, alone: dict[str, Any], start: Any, until: Any, family: Any
) -> None:
    process = start("train-proxies", "--run", run, "--jobs", 2)
    until(lambda: begun(run, 2)() or process.poll() is not None, 180)
    others = family(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "stopped on SIGTERM; run the same command again" in out
    until(lambda: not any(other.is_running() for other in others), 20)
    assert not any(path.exists() for path in run.glob("proxies/*/model"))
    out, _ = (process := start("train-proxies", "--run", run, "--jobs", 2)).communicate(timeout=240)
    assert process.returncode == 0, out
    assert made(run) == alone


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_others_finish(
    run: Path, alone: dict[str, Any], start: Any, until: Any, family: Any
) -> None:
    process = start("train-proxies", "--run", run, "--jobs", 2)
    until(lambda: begun(run, 1)() or process.poll() is not None, 180)
    victim = trainers(family(process.pid))[0]
    victim.kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1, out
    assert "the process of proxy" in out
    assert "was killed by SIGKILL; its last checkpoint is kept" in out
    assert sum((run / "proxies" / key / "model").exists() for key in ("exo_skl", "exo_rgb", "ego_dino")) == 2
    result = CliRunner().invoke(cli.app, ["train-proxies", "--run", str(run)])
    assert result.exit_code == 0, result.output
    assert made(run) == alone


@pytest.mark.slow
def test_fault_24_a_dask_worker_killed_within_a_proxy(
    run: Path, alone: dict[str, Any], start: Any, until: Any, family: Any
) -> None:
    process = start("train-proxies", "--run", run, "--engine", "dask", "--jobs", 2)
    until(lambda: begun(run, 1)() or process.poll() is not None, 180)
    trainers(family(process.pid))[0].kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert out.count("done by worker") == 3
    assert made(run) == alone


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--jobs", "none"], "--jobs none: auto or a number from 1 wanted"),
        (["--jobs", "0"], "--jobs 0: auto or a number from 1 wanted"),
        (["--scheduler", "tcp://head:8786"], "--scheduler belongs to --engine dask"),
        (["--engine", "dask", "--scheduler", "tcp://head:8786", "--jobs", "2"], "exclude each other"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], wrong: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["train-proxies", "--run", str(tmp_path), *options])
    assert result.exit_code == 2
    assert wrong in result.output


@pytest.mark.parametrize(
    ("total", "peak", "number"),
    [(141e9, 20e9, 5), (141e9, 3e9, 9), (24e9, 20e9, 1), (16e9, 30e9, 1), (48e9, 20e9, 1), (80e9, 10e9, 6)],
)
def test_how_many_fit_a_gpu(total: float, peak: float, number: int) -> None:
    assert fitting(total, peak) == number
    assert number == 1 or number * (peak + CONTEXT) < total


def test_places_on_a_cpu() -> None:
    cpu, config = torch.device("cpu"), ComputeConfig(threads=3)
    assert places_for(config, cpu, None, 9) is None
    assert places_for(config, cpu, 1, 9) is None
    assert places_for(config, cpu, 4, 1) is None
    places = places_for(config, cpu, 4, 2)
    assert places is not None
    assert (list(places.devices), places.threads, places.fill) == (["cpu", "cpu"], 3, False)
    assert [threads_each(None, 16, jobs) for jobs in (1, 3, 32)] == [16, 5, 1]
