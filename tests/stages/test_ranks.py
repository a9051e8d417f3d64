"""Trainings of several processes (gloo): the result of one process, and an end with names when one is gone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner
from uniego import cli
from uniego.stages.teaching import read_teaching

PARENT = """
import json, os, sys
import torch, torch.distributed
from uniego import cli
from uniego.stages import distill, train_proxies, train_teacher

for line in sys.stdin:
    job, children = json.loads(line), []
    for rank in range(job["world"]):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.dup2(log, 1), os.dup2(log, 2)
                if job["world"] > 1:
                    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["world"]}
                    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
                    os.environ.update({name: str(value) for name, value in names.items()})
                sys.argv = ["uniego", *job["arguments"]]
                cli.main()
            except SystemExit as end:
                code = end.code or 0
            finally:
                os._exit(code)
    print(json.dumps(children), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


class Job:
    """A command in several processes: `pids` by rank, and `codes()` when all have ended."""

    def __init__(self, parent: subprocess.Popen[str], pids: list[int], log: Path) -> None:
        self._parent, self.pids, self._log = parent, pids, log

    def codes(self) -> list[int]:
        assert self._parent.stdout is not None
        return list(json.loads(self._parent.stdout.readline()))

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")


class Launcher:
    """A process that has everything imported and forks the ranks of one command of uniego after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._jobs = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def start(self, world: int, *arguments: object) -> Job:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._jobs += 1
        log = self._folder / f"{self._jobs}.log"
        job = {"world": world, "arguments": [str(a) for a in arguments], "log": str(log), "port": port}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Job(self._process, json.loads(self._process.stdout.readline()), log)

    def run(self, world: int, *arguments: object) -> str:
        """What the processes of a command said; all must succeed."""
        job = self.start(world, *arguments)
        codes = job.codes()
        assert codes == [0] * world, job.said
        return job.said


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, clip_table: Path, launcher: Launcher) -> Path:
    """A run trained by one process: four micro-batches to a step, a val split. Read only."""
    run = tmp_path_factory.mktemp("alone") / "run"
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(clip_table.parent, data, dirs_exist_ok=True)
    table = data / clip_table.name
    result = CliRunner().invoke(cli.app, ["init", str(run), "--data", str(table), "--preset", "tiny"])
    assert result.exit_code == 0, result.output
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("exo_skl", "ego_dino")}
    raw["data"]["holdout"] = 0.25
    raw["merge"]["epochs"] = 3
    raw["distill"] |= {"threshold": 1e9, "require_correct": False}  # so that they teach
    raw["compute"] |= {"workers": 0, "rank_timeout_s": 60}
    for train in (raw["train_teachers"]["skeleton"]["train"], raw["proxies"]["train"], raw["distill"]["train"]):
        train |= {"epochs": 4, "global_batch": 4, "micro_batch": 1}
        train["checkpoint"]["every_steps"] = 1
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    launcher.run(1, "extract-teachers", "--run", run)
    extracted = run.with_name("extracted")
    shutil.copytree(run, extracted)
    for command in ("train-proxies", "distill"):
        launcher.run(1, command, "--run", run)
    return run


@pytest.fixture
def run(tmp_path: Path, alone: Path) -> Path:
    """A copy of that run in which nothing is trained yet."""
    shutil.copytree(alone.with_name("extracted"), tmp_path / "run")
    return tmp_path / "run"


def check_alike(folder: Path, wanted: Path) -> None:
    """The same tensors and metrics, but for the order in which numbers were added up."""
    models = sorted(path.relative_to(wanted) for path in wanted.rglob("m*.safetensors"))
    assert models
    for name in models:
        ours, theirs = load_file(folder / name), load_file(wanted / name)
        assert list(ours) == list(theirs)
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
    logs = sorted(path.relative_to(wanted) for path in wanted.rglob("metrics.jsonl"))
    for name in logs:
        assert [flat(line) for line in lines(folder / name)] == [
            pytest.approx(flat(line), rel=1e-4, abs=1e-5) for line in lines(wanted / name)
        ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flat(line: dict[str, Any]) -> dict[str, float]:
    line = {**line, **line.get("validation", {})}
    taught = line.pop("teaching", {})
    numbers = {key: values for key, values in taught.items() if key != "proxies"}.items()
    line |= {f"{key}[{i}]": value for key, values in numbers for i, value in enumerate(np.ravel(values).tolist())}
    line |= {f"{name} {place}": 0 for place, name in enumerate(taught.get("proxies", ()))}
    return {key: value for key, value in line.items() if key not in ("clips_per_s", "data_wait", "validation")}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert path.exists()


def test_two_processes_train_what_one_does(run: Path, alone: Path, launcher: Launcher) -> None:
    for command in ("train-proxies", "distill"):
        said = launcher.run(2, command, "--run", run)
        assert said.count("2 processes train together") == 1  # one speaks for all
    for folder in ("proxies", "distill"):
        check_alike(run / folder, alone / folder)
    assert all(epoch.taught.any() for epoch in read_teaching(run / "distill/student"))


def test_three_processes_share_four_micro_batches(run: Path, alone: Path, launcher: Launcher) -> None:
    launcher.run(3, "train-proxies", "--teacher", "ego_dino", "--run", run)
    check_alike(run / "proxies/ego_dino", alone / "proxies/ego_dino")


@pytest.mark.slow
def test_more_processes_than_micro_batches_are_told(run: Path, alone: Path, launcher: Launcher) -> None:
    said = launcher.run(5, "train-proxies", "--teacher", "ego_dino", "--run", run)
    assert "5 processes for 4 micro-batches of a step" in said
    check_alike(run / "proxies/ego_dino", alone / "proxies/ego_dino")


def test_a_skeleton_teacher_is_trained_and_all_hold_the_same(run: Path, launcher: Launcher) -> None:
    changed = ["--set", "teachers.exo_skl.weights=null", "--set", "teachers.exo_skl.architecture={}"]
    launcher.run(2, "train-teacher", "exo_skl", "--run", run, *changed)
    assert json.loads((run / "teachers/exo_skl/record.json").read_text())["state"] == "done"


@pytest.mark.fault
def test_fault_25_a_rank_that_is_killed_is_named(run: Path, launcher: Launcher) -> None:
    settings = ["--teacher", "exo_skl", "--set", "proxies.train.epochs=2000"]
    job = launcher.start(3, "train-proxies", "--run", run, *settings)
    wait_for(run / "proxies/exo_skl/checkpoints/step-000000002")
    os.kill(job.pids[1], signal.SIGKILL)
    killed = time.monotonic()
    assert job.codes() == [1, -signal.SIGKILL, 1]
    assert time.monotonic() - killed < 30
    named = re.findall(rf"rank [02]: rank 1 \(process {job.pids[1]} on .*\) died without a word", job.said)
    assert len(named) == 2, job.said


@pytest.mark.slow
@pytest.mark.fault
def test_fault_25_a_rank_that_hangs_is_named(run: Path, launcher: Launcher) -> None:
    settings = ["--teacher", "exo_skl", "--set", "proxies.train.epochs=2000", "--set", "compute.rank_timeout_s=5"]
    job = launcher.start(2, "train-proxies", "--run", run, *settings)
    wait_for(run / "proxies/exo_skl/checkpoints/step-000000002")
    os.kill(job.pids[1], signal.SIGSTOP)
    wait_for_text(job, "rank 0: rank 1")
    os.kill(job.pids[1], signal.SIGKILL)
    assert job.codes() == [1, -signal.SIGKILL]


def wait_for_text(job: Job, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in job.said and time.monotonic() < deadline:
        time.sleep(0.05)
    assert text in job.said


@pytest.mark.fault
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fault_26_27_stopped_together_and_continued_by_others(
    run: Path, alone: Path, launcher: Launcher, world: int
) -> None:
    """One rank is asked to stop: all save and end. The newest checkpoint is damaged, all continue at the one before."""
    folder = run / "proxies/exo_skl"
    job = launcher.start(2, "train-proxies", "--teacher", "exo_skl", "--run", run)
    wait_for(folder / "checkpoints/step-000000001")
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pids[1], signal.SIGUSR1)
    assert job.codes() == [75, 75], job.said
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    if newest.name > "step-000000001":
        (newest / "state.json").write_text("{")
    said = launcher.run(world, "train-proxies", "--teacher", "exo_skl", "--run", run)
    assert said.count("is damaged") == (newest.name > "step-000000001")
    assert ("ranks 2 then, 1 now" in said) == (world == 1)
    check_alike(folder, alone / "proxies/exo_skl")


def test_a_clip_that_fails_in_any_rank_is_reported_once(run: Path, launcher: Launcher) -> None:
    table = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["data"]["table"]
    broken = (run / table).parent / "ego/01.mp4"
    whole = broken.read_bytes()
    try:
        broken.write_bytes(b"no video")
        few = ["--set", "extract.min_coverage=0.5"]
        launcher.run(2, "train-proxies", "--teacher", "ego_dino", "--run", run, *few)
    finally:
        broken.write_bytes(whole)
    assert [line["clip_id"] for line in lines(run / "proxies/ego_dino/failures.jsonl")] == ["clip01"]


def test_what_the_first_refuses_ends_all_with_its_exit_code(run: Path, alone: Path, launcher: Launcher) -> None:
    shutil.copytree(alone / "proxies", run / "proxies")
    changed = ["--set", "proxies.feature_weight=2"]
    job = launcher.start(2, "train-proxies", "--teacher", "exo_skl", "--run", run, *changed)
    assert job.codes() == [5, 5], job.said
    assert "rank 1: rank 0 has failed and told why" in job.said
    assert job.said.count("feature_weight: stored 1.0, wanted 2.0") == 1


def torchrun(run: Path, *arguments: str) -> subprocess.Popen[str]:
    """The real thing, two processes; torchrun's own words and theirs on one stream."""
    module = ["-m", "--", "uniego"]  # without "--" torchrun takes --run for an option of its own
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *module]
    command = [*launcher, "train-proxies", "--teacher", "exo_skl", "--run", str(run), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.fault
def test_fault_2_torchrun_is_asked_to_stop(run: Path, alone: Path, launcher: Launcher) -> None:
    process = torchrun(run, "--set", "proxies.train.epochs=100")
    wait_for(run / "proxies/exo_skl/checkpoints/step-000000002")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert re.search(r"stopped: rank 0: stopped on SIGTERM", said), said
    assert re.search(r"stopped: rank 1: stopped on SIGTERM", said), said
    assert process.returncode != 0
    assert json.loads((run / "proxies/exo_skl/record.json").read_text())["state"] == "started"
    launcher.run(1, "train-proxies", "--teacher", "exo_skl", "--run", run, "--set", "proxies.train.epochs=100")


@pytest.mark.slow
@pytest.mark.fault
def test_fault_25_torchrun_and_a_rank_that_is_killed(run: Path) -> None:
    process = torchrun(run, "--set", "proxies.train.epochs=2000")
    wait_for(run / "proxies/exo_skl/checkpoints/step-000000002")
    (child,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if is_child(path.parent, process.pid) and b"\0RANK=1\0" in path.read_bytes()
    )
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - killed < 30
    # torchrun asks rank 0 to stop at once: it names the other one, unless it came to stop before it met nobody.
    named = rf"rank 0: rank 1 \(process {child} on .*\) died without a word|stopped: rank 0: stopped on SIGTERM"
    assert re.search(named, said), said
    assert re.search(rf"rank +: 1 .*\n.*exitcode +: -9 \(pid: {child}\)", said), said
    assert process.returncode != 0


def is_child(process: Path, parent: int) -> bool:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
    except OSError:
        return False
