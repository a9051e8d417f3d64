"""Targets and banks: which rows are averaged, what is absent, whatever order the clips are asked for in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from uniego.cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey, RowStatus
from uniego.stages import targets
from uniego.stages.targets import load_bank, load_targets, target_rows

CLIPS, STEPS, WIDTH = 20, 5, 3


def filled(root: Path, name: str, arrays: dict[str, tuple[int, ...]], seed: int) -> FeatureStore:
    """A store of 20 clips in shards of 6; clip 3 failed, clip 7 has no such input, clip 11 is a genuine zero."""
    index = ClipIndex.plan(root, [RowKey(f"c{i:02d}", "x") for i in range(CLIPS)], rows_per_shard=6)
    specs = {key: ArraySpec(shape, "float32", tuple("ab"[: len(shape)])) for key, shape in arrays.items()}
    store = FeatureStore.create(root / name, index, specs, {"seed": seed}, {})
    rng = np.random.default_rng(seed)
    data = {key: rng.normal(size=(CLIPS, *shape)).astype(np.float32) for key, shape in arrays.items()}
    for key in data:
        data[key][11] = 0.0
    status = np.full(CLIPS, RowStatus.DONE, dtype=np.uint8)
    status[3], status[7] = RowStatus.FAILED, RowStatus.ABSENT
    for shard in range(index.num_shards):
        rows = list(index.shard_rows(shard))
        failures = [Failure("c03", "truncated", "cut")] if 3 in rows else []
        store.write_shard(shard, {key: block[rows] for key, block in data.items()}, status[rows], failures)
    return store


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (1, [0] * 8),
        (3, [0, 0, 0, 0, 1, 1, 1, 2]),
        (8, list(range(8))),
        (16, [0, 2, 4, 6, 8, 10, 12, 15]),
        (100, [0, 14, 28, 42, 56, 70, 84, 99]),
    ],
)
def test_rows_are_the_released_codes(rows: int, wanted: list[int]) -> None:
    assert target_rows(rows, 8).tolist() == wanted


@pytest.mark.parametrize("block", [8 << 20, 1])
def test_targets_in_any_order_and_in_blocks(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_BLOCK_BYTES", block)
    store = filled(tmp_path, "teacher", {"features": (STEPS, WIDTH)}, seed=1)
    order = np.random.default_rng(0).permutation(CLIPS)
    loaded = load_targets(store, order, count=8)
    values, present = store.read(order, "features")
    assert loaded.present.tolist() == present.tolist()
    assert sorted(order[~present].tolist()) == [3, 7]
    wanted = values[:, target_rows(STEPS, 8)].mean(axis=1)
    torch.testing.assert_close(loaded.values[loaded.present], torch.from_numpy(wanted[present]))
    assert (loaded.values[~loaded.present] == 0).all()
    assert loaded.present[order.tolist().index(11)]  # a zero that was computed is a value


def test_unknown_clips_are_not_present(tmp_path: Path) -> None:
    store = filled(tmp_path, "teacher", {"features": (STEPS, WIDTH)}, seed=1)
    loaded = load_targets(store, np.array([0, -1, 2]), count=8)
    assert loaded.present.tolist() == [True, False, True]


def test_a_bank_has_a_column_per_proxy(tmp_path: Path) -> None:
    arrays = {"tokens": (4,), "logits": (2,)}
    stores = [filled(tmp_path, f"proxy-{seed}", arrays, seed) for seed in (1, 2)]
    order = np.array([5, 3, 0, 19])
    bank = load_bank(stores, order)
    assert bank.tokens.shape == (4, 2, 4)
    assert bank.logits.shape == (4, 2, 2)
    assert bank.present.tolist() == [[True, True], [False, False], [True, True], [True, True]]
    for column, store in enumerate(stores):
        values, _ = store.read(order, "logits")
        torch.testing.assert_close(bank.logits[[0, 2, 3], column], torch.from_numpy(values[[0, 2, 3]]))
    assert bank.tokens.isfinite().all()
