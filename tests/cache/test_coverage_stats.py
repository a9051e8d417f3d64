"""Counts, failures and statistics of a store: exact, over the asked rows alone, and never over what is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import ArraySpec, ClipIndex, FeatureStore, RowKey, RowStatus, stats
from uniego.cache.coverage import Coverage, count_rows, failed_rows
from uniego.cache.info import describe
from uniego.cache.stats import statistics
from uniego.errors import IntegrityError

IDS = [*(f"clip{i}" for i in range(7)), "bad1", "bad2", "none1", "zero1"]


def rows_of(store: FeatureStore, toy: Any, ids: list[str]) -> np.ndarray:
    return store.index.rows(toy.keys(ids))


def test_counts_tell_done_failed_missing_and_pending_apart(tmp_path: Path, toy: Any) -> None:
    store = toy.open(tmp_path, IDS)
    assert count_rows(store, rows_of(store, toy, IDS)) == Coverage(11, 0, 0, 0, 11)
    store = toy.extract(tmp_path, IDS)
    assert count_rows(store, rows_of(store, toy, IDS)) == Coverage(11, 8, 2, 1, 0)
    asked = ["zero1", "none1", "bad2", "clip3", "unknown"]
    found = count_rows(store, rows_of(store, toy, asked))
    assert found == Coverage(5, 2, 1, 1, 1)
    assert found.share == 0.4
    assert count_rows(None, np.array([-1, -1])) == Coverage(2, 0, 0, 0, 2)
    assert count_rows(store, np.empty(0, np.int64)).share == 1.0


def test_failures_are_those_of_the_asked_rows(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, IDS)
    rows = rows_of(store, toy, ["clip0", "bad2", "unknown"])
    ((row, failure),) = failed_rows(store, rows)
    assert (row, failure.clip_id, failure.reason) == (rows[1], "bad2", "truncated")
    assert [f.clip_id for _, f in failed_rows(store, rows_of(store, toy, IDS))] == ["bad1", "bad2"]


def test_a_failure_of_an_older_video_of_the_same_name_is_not_listed(tmp_path: Path, toy: Any) -> None:
    toy.extract(tmp_path, ["bad1", "clip1"])
    index = ClipIndex.plan(tmp_path, [RowKey("bad1", "another video"), *toy.keys(["clip1"])])
    store = FeatureStore.create(tmp_path / "toy", index, toy.specs, toy.fingerprint, {"teacher": "toy"})
    rows = index.rows([RowKey("bad1", "another video"), *toy.keys(["clip1"])])
    assert list(failed_rows(store, rows)) == []
    assert count_rows(store, rows) == Coverage(2, 1, 0, 0, 1)


@pytest.mark.parametrize("together", [1, 2, 32])
def test_statistics_are_those_of_numpy(
    tmp_path: Path, toy: Any, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_TOGETHER", together)
    monkeypatch.setattr(stats, "_PIECE", together)
    store = toy.extract(tmp_path, [*IDS, *(f"more{i}" for i in range(20))])
    rows = np.append(rows_of(store, toy, IDS), -1)
    values, present = store.read(rows, "features")
    vectors = values[present].reshape(-1, 3).astype(np.float64)
    found = statistics(store, "features", rows)
    assert (found["clips"], found["vectors"], found["dead"]) == (8, 16, [])
    np.testing.assert_allclose(found["per_dimension"]["mean"], vectors.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["per_dimension"]["variance"], vectors.var(0), rtol=1e-12)
    np.testing.assert_allclose([found["mean"], found["variance"]], [vectors.mean(), vectors.var()], rtol=1e-12)
    norms = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(list(found["norm"].values()), [norms.mean(), norms.min(), norms.max()], rtol=1e-12)
    assert found["norm"]["min"] == 0.0  # the genuine zero counts
    assert statistics(store, "logits", rows)["vectors"] == 8


def test_statistics_of_nothing_are_nothing(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, IDS)
    found = statistics(store, "features", rows_of(store, toy, ["bad1", "none1"]))
    assert (found["clips"], found["vectors"], found["mean"], found["dead"]) == (0, 0, None, None)


def test_dead_dimensions_are_constant_ones(tmp_path: Path) -> None:
    index = ClipIndex.plan(tmp_path, [RowKey(f"c{i}", "x") for i in range(9)], 4)
    store = FeatureStore.create(tmp_path / "t", index, {"features": ArraySpec((2, 4), "float16", ("t", "d"))}, {}, {})
    values = np.random.default_rng(0).normal(size=(9, 2, 4)).astype(np.float32)
    values[..., 1], values[..., 3] = 0.0, 0.1  # 0.1 is no number of float16: constant all the same
    for shard in range(3):
        rows = list(index.shard_rows(shard))
        store.write_shard(shard, {"features": values[rows]}, np.full(len(rows), RowStatus.DONE))
    assert statistics(store, "features", np.arange(9))["dead"] == [1, 3]


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_statistics_refuse_damaged_shards(tmp_path: Path, toy: Any, damage: str) -> None:
    store = toy.extract(tmp_path, IDS)
    path = tmp_path / "toy/features.zarr/features/c.0.0.0"
    good = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(good[:-1] if damage == "cut" else bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(IntegrityError, match="shard"):
        statistics(store, "features", rows_of(store, toy, IDS))
    others = [row for row in rows_of(store, toy, IDS) if row >= 3]
    assert statistics(store, "features", np.array(others))["clips"]


def test_a_cache_describes_itself(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, IDS)
    found = describe(tmp_path)
    assert (found["rows"], found["shards"], found["rows_per_shard"]) == (11, 4, 3)
    entry = found["stores"]["toy"]
    assert entry["arrays"]["features"] == {"dims": {"frame": 2, "feature": 3}, "dtype": "float16"}
    assert [entry[name] for name in ("done", "failed", "missing", "pending", "shards")] == [8, 2, 1, 0, 4]
    on_disk = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert (found["files"], found["bytes"]) == (len(on_disk), sum(on_disk))
    assert not entry["random"]
    (store.path / "manifest.json").unlink()
    assert "no feature store" in describe(tmp_path)["stores"]["toy"]["problem"]
