"""What is written is read, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from uniego.cache import (
    ArraySpec,
    ClipIndex,
    Failure,
    FeatureStore,
    NonFiniteError,
    RowKey,
    RowStatus,
    ShardError,
    fits,
    remove,
)
from uniego.errors import FingerprintMismatch, IntegrityError, MissingInputError, UsageError

IDS = ["c1", "c2", "bad3", "zero4", "none5", "c6", "c7", "c8"]


def test_write_and_read(tmp_path: Path, toy: Any) -> None:
    store = toy.open(tmp_path, IDS)
    assert store.pending() == [0, 1, 2]
    assert store.coverage() == {"clips": 8, "pending": 8, "done": 0, "failed": 0, "absent": 0}
    toy.extract(tmp_path, IDS)
    assert store.pending() == []
    toy.check(store, IDS)
    toy.check(FeatureStore.open(tmp_path / "toy", ClipIndex.open(tmp_path)), reversed(IDS))
    assert store.coverage() == {"clips": 8, "pending": 0, "done": 6, "failed": 1, "absent": 1}
    assert store.failures() == [Failure("bad3", "truncated", "bad3 ends early")]
    assert store.verify() == store.verify(full=True) == {}


def test_the_tree_is_the_same_every_time(tmp_path: Path, toy: Any, tree: Any) -> None:
    toy.extract(tmp_path / "a", IDS)
    toy.extract(tmp_path / "b", reversed(IDS))
    files = tree(tmp_path / "a")
    assert files == tree(tmp_path / "b")
    toy.extract(tmp_path / "a", IDS)
    assert files == tree(tmp_path / "a")
    assert files["toy/features.zarr/features/c.0.0.0"] is not None


def test_fault_12_zeros_are_stored_and_present(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, ["zero1", "zero2", "zero3"])
    assert (tmp_path / "toy/features.zarr/features/c.0.0.0").stat().st_size == 3 * 6 * 2 + 4
    values, present = store.read([0, 1, 2], "features")
    assert present.all()
    assert (values == 0).all()


def test_unknown_rows_are_not_present(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, IDS)
    values, present = store.load("features", [-1, 1, -1], "float32")
    assert present.tolist() == [False, True, False]
    assert values.dtype == np.float32
    assert np.isnan(values[[0, 2]]).all()
    assert store.status([-1]).tolist() == [RowStatus.PENDING]
    assert store.coverage([-1, 1]) == {"clips": 2, "pending": 1, "done": 1, "failed": 0, "absent": 0}
    assert store.read([], "features")[0].shape == (0, 2, 3)
    for rows in ([8], [-2], [[0]]):
        with pytest.raises(IndexError, match="rows of the clip index"):
            store.read(rows, "features")
    with pytest.raises(UsageError, match="no array 'tokens'; it has features, logits"):
        store.read([0], "tokens")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1, 49), max_size=80), st.integers(1, 400))
def test_rows_in_any_order_and_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], block: int
) -> None:
    store = _fifty(tmp_path_factory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniego.cache.reading._BLOCK_BYTES", block)
        values, present = store.read(rows, "x")
    assert present.tolist() == [row >= 0 and row % 7 != 0 for row in rows]
    assert values[present].ravel().tolist() == [row for row in rows if row >= 0 and row % 7]


_STORES: dict[str, FeatureStore] = {}


def _fifty(factory: pytest.TempPathFactory) -> FeatureStore:
    """50 rows; row i holds i, every seventh is absent."""
    if not _STORES:
        root = factory.mktemp("fifty")
        index = ClipIndex.plan(root, [RowKey(f"{n:02d}", "") for n in range(50)], 4)
        store = FeatureStore.create(root / "s", index, {"x": ArraySpec((1,), "float32", ("d",))}, {}, {})
        for shard in store.pending():
            rows = np.array(index.shard_rows(shard))
            status = np.where(rows % 7, RowStatus.DONE, RowStatus.ABSENT)
            store.write_shard(shard, {"x": rows[:, None].astype(np.float32)}, status)
        _STORES["fifty"] = store
    return _STORES["fifty"]


def test_plain_zarr_explains_the_store(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, IDS)
    group = zarr.open_group(str(tmp_path / "toy" / "features.zarr"), mode="r")
    assert sorted(group.array_keys()) == ["features", "logits", "status"]
    assert group.attrs["teacher"] == group.attrs["name"] == "toy"
    assert group.attrs["fingerprint"] == toy.fingerprint
    assert "index.json" in str(group.attrs["rows"])
    features = group["features"]
    assert features.metadata.dimension_names == ("clip", "frame", "feature")
    assert features.attrs["axes"] == {"clip": "row of the clip index", "frame": 2, "feature": 3}
    assert (features.shape, features.dtype, features.chunks) == ((8, 2, 3), np.float16, (3, 2, 3))
    codes = group["status"][:]
    np.testing.assert_array_equal(codes, store.status())
    assert group["status"].attrs["codes"]["3"].startswith("absent")
    np.testing.assert_array_equal(np.isnan(features[:]).all(axis=(1, 2)), codes != 1)


def test_growth(tmp_path: Path, toy: Any, tree: Any) -> None:
    toy.extract(tmp_path, IDS[:4])
    before = tree(tmp_path)
    old = FeatureStore.open(tmp_path / "toy", ClipIndex.open(tmp_path))
    index = ClipIndex.plan(tmp_path, toy.keys(IDS))
    with pytest.raises(ShardError, match="beyond the store's end"):
        FeatureStore.open(tmp_path / "toy", index).write_shard(2, *toy.shard(index.keys(2)))
    store = toy.open(tmp_path, IDS)
    assert store.pending() == [2, 3]
    assert store.status().tolist() == [2, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    toy.extract(tmp_path, IDS)
    toy.check(store, IDS)
    toy.check(old, IDS[:4])
    assert store.coverage()["clips"] == 8
    kept = [name for name, data in before.items() if name.split("/")[-1].startswith(("c.", "rows-"))]
    assert len(kept) == 7
    assert all(tree(tmp_path)[name] == before[name] for name in kept)
    toy.open(tmp_path, IDS[:1])
    assert zarr.open_array(str(tmp_path / "toy/features.zarr/features"), mode="r").shape == (10, 2, 3)


def test_fault_17_a_moved_cache_is_accepted(tmp_path: Path, toy: Any) -> None:
    toy.extract(tmp_path / "a", IDS)
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a", tmp_path / "b" / "elsewhere")
    store = toy.open(tmp_path / "b" / "elsewhere", IDS)
    assert store.pending() == []
    toy.check(store, IDS)


def test_fault_15_16_another_fingerprint_is_refused_and_nothing_touched(tmp_path: Path, toy: Any, tree: Any) -> None:
    index = toy.extract(tmp_path, IDS).index
    before = tree(tmp_path)
    other = {"weights": "w2", "preprocessing": {"size": 256}}
    with pytest.raises(FingerprintMismatch, match="--overwrite") as caught:
        FeatureStore.create(tmp_path / "toy", index, toy.specs, other, {})
    assert caught.value.fields == {"weights": ("w1", "w2"), "preprocessing.size": (224, 256)}
    specs = {**toy.specs, "features": toy.specs["features"]._replace(dtype="float32")}
    with pytest.raises(FingerprintMismatch, match=r"arrays\.features: stored '\[2, 3\] float16'"):
        FeatureStore.create(tmp_path / "toy", index, specs, toy.fingerprint, {})
    assert tree(tmp_path) == before
    remove(tmp_path / "toy")
    store = FeatureStore.create(tmp_path / "toy", index, toy.specs, other, {})
    assert store.pending() == [0, 1, 2]


def test_remove_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"1")
    with pytest.raises(UsageError, match=r"is no feature store, it holds one\.jpg"):
        remove(tmp_path / "photos")
    with pytest.raises(UsageError, match="is no feature store"):
        FeatureStore.create(
            tmp_path / "photos", ClipIndex.plan(tmp_path, []), {"x": ArraySpec((1,), dims=("d",))}, {}, {}
        )
    assert (tmp_path / "photos" / "one.jpg").exists()


def test_attributes_may_change_and_tuples_are_lists(tmp_path: Path, toy: Any) -> None:
    index = ClipIndex.plan(tmp_path, toy.keys(IDS))
    first = FeatureStore.create(tmp_path / "t", index, toy.specs, {"mean": (1, 2)}, {"library": "1.0"})
    again = FeatureStore.create(tmp_path / "t", index, toy.specs, {"mean": [1, 2]}, {"library": "2.0"})
    assert first.attributes == again.attributes == {"library": "1.0"}
    with pytest.raises(UsageError, match="not plain JSON"):
        FeatureStore.create(tmp_path / "u", index, toy.specs, {"mean": np.ones(2)}, {})


@pytest.mark.parametrize("spec", [ArraySpec((2,), "bfloat16", ("d",)), ArraySpec((2,)), ArraySpec((0,), dims=("d",))])
def test_arrays_that_cannot_be_stored(tmp_path: Path, spec: ArraySpec) -> None:
    with pytest.raises(UsageError, match="array x: "):
        FeatureStore.create(tmp_path / "t", ClipIndex.plan(tmp_path, []), {"x": spec}, {}, {})


def test_fault_13_14_what_does_not_fit_is_refused_and_nothing_written(tmp_path: Path, toy: Any, tree: Any) -> None:
    store = toy.open(tmp_path, IDS)
    before = tree(tmp_path)
    values, status, failures = toy.shard(store.index.keys(1))

    def write(error: type[Exception], match: str, **changed: Any) -> None:
        given: dict[str, Any] = {"values": values, "status": status, "failures": failures, **changed}
        with pytest.raises(error, match=match):
            store.write_shard(1, **given)

    features = values["features"].astype(np.float32)
    for bad in (np.nan, np.inf, 65520.0):
        broken = features.copy()
        broken[1, 0, 2] = bad
        assert fits(broken, "float16").tolist() == [True, False, True]
        write(NonFiniteError, r"features: rows \[1\]", values={**values, "features": broken})
    write(
        ShardError,
        r"floating \(3, 2, 3\) wanted, got float16 \(3, 2, 2\)",
        values={**values, "features": values["features"][..., :2]},
    )
    write(ShardError, "got int64", values={**values, "features": np.ones((3, 2, 3), np.int64)})
    write(ShardError, "arrays .* wanted", values={"features": features})
    write(ShardError, "RowStatus", status=[1, 1])
    write(ShardError, "RowStatus", status=[1, 1, 4])
    write(ShardError, "one failure for each", failures=[Failure("c6", "r", "m")])
    assert tree(tmp_path) == before
    features[2] = np.nan
    store.write_shard(
        1,
        {**values, "features": features},
        [1, 1, 2],
        [Failure(store.index.keys(1)[2].clip_id, "non_finite", "")],
    )
    assert store.status([3, 4, 5]).tolist() == [1, 1, 2]


BORDERS = [65504.0, 65519.99, 65520.0, 65536.0, 3.4028234e38, 3.4028235677e38, 3.40282357e38, 1e300, 5e-324]


@given(
    st.lists(st.floats() | st.sampled_from([*BORDERS, *(-x for x in BORDERS)]), min_size=1),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from(["float16", "float32"]),
)
def test_fits_is_what_survives_the_cast(values: list[float], source: str, stored: str) -> None:
    with np.errstate(over="ignore"):
        array = np.array(values).astype(source)[:, None]
        expected = np.isfinite(array.astype(stored)).all(axis=1)
    np.testing.assert_array_equal(fits(array, stored), expected)


def test_a_run_without_some_clips_leaves_them_for_a_run_that_has_them(tmp_path: Path, toy: Any) -> None:
    store = toy.open(tmp_path, ["a", "b", "bad", "d", "e"])
    values, _, failures = toy.shard(store.index.keys(0))
    store.write_shard(0, values, [1, 0, 2], failures)
    assert store.pending() == [1]
    assert store.pending([0, 2]) == []
    assert store.pending([1, -1]) == [0]
    assert store.pending([0, 4]) == [1]
    store.write_shard(0, values, [0, 1, 0])
    assert store.status([0, 1, 2]).tolist() == [1, 1, 2]
    assert store.failures() == failures
    np.testing.assert_array_equal(store.read([0, 1], "logits")[0], values["logits"][:2])
    assert store.verify(full=True) == {}
    lines = (tmp_path / "toy/ledger/local.jsonl").read_text().splitlines()
    assert ['"void":true' in line for line in lines] == [False, True, False]


def test_a_shard_without_any_features(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path, ["bad1", "bad2", "none3"])
    assert store.pending() == []
    assert store.coverage() == {"clips": 3, "pending": 0, "done": 0, "failed": 2, "absent": 1}
    assert not store.read([0, 1, 2], "features")[1].any()


def test_missing_stores_and_strange_names(tmp_path: Path, toy: Any) -> None:
    index = ClipIndex.plan(tmp_path, toy.keys(IDS))
    with pytest.raises(MissingInputError, match="no feature store"):
        FeatureStore.open(tmp_path / "none", index)
    toy.extract(tmp_path, IDS)
    with pytest.raises(UsageError, match="task name"):
        FeatureStore.open(tmp_path / "toy", index, task="../x")
    with pytest.raises(IntegrityError, match="rows per shard"):
        FeatureStore.open(tmp_path / "toy", ClipIndex.plan(tmp_path / "other", toy.keys(IDS), 5))
