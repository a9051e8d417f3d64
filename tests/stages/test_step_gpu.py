"""A training step on a GPU never makes the host wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import ProxiesConfig, SPDConfig, TrainConfig
from uniego.stages.batches import Batch
from uniego.stages.proxy_bank import ProxyBank, candidates
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.student import StudentTask
from uniego.stages.supervised import Supervised, VideoTask
from uniego.stages.targets import Bank, Targets

CLIPS, CLASSES = 8, 3


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    yield torch.device("cuda")
    torch.cuda.set_sync_debug_mode("default")


def task(kind: str, device: torch.device) -> VideoTask:
    model = TimeSformer(16, 8, 2, 32, 2, 2, CLASSES, {"student": 32}, drop_path=0.3)
    path = Path("none.mp4")
    clips = [Clip(f"c{i}", "train", i % CLASSES, path, None, None, None, None, {}, {}) for i in range(CLIPS)]
    base = Supervised(model, clips, seed=0, device=device)
    present = torch.arange(CLIPS, device=device) % 4 > 0
    if kind == "proxy":
        targets = Targets(torch.randn(CLIPS, 32, device=device), present)
        return ProxyTask("p", "student", ProxiesConfig(), base, targets)
    there = present[:, None].expand(-1, 2).cpu()
    outputs = Bank(torch.randn(CLIPS, 2, 32), torch.randn(CLIPS, 2, CLASSES), there)
    options = {"by view": {"group_by_view": ["exo", "ego"]}, "random": {"select": "random"}, "all": {"select": "all"}}
    spd = SPDConfig(**options.get(kind, {}))
    bank = candidates(outputs, torch.tensor([clip.label for clip in clips]), spd)
    if kind != "in memory":
        bank = ProxyBank(*(part.to(device) for part in bank))
    return StudentTask(TrainConfig(), spd, base, bank, exact_normaliser=kind == "exact")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["proxy", "student", "by view", "random", "all", "in memory", "exact"])
def test_a_step_does_not_wait_for_the_device(gpu: torch.device, kind: str) -> None:
    trained = task(kind, gpu)
    batches = [Batch.of(rows, torch.randn(4, 3, 2, 16, 16).pin_memory()) for rows in (range(4), range(4, 8))]
    batches = [batch._replace(indices=batch.indices.pin_memory()) for batch in batches]
    for mode in ("default", "error"):  # the first step allocates
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        if trained.needs_whole_step:
            trained.open_step([batch.to(gpu) for batch in batches], epoch=0)
        for batch in batches:
            trained.loss(batch.to(gpu), epoch=0)["loss"].backward()  # type: ignore[no-untyped-call]
        trained.optimizer.step()
        trained.after_step()
        trained.zero_grad()
