"""Checkpoints at every crash point, damaged ones, and writing while training goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from uniego.errors import IntegrityError, UniegoError
from uniego.pipeline import files
from uniego.stages import checkpoints
from uniego.stages.checkpoints import Checkpoints

STEPS = ("open", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir")


class Crash(BaseException):
    """The process is dead from here on."""


class Dead(files.Operations):
    """Every operation from number `stop` on fails, as it does for a process that was killed; half a write is done."""

    def __init__(self, stop: int) -> None:
        self.stop, self.count = stop, 0

    def __getattribute__(self, name: str) -> Any:
        operation = super().__getattribute__(name)
        if name not in STEPS:
            return operation

        def call(*args: Any) -> Any:
            self.count += 1
            if self.count - 1 < self.stop:
                return operation(*args)
            if name == "write" and self.count - 1 == self.stop:
                operation(args[0], args[1][: len(args[1]) // 2])
            raise Crash

        return call


class Training:
    """Two tensors and SGD with momentum; `step` is a function of the state alone."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.weight.square().sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def save(self, kept: Checkpoints, step: int) -> None:
        kept.save(step, {"weight": self.weight}, self.optimizer, {"step": step})

    @classmethod
    def after(cls, steps: int) -> Training:
        training = cls()
        for _ in range(steps):
            training.step()
        return training


def save(folder: Path, step: int) -> None:
    """What a process does that goes on with what lies there and saves this step."""
    kept = Checkpoints(folder)
    kept.load()
    Training.after(step).save(kept, step)
    kept.wait()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def start(folder: Path, damaged: bool) -> None:
    for step in (1, 2):
        save(folder, step)
    if damaged:
        flip(folder / "step-000000002" / "optimizer.safetensors", -1)


@pytest.mark.fault
@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.parametrize("damaged", [False, True])
def test_fault_26_killed_at_every_file_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, damaged: bool
) -> None:
    """Whatever is left, the newest whole checkpoint is loaded; saving again ends with the bytes of no kill."""
    start(tmp_path / "good", damaged)
    with monkeypatch.context() as patch:
        counter = Dead(10**9)
        patch.setattr(files, "operations", counter)
        save(tmp_path / "good", step)
    assert counter.count > 20 or (step, damaged) == (2, False)  # a whole checkpoint is not written again
    wanted = tree(tmp_path / "good")
    for stop in range(counter.count):
        folder = tmp_path / f"run{stop}"
        start(folder, damaged)
        with monkeypatch.context() as patch:
            patch.setattr(files, "operations", Dead(stop))
            with pytest.raises(Crash):
                save(folder, step)
        found = checkpoints.load_newest(folder)
        assert found is not None
        assert found.state["step"] in {1 if damaged else 2, step}
        assert torch.equal(found.tensors["weight"], Training.after(found.state["step"]).weight)
        save(folder, step)
        assert tree(folder) == wanted, f"operation {stop} of {counter.count}"


@pytest.mark.parametrize("name", ["task.safetensors", "optimizer.safetensors", "state.json"])
def test_fault_26_any_flipped_bit_of_the_newest_is_seen(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, damaged=False)
    path = tmp_path / "step-000000002" / name
    data = path.read_bytes()
    for at in range(len(data)):
        flip(path, at)
        found = checkpoints.load_newest(tmp_path)
        same = name == "state.json" and json.loads(data) == _json(path.read_bytes())  # a space is a space
        assert found is not None
        assert found.state["step"] == (2 if same else 1), at
        assert same or "damaged" in capsys.readouterr().err
        path.write_bytes(data)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_a_damaged_one_makes_way_and_the_one_that_was_loaded_stays(tmp_path: Path) -> None:
    start(tmp_path, damaged=True)
    save(tmp_path, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000001", "step-000000003"]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    class Slow(files.Operations):
        def fsync(self, fd: int) -> None:
            assert gate.wait(30)
            super().fsync(fd)

    monkeypatch.setattr(files, "operations", Slow())
    training, kept = Training.after(3), Checkpoints(tmp_path)
    training.save(kept, 3)
    assert not list(tmp_path.glob("step-*"))
    training.step()  # changes the tensors in place
    gate.set()
    kept.wait()
    found = checkpoints.load_newest(tmp_path)
    assert found is not None
    wanted = Training.after(3)
    assert torch.equal(found.tensors["weight"], wanted.weight)
    assert torch.equal(found.optimizer["state"][0]["momentum_buffer"], wanted.optimizer.state[wanted.weight][
        "momentum_buffer"
    ])  # fmt: skip


@pytest.mark.parametrize("call", [Checkpoints.wait, lambda kept: Training().save(kept, 2)])
def test_what_goes_wrong_in_the_background_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[Checkpoints], None]
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    kept = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        operations = files.Operations()
        patch.setattr(operations, "write", full)
        patch.setattr(files, "operations", operations)
        Training().save(kept, 1)
        with pytest.raises(OSError, match="the disk is full"):
            call(kept)
    Training().save(kept, 1)
    kept.wait()
    assert checkpoints.load_newest(tmp_path) is not None


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    training, kept = Training(), Checkpoints(tmp_path)
    with torch.no_grad():
        training.weight[0, 0] = torch.nan
    training.save(kept, 1)
    with pytest.raises(UniegoError, match="not finite"):
        kept.wait()
    assert not list(tmp_path.glob("step-*"))


def test_no_checkpoint_loads_a_pickle(tmp_path: Path) -> None:
    start(tmp_path, damaged=False)
    for path in tmp_path.rglob("*.safetensors"):
        torch.save({"weight": torch.zeros(2, 3)}, path)
    with pytest.raises(IntegrityError):
        checkpoints.load_newest(tmp_path)
