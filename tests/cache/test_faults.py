"""Power loss, a disk that is really full, and caches of older programs."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import ClipIndex, FeatureStore, RowStatus
from uniego.cache.gc import collect, find
from uniego.cache.verify import verify_cache

DATA = Path(__file__).parents[1] / "data"
IDS = [f"c{number}" for number in range(9)]


@pytest.mark.fault
@pytest.mark.parametrize("lost", ["files", "lines", "folder entries"])
def test_fault_03_power_loss_between_rename_and_ledger(tmp_path: Path, toy: Any, tree: Any, lost: str) -> None:
    """What reached the disk in another order than it was written: nothing is trusted by the ledger alone."""
    toy.extract(tmp_path, IDS)
    before = tree(tmp_path)
    chunks = tmp_path / "toy" / "features.zarr"
    ledger = tmp_path / "toy" / "ledger" / "local.jsonl"
    if lost == "files":  # lines without their files
        for name in ("features/c.1.0.0", "logits/c.2.0"):
            (chunks / name).write_bytes(b"")
    elif lost == "lines":  # files without their lines
        ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    else:
        shutil.rmtree(chunks / "status")
        shutil.copytree(tmp_path / "toy", tmp_path / "again", ignore=lambda *_: ["c.1.0.0", "c.2.0.0"])
        shutil.rmtree(tmp_path / "toy")
        (tmp_path / "again").rename(tmp_path / "toy")
        (chunks / "status").mkdir()
        (chunks / "status" / "zarr.json").write_bytes(before["toy/features.zarr/status/zarr.json"])
    store = FeatureStore.open(tmp_path / "toy", ClipIndex.open(tmp_path))
    assert store.pending() == ([0, 1, 2] if lost == "folder entries" else [1, 2])
    assert (store.status([8]) == RowStatus.PENDING).all()
    toy.extract(tmp_path, IDS)
    toy.check(store, IDS)
    assert tree(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; without the right to mount one the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault
def test_fault_06_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path, toy: Any, tree: Any) -> None:
    root = small_disk / "cache"
    toy.extract(tmp_path / "good", IDS)
    toy.open(root, IDS)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while shutil.disk_usage(small_disk).free:
            file.write(bytes(4096))
    with pytest.raises(OSError, match=r"bytes needed, \d+ free") as caught:
        toy.extract(root, IDS)
    assert caught.value.errno == errno.ENOSPC
    assert not list(root.rglob("*.partial"))
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    assert store.failures() == []
    assert store.verify(full=True) == {}
    ballast.unlink()
    toy.extract(root, IDS)
    assert tree(root) == tree(tmp_path / "good")


def test_a_cache_of_schema_version_1_loads_for_ever(tmp_path: Path, toy: Any, tree: Any) -> None:
    """Written once and kept; never written again by a newer program. Its first lines do not name their maker."""
    expected = json.loads((DATA / "cache-v1.json").read_text(encoding="utf-8"))
    root = Path(shutil.copytree(DATA / "cache-v1", tmp_path / "cache"))
    before = tree(root)
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    clips = list(expected["clips"])
    rows = store.index.rows(toy.keys(clips))
    assert rows.tolist() == [entry["row"] for entry in expected["clips"].values()]
    for row, entry in zip(rows.tolist(), expected["clips"].values(), strict=True):
        assert store.status([row])[0] == RowStatus[entry["status"]]
        for name, spec in store.arrays.items():
            values, present = store.read([row], name)
            assert present[0] == (name in entry)
            if name in entry:
                np.testing.assert_array_equal(values[0], np.reshape(entry[name], spec.shape).astype(spec.dtype))
    assert [failure.reason for failure in store.failures()] == ["truncated"]
    assert store.verify(full=True) == {}
    assert tree(root) == before

    store = FeatureStore.create(root / "toy", ClipIndex.open(root), toy.specs, expected["fingerprint"], {})
    assert store.pending() == []
    store = toy.extract(root, [*clips, "c9"])  # and may grow
    toy.check(store, ["c1", "c9"])
    (checked,) = verify_cache(root, ["toy"], full=True)
    assert (checked.shards, checked.problems) == (4, [])
    garbage = find(root, store.index.rows(toy.keys(["c9"])), {"toy"})
    assert [*garbage.shards["toy"]] == [0, 1, 2]
    collect(garbage)
    toy.check(store, ["c9"])
