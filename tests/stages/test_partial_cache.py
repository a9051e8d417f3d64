"""Fault 29: training on a cache that covers 97 % of the clips. Masks are exact, and losses divide by who is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from uniego.cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey, RowStatus
from uniego.cache.coverage import count_rows
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import ProxiesConfig, SPDConfig, TrainConfig
from uniego.stages.batches import Batch
from uniego.stages.proxy_bank import candidates
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.student import StudentTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import load_bank, load_targets

CLIPS, WIDTH, CLASSES = 100, 5, 3
FAILED, ABSENT, ZERO = {17, 63}, {64}, 2
ROWS = np.arange(CLIPS)


def store(root: Path, name: str, arrays: dict[str, tuple[int, ...]], seed: int) -> FeatureStore:
    index = ClipIndex.plan(root, [RowKey(f"c{i:03d}", "x") for i in range(CLIPS)], rows_per_shard=16)
    specs = {key: ArraySpec(shape, "float32", tuple("ab"[: len(shape)])) for key, shape in arrays.items()}
    made = FeatureStore.create(root / name, index, specs, {"seed": seed}, {})
    rng = np.random.default_rng(seed)
    data = {key: rng.normal(size=(CLIPS, *shape)).astype(np.float32) for key, shape in arrays.items()}
    for values in data.values():
        values[ZERO] = 0.0
    status = np.full(CLIPS, RowStatus.DONE, np.uint8)
    status[list(FAILED)], status[list(ABSENT)] = RowStatus.FAILED, RowStatus.ABSENT
    for shard in range(index.num_shards):
        rows = list(index.shard_rows(shard))
        failures = [Failure(f"c{row:03d}", "truncated", "cut") for row in rows if row in FAILED]
        made.write_shard(shard, {key: values[rows] for key, values in data.items()}, status[rows], failures)
    return made


def supervised(projections: dict[str, int]) -> Supervised[TimeSformer]:
    model = TimeSformer(16, 8, 2, 12, 1, 2, CLASSES, projections, drop_path=0.0)
    path = Path("none.mp4")
    clips = [Clip(f"c{i:03d}", "train", i % CLASSES, path, None, None, None, None, {}, {}) for i in range(CLIPS)]
    return Supervised(model, clips, seed=0, device=torch.device("cpu"))


def batch(rows: list[int]) -> Batch:
    return Batch.of(rows, torch.randn(len(rows), 3, 2, 16, 16, generator=torch.Generator().manual_seed(rows[0])))


PORTIONS = [[16, 17, 18, 2], [62, 63, 64, 65], [17, 63, 64], list(range(CLIPS))]


@pytest.mark.fault
@pytest.mark.parametrize("rows", PORTIONS, ids=["one away", "two away", "all away", "the split"])
def test_fault_29_a_proxy_divides_by_the_clips_that_have_a_target(tmp_path: Path, rows: list[int]) -> None:
    features = store(tmp_path, "teacher", {"features": (4, WIDTH)}, seed=1)
    assert count_rows(features, ROWS).share == 0.97
    targets = load_targets(features, ROWS, count=2)
    assert set(np.flatnonzero(~targets.present.numpy())) == FAILED | ABSENT
    task = ProxyTask("p", "t", ProxiesConfig(train=TrainConfig()), supervised({"t": WIDTH}), targets)
    terms = task.loss(batch(rows), epoch=0)
    out = task.model(batch(rows).videos)
    there = [at for at, row in enumerate(rows) if row not in FAILED | ABSENT]
    values, _ = features.read([rows[at] for at in there], "features")
    wanted = torch.zeros(())
    if there:
        target = torch.from_numpy(values[:, [0, 3]].mean(1))
        wanted = (1 - F.cosine_similarity(out.projected["t"][there], target)).sum() / len(there)
    torch.testing.assert_close(terms["feature"], wanted)
    labels = torch.tensor([row % CLASSES for row in rows])
    torch.testing.assert_close(terms["ce"], F.cross_entropy(out.logits, labels))  # over every clip, targets or not
    terms["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.model.parameters())


@pytest.mark.fault
@pytest.mark.parametrize("rows", PORTIONS, ids=["one away", "two away", "all away", "the split"])
def test_fault_29_the_student_divides_by_the_clips_with_a_selection(tmp_path: Path, rows: list[int]) -> None:
    arrays = {"tokens": (12,), "logits": (CLASSES,)}
    bank = load_bank([store(tmp_path, f"proxy{seed}", arrays, seed) for seed in (1, 2)], ROWS)
    assert set(np.flatnonzero(~bank.present.any(1).numpy())) == FAILED | ABSENT
    base, spd = supervised({"student": 12}), SPDConfig(top_k=2)
    task = StudentTask(TrainConfig(), spd, base, candidates(bank, torch.tensor([c.label for c in base.clips]), spd))
    terms = task.loss(batch(rows), epoch=0)
    out = task.model(batch(rows).videos)
    total, clips = torch.zeros(()), 0
    for at, row in enumerate(rows):
        label = torch.tensor([row % CLASSES])
        own = F.cross_entropy(out.logits[at : at + 1], label)
        distances = []
        for proxy in range(2):
            logits = bank.logits[row, proxy]
            sure = F.cross_entropy(logits[None], label)
            if row not in FAILED | ABSENT and logits.argmax() == label and sure < own and sure <= 4.0:
                distances.append(
                    1 - F.cosine_similarity(out.projected["student"][at], bank.tokens[row, proxy], dim=0, eps=1e-8)
                )
        if distances:
            total, clips = total + torch.stack(distances).mean(), clips + 1
    torch.testing.assert_close(terms["feature"], 5.0 * total / max(clips, 1))
    torch.testing.assert_close(terms["selected_share"], torch.tensor(clips / len(rows)))
