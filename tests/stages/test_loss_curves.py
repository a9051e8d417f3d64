"""Twenty steps of a tiny proxy and a tiny student, against losses that were committed (CPU, one thread, fp32)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import CheckpointConfig, ProxiesConfig, SPDConfig, TrainConfig
from uniego.pipeline.signals import StopFlag
from uniego.stages.batches import Batch
from uniego.stages.loop import Loop, Plan
from uniego.stages.proxy_bank import candidates
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.student import StudentTask
from uniego.stages.supervised import Supervised, VideoTask
from uniego.stages.targets import Bank, Targets

CURVES = Path(__file__).parents[1] / "data" / "loss_curves.json"
CLIPS, CLASSES, STEPS = 16, 3, 20


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def task(kind: str) -> VideoTask:
    model = TimeSformer(16, 8, 2, 24, 2, 2, CLASSES, {"student": 24}, drop_path=0.2, seed=1)
    path = Path("none.mp4")
    clips = [Clip(f"c{i}", "train", i % CLASSES, path, None, None, None, None, {}, {}) for i in range(CLIPS)]
    base = Supervised(model, clips, seed=0, device=torch.device("cpu"))
    present = torch.arange(CLIPS) % 5 > 0
    if kind == "proxy":
        config = ProxiesConfig(train=TrainConfig(epochs=5))
        return ProxyTask("proxy", "student", config, base, Targets(drawn(CLIPS, 24, seed=2), present))
    logits = drawn(CLIPS, 2, CLASSES, seed=3)
    logits[range(CLIPS), :, [clip.label for clip in clips]] += 3.0  # mostly right
    outputs = Bank(drawn(CLIPS, 2, 24, seed=4), logits, present[:, None].expand(-1, 2).contiguous())
    bank = candidates(outputs, torch.tensor([clip.label for clip in clips]), SPDConfig())
    return StudentTask(TrainConfig(epochs=5), SPDConfig(), base, bank)


def stream(epoch: int, step: int) -> Iterator[Batch]:
    videos = drawn(CLIPS, 3, 2, 16, 16, seed=5)
    for _ in range(epoch, STEPS // 4):
        for at in range(0, CLIPS, 2):
            yield Batch.of(range(at, at + 2), videos[at : at + 2])


def curve(kind: str, folder: Path) -> list[dict[str, float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plan = Plan(STEPS // 4, 4, 2, 4, CheckpointConfig(), torch.device("cpu"))
        Loop(task(kind), plan, folder, StopFlag()).run(stream)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    return [{key: line[key] for key in line if key not in ("clips_per_s", "data_wait")} for line in steps]


@pytest.mark.parametrize("kind", ["proxy", "student"])
def test_losses_are_those_committed(kind: str, tmp_path: Path) -> None:
    """To rounding; in the full run, with the library and instructions they were made with, to the last bit."""
    found = curve(kind, tmp_path)
    stored = json.loads(CURVES.read_text())
    here = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    assert len(found) == STEPS
    assert found[-1]["loss"] < found[0]["loss"]
    if stored["made_with"] == here and os.environ.get("UNIEGO_TEST_FULL") == "1":
        assert found == stored[kind]
    for line, wanted in zip(found, stored[kind], strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-6)
