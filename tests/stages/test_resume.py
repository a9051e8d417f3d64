"""Trainings stopped at random moments, in every way there is, end with the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.stages.teaching import read_teaching

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TIMES = ("clips_per_s", "data_wait")

CHILDREN = """
import json, os, sys
import torch
from uniego import cli
from uniego.stages import distill, train_proxies, train_teacher

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.argv = ["uniego", *json.loads(line)]
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Trainer:
    """A process that has everything imported and forks one command of uniego for every line it is sent."""

    def __init__(self, log: Path) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOG": str(log)}
        command = [sys.executable, "-c", CHILDREN]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def run(self, arguments: list[str], stop: tuple[int, Path, float] | None = None) -> int:
        """The exit code of one command; `stop`: a signal, so many seconds after a file is there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if stop is not None:
            number, path, delay = stop
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):  # waited for already
                os.kill(child, number)
        return int(self._process.stdout.readline())


@dataclass(frozen=True)
class Training:
    """A command, the folder of the training that is stopped, and what is removed so that there is work again."""

    command: tuple[str, ...]
    folder: str
    removed: tuple[str, ...]


TRAININGS = {
    "teacher": Training(("train-teacher", "exo_skl"), "teachers/exo_skl", ("teachers",)),
    "proxy": Training(("train-proxies",), "proxies/exo_skl", ("proxies", "cache/proxy-*")),
    "merge": Training(("distill",), "distill/merge", ("distill",)),
    "student": Training(("distill",), "distill/student", ("distill/student",)),
}


def made(run: Path) -> dict[str, Any]:
    """What trainings make: hashes of files, and metrics without the times in them."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.name == "lock" or name.startswith("extract"):
            continue
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        else:
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    trainer = Trainer(tmp_path_factory.mktemp("trainer") / "log")
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, clip_table: Path, trainer: Trainer) -> Path:
    """Every training, never stopped; a val split, two micro-batches to a step, checkpoints now and then. Read only."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    result = CliRunner().invoke(cli.app, ["init", str(run), "--data", str(clip_table), "--preset", "tiny"])
    assert result.exit_code == 0, result.output
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("exo_skl", "ego_dino")}
    raw["teachers"]["exo_skl"] |= {"weights": None, "architecture": {}, "allow_random": False}
    raw["data"]["holdout"] = 0.25
    raw["merge"]["epochs"] = 6
    raw["distill"] |= {"snapshots": 5, "threshold": 1e9, "require_correct": False}  # so that they teach
    raw["compute"]["workers"] = 0
    for train in (raw["train_teachers"]["skeleton"]["train"], raw["proxies"]["train"], raw["distill"]["train"]):
        train |= {"epochs": 6, "global_batch": 2, "micro_batch": 1}
        train["checkpoint"]["every_steps"] = 4
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for command in (["train-teacher", "exo_skl"], ["extract-teachers"], ["train-proxies"], ["distill"]):
        assert trainer.run([*command, "--run", str(run)]) == 0, trainer.log.read_text()
    assert any(epoch.taught.any() for epoch in read_teaching(run / "distill/student"))
    return run


def begun(undisturbed: Path, training: Training, run: Path) -> Path:
    """A copy in which the training, and nothing before it, is still to be done."""
    shutil.copytree(undisturbed, run)
    for pattern in training.removed:
        for path in run.glob(pattern):
            shutil.rmtree(path)
    return run


@pytest.mark.fault
def test_fault_28_stopped_at_random_moments_and_in_every_way(
    tmp_path: Path, undisturbed: Path, trainer: Trainer, full: bool
) -> None:
    """Teacher, proxy, merge and student; in the middle of epochs and of accumulations; other numbers of workers."""
    rng, wanted = random.Random(0), made(undisturbed)
    stops, landed, number, longest = 50 if full else 5, 0, 0, dict.fromkeys(TRAININGS, 0.6)
    while landed < stops:
        name = list(TRAININGS)[number % len(TRAININGS)]
        training, number = TRAININGS[name], number + 1
        run = begun(undisturbed, training, tmp_path / "run")
        arguments = [*training.command, "--run", str(run)]
        for _ in range(2 if full else 1):
            how = SIGNALS[(landed + number) % len(SIGNALS)]
            workers = ["--set", f"compute.workers={rng.choice((0, 0, 0, 1, 2) if full else (0, 1))}"]
            if name == "merge":  # wherever the proxies lie, the bytes are the same
                workers += ["--set", f"merge.memory={rng.choice(('device', 'host'))}"]
            moment = rng.uniform(0, longest[name])
            code = trainer.run([*arguments, *workers], (how, run / training.folder / "record.json", moment))
            assert code in (0, 75, -signal.SIGKILL), trainer.log.read_text()
            landed += code != 0
            longest[name] *= 1.1 if code else 0.7
        assert trainer.run(arguments) == 0, trainer.log.read_text()
        assert made(run) == wanted, f"{name}, stopped by {how!r} after {moment:.3f} s"
        shutil.rmtree(run)
        assert number <= 3 * stops, "hardly a stop lands while there is work"


@pytest.mark.fault
@pytest.mark.parametrize("name", ["merge", pytest.param("student", marks=pytest.mark.slow)])
def test_fault_28_killed_between_two_checkpoints(
    name: str, tmp_path: Path, undisturbed: Path, trainer: Trainer
) -> None:
    """Always in the middle: after the second checkpoint, and again after the fourth."""
    training = TRAININGS[name]
    run = begun(undisturbed, training, tmp_path / "run")
    arguments = [*training.command, "--run", str(run)]
    checkpoints = run / training.folder / "checkpoints"
    for step in (8, 16):
        stop = (signal.SIGKILL, checkpoints / f"step-{step:09d}", 0.0)
        assert trainer.run(arguments, stop) == -signal.SIGKILL, trainer.log.read_text()
        assert json.loads((run / training.folder / "record.json").read_text())["state"] == "started"
        assert list(checkpoints.glob("step-*"))
    assert trainer.run(arguments) == 0, trainer.log.read_text()
    assert made(run) == made(undisturbed)


@pytest.mark.fault
def test_fault_27_other_workers_go_on_and_another_micro_batch_is_refused(
    tmp_path: Path, undisturbed: Path, trainer: Trainer
) -> None:
    training = TRAININGS["student"]
    run = begun(undisturbed, training, tmp_path / "run")
    arguments = [*training.command, "--run", str(run)]
    newest = run / training.folder / "checkpoints" / "step-000000004"
    assert trainer.run(arguments, (signal.SIGKILL, newest, 0.0)) == -signal.SIGKILL
    before = made(run)
    assert trainer.run([*arguments, "--set", "distill.train.micro_batch=2"]) == 5
    assert "micro_batch: stored 1, wanted 2" in trainer.log.read_text()
    assert made(run) == before
    assert trainer.run([*arguments, "--set", "compute.workers=2"]) == 0
    assert made(run) == made(undisturbed)
