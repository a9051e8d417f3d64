"""Files that were deleted, cut, flipped or replaced after they had been written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import ClipIndex, FeatureStore
from uniego.errors import IntegrityError, UniegoError

IDS = ["c1", "c2", "bad3", "zero4", "none5", "c6", "c7", "c8"]
CHUNKS = ["features/c.1.0.0", "logits/c.1.0", "status/c.1"]


def damage_is_found_and_mended(root: Path, toy: Any, *, fast: bool) -> None:
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    assert [*store.verify(full=True)] == [1]
    assert len(store.verify()) == fast
    assert store.pending() == ([1] if fast else [])
    if fast:
        assert store.status().tolist()[3:6] == [0, 0, 0]
        with pytest.raises(IntegrityError, match="toy: shard 1 "):
            store.read([0, 4], "features")
        toy.check(store, [key.clip_id for key in (*store.index.keys(0), *store.index.keys(2))])
        toy.extract(root, IDS)
        toy.check(store, IDS)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("size", [None, 0, 5])
def test_fault_09_11_deleted_and_truncated_chunks(
    tmp_path: Path, toy: Any, tree: Any, chunk: str, size: int | None
) -> None:
    toy.extract(tmp_path, IDS)
    before = tree(tmp_path)
    path = tmp_path / "toy" / "features.zarr" / chunk
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    damage_is_found_and_mended(tmp_path, toy, fast=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("chunk", CHUNKS)
def test_fault_10_every_flipped_byte_is_found(tmp_path: Path, toy: Any, chunk: str) -> None:
    store = toy.extract(tmp_path, IDS)
    path = tmp_path / "toy" / "features.zarr" / chunk
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert len(store.verify(full=True)) == 1
        if "status" not in chunk:
            with pytest.raises(IntegrityError, match=rf"{chunk} \(shard 1\) is damaged"):
                store.read(np.arange(8), chunk.split("/")[0])
    path.write_bytes(good)
    toy.check(store, IDS)


def test_a_chunk_of_fill_values_is_not_taken_for_features(tmp_path: Path, toy: Any, monkeypatch: Any) -> None:
    """The chunk vanishes between the size check and the reading."""
    store = toy.extract(tmp_path, IDS)
    (tmp_path / "toy/features.zarr/features/c.1.0.0").unlink()
    monkeypatch.setattr(type(store._shards), "_size_problem", lambda *_: "")
    with pytest.raises(IntegrityError, match=r"c\.1\.0\.0 .*reads as empty"):
        store.read(np.arange(8), "features")


@pytest.mark.parametrize("name", ["index.json", "index/rows-000000.tsv", "toy/manifest.json", "toy/ledger/local.jsonl"])
def test_flipped_bytes_elsewhere_never_give_wrong_numbers(tmp_path: Path, toy: Any, name: str) -> None:
    toy.extract(tmp_path, IDS)
    expected = {key: toy.shard([key]) for key in toy.keys(IDS)}
    path = tmp_path / name
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            store = FeatureStore.open(tmp_path / "toy", ClipIndex.open(tmp_path))
            rows = store.index.rows(expected)
            values, present = store.read(rows, "logits")
        except UniegoError:
            continue
        for number, (wanted, status, _) in enumerate(expected.values()):
            if present[number]:
                assert status[0] == 1
                np.testing.assert_array_equal(values[number], wanted["logits"][0])


def test_features_of_another_index_are_refused(tmp_path: Path, toy: Any) -> None:
    toy.extract(tmp_path / "a", IDS)
    other = ClipIndex.plan(tmp_path / "b", toy.keys(["x", *IDS[1:]]), 3)
    store = FeatureStore.open(tmp_path / "a" / "toy", other)
    with pytest.raises(IntegrityError, match="other clips"):
        store.read([7], "features")
    with pytest.raises(IntegrityError, match="other clips"):
        FeatureStore.create(tmp_path / "a" / "toy", other, toy.specs, toy.fingerprint, {})


def test_features_without_a_manifest_are_not_overwritten(tmp_path: Path, toy: Any, tree: Any) -> None:
    toy.extract(tmp_path, IDS)
    (tmp_path / "toy" / "manifest.json").unlink()
    before = tree(tmp_path)
    with pytest.raises(IntegrityError, match=r"holds features but no manifest\.json"):
        toy.open(tmp_path, IDS)
    assert tree(tmp_path) == before


def test_fault_04_torn_ledger_line(tmp_path: Path, toy: Any, tree: Any, caplog: pytest.LogCaptureFixture) -> None:
    toy.extract(tmp_path, IDS)
    before = tree(tmp_path)
    ledger = tmp_path / "toy/ledger/local.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-40])
    store = toy.open(tmp_path, IDS)
    assert "ignoring a torn line" in caplog.text
    assert store.pending() == [2]
    toy.extract(tmp_path, IDS)
    assert tree(tmp_path) == before


def test_zarr_metadata_must_agree_with_the_manifest(tmp_path: Path, toy: Any) -> None:
    toy.extract(tmp_path, IDS)
    path = tmp_path / "toy/features.zarr/features/zarr.json"
    good = path.read_text()
    for bad in (
        good.replace("float16", "float32"),
        good[:-5],
        good.replace('"zarr_format": 3', '"zarr_format": 9'),
    ):
        path.write_text(bad)
        with pytest.raises(IntegrityError, match=r"features/zarr\.json"):
            FeatureStore.open(tmp_path / "toy", ClipIndex.open(tmp_path))
