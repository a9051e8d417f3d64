"""TensorBoard event files: what metrics.jsonl says, every step once, also after a kill."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from uniego.errors import UsageError
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.stages import events
from uniego.stages.steplog import StepLog
from uniego.stages.training import make_plan


def read(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all event files, by their records: length, its check, data, its check."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_every_step_once_also_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    folder = tmp_path / events.EVENTS

    def train(here: tuple[int, int], steps: int) -> None:
        """Three steps an epoch, and a validation at its end."""
        log = StepLog(tmp_path, here, events=events.EventFile(folder, 3))
        for total in range(here[0] * 3 + here[1], here[0] * 3 + here[1] + steps):
            epoch, step = divmod(total, 3)
            entry = {"epoch": epoch, "step": step, "lr": 0.5, "clips": 2}
            log.step(entry, [{"loss": torch.tensor(float(total))}], 0.1, 0.0)
            log.flush()
            if step == 2:
                log.write({"epoch": epoch, "validation": {"score": 50.0, "top1": 50.0}})
        log.close()

    train((0, 0), 5)
    train((1, 1), 3)  # the checkpoint was older than the log
    found = read(folder)
    assert [(step, value) for tag, step, value in found if tag == "loss"] == [(n, float(n)) for n in range(7)]
    assert [step for tag, step, _ in found if tag == "validation/top1"] == [2, 5]
    assert {tag for tag, _, _ in found} == {
        "loss", "lr", "clips", "clips_per_s", "data_wait", "validation/top1", "validation/score",
    }  # fmt: skip
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 9
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 0


def test_missing_packages_are_told_before_a_training_begins(
    tmp_path: Path, clip_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preset("tiny")
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"tensorboard": True})})
    config = config.model_copy(update={"data": config.data.model_copy(update={"table": str(clip_table)})})
    run = Run.create(tmp_path / "run", config)
    train = config.distill.train
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"uniego\[tensorboard\]"):
        make_plan(run, train, run.table().split("train"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert make_plan(run, train, run.table().split("train")).tensorboard
