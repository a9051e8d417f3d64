"""A cache in object storage that several use at once: processes of one run, planners of several, gc."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from uniego.cache import ClipIndex, FeatureStore, gc, remove
from uniego.cache.publish import bring, publish_store, put, put_generation
from uniego.cache.remote import open_mirror
from uniego.cache.verify import store_names, verify_cache
from uniego.errors import UniegoError
from uniego.pipeline.objects import Objects, origin

pytest.importorskip("obstore", reason="object storage needs the extra s3")

IDS = [f"clip{number:03d}" for number in range(60)]
OLD, OURS, THEIRS = IDS[:8], [*IDS[:8], "ours1", "ours2"], [*IDS[:8], "theirs1", "theirs2"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path}/bucket"


WORKER = """
import sys, time
from pathlib import Path
import numpy as np
from uniego.cache import ArraySpec, ClipIndex, FeatureStore, RowKey
from uniego.cache.remote import open_mirror
url, mirror, part = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
root = open_mirror(url, mirror)
index = ClipIndex.plan(root, [RowKey(f"c{i:03d}", "x") for i in range(240)], 4)
store = FeatureStore.create(root / "t", index, {"features": ArraySpec((2,), "float32", ("x",))}, {}, {}, f"w{part}")
for shard in range(part, index.num_shards, 3):
    store.write_shard(shard, {"features": np.full((4, 2), shard, np.float32)}, [1] * 4)
    assert shard not in store.pending()
"""

LOOKER = """
import sys
from pathlib import Path
from uniego.cache import ClipIndex, FeatureStore
from uniego.cache.remote import open_mirror
from uniego.cache.verify import store_names
while True:
    root = open_mirror(sys.argv[1], Path(sys.argv[2]))
    if ClipIndex.exists(root) and "t" in store_names(root):
        FeatureStore.open(root / "t", ClipIndex.open(root)).coverage()
"""


def test_processes_of_one_run_share_a_mirror(tmp_path: Path, url: str) -> None:
    """Three workers, that all plan and create, beside two that do nothing but what `uniego status` does."""
    place = (url, str(tmp_path / "mirror"))
    lookers = [subprocess.Popen([sys.executable, "-c", LOOKER, *place]) for _ in range(2)]
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, *place, str(part)]) for part in range(3)]
    try:
        assert [process.wait(100) for process in workers] == [0, 0, 0]
        assert [process.poll() for process in lookers] == [None, None]
    finally:
        for process in (*lookers, *workers):
            process.kill()
            process.wait()
    for folder in (tmp_path / "mirror", tmp_path / "afresh"):
        root = open_mirror(url, folder)
        store = FeatureStore.open(root / "t", ClipIndex.open(root))
        assert store.coverage()["done"] == 240
        assert store.verify(full=True) == {}
        copies = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        assert {name for name in copies if name[0] != "." and not name.endswith(".partial")} == {
            name for name in Objects(url).list() if "/c." not in name
        }


def test_temporary_files_and_fresh_lines_of_others_stay(tmp_path: Path, url: str, toy: Any) -> None:
    store = toy.open(open_mirror(url, tmp_path / "mirror"), IDS)
    partial = store.path / "ledger" / ".x.jsonl.1-2.partial"
    store.write_shard(0, *toy.shard(store.index.keys(0)))
    partial.write_bytes(b"on its way")
    lines = {path.name: path.stat().st_ino for path in partial.parent.iterdir()}
    open_mirror(url, tmp_path / "mirror")
    assert {path.name: path.stat().st_ino for path in partial.parent.iterdir()} == lines


def test_a_cut_copy_is_fetched_again(tmp_path: Path, url: str, toy: Any) -> None:
    root = toy.extract(open_mirror(url, tmp_path / "mirror"), OLD).index.root
    open_mirror(url, root)
    (root / "index.json").write_bytes(b"")
    toy.check(toy.extract(open_mirror(url, root), OLD), OLD)


def test_who_planned_from_an_older_mirror_loses_nothing(tmp_path: Path, url: str, toy: Any) -> None:
    """Teachers are loaded between the opening of the mirror and the plan: minutes."""
    toy.extract(open_mirror(url, tmp_path / "ours"), OLD)
    theirs = open_mirror(url, tmp_path / "theirs")
    toy.extract(open_mirror(url, tmp_path / "ours"), OURS)
    toy.check(toy.extract(theirs, THEIRS), THEIRS)
    for folder in ("ours", "afresh"):
        root = open_mirror(url, tmp_path / folder)
        store = FeatureStore.open(root / "toy", ClipIndex.open(root))
        toy.check(store, [*OURS, *THEIRS[8:]])
        assert store.verify(full=True) == {}


def test_a_store_made_meanwhile_is_not_swept_away(tmp_path: Path, url: str, toy: Any) -> None:
    theirs = open_mirror(url, tmp_path / "theirs")
    toy.extract(open_mirror(url, tmp_path / "ours"), OLD)
    store = toy.open(theirs, OLD)
    assert store.pending() == []
    toy.check(store, OLD)


def test_of_two_plans_at_one_moment_one_is_refused_and_may_try_again(tmp_path: Path, url: str, toy: Any) -> None:
    toy.extract(open_mirror(url, tmp_path / "ours"), OLD)
    theirs, remote = open_mirror(url, tmp_path / "theirs"), Objects(url)
    seen = bring(remote, theirs, "index.json", "index")
    toy.extract(open_mirror(url, tmp_path / "ours"), OURS)
    good = {name: remote.get(name) for name in remote.list()}
    other = put_generation(remote, "index/rows-000001.tsv", b"theirs1\tx\n")
    assert other.startswith("index/rows-000001-")
    with pytest.raises(UniegoError, match=r"index\.json: another process .*run the same command again"):
        put(remote, theirs, "index.json", b"{}", seen["index.json"])
    assert {name: remote.get(name) for name in good} == good
    assert ClipIndex.open(theirs).num_rows == 11
    toy.check(toy.extract(theirs, THEIRS), THEIRS)


def test_of_two_makers_of_a_store_one_is_refused(tmp_path: Path, url: str, toy: Any) -> None:
    ours, theirs = open_mirror(url, tmp_path / "ours"), open_mirror(url, tmp_path / "theirs")
    toy.extract(ours, OLD)
    index = ClipIndex.plan(theirs, toy.keys(OLD))
    manifest = (ours / "toy" / "manifest.json").read_bytes()
    (theirs / "toy").mkdir()
    (theirs / "toy" / "manifest.json").write_bytes(manifest.replace(b"w1", b"w2"))  # as `create` would, a moment ago
    with pytest.raises(UniegoError, match="run the same command again"):
        publish_store(Objects(url), theirs, "toy", {})
    assert Objects(url).get("toy/manifest.json") == manifest
    assert (theirs / "toy" / "manifest.json").read_bytes() == manifest
    toy.check(FeatureStore.create(theirs / "toy", index, toy.specs, toy.fingerprint, {}), OLD)


def test_a_planner_killed_before_its_index_leaves_nothing_in_the_way(tmp_path: Path, url: str, toy: Any) -> None:
    toy.extract(open_mirror(url, tmp_path / "ours"), OLD)
    put_generation(Objects(url), "index/rows-000001.tsv", b"theirs1\tx\n")
    toy.check(toy.extract(open_mirror(url, tmp_path / "ours"), OURS), OURS)
    toy.check(toy.extract(open_mirror(url, tmp_path / "theirs"), THEIRS), THEIRS)


def test_a_store_removed_elsewhere_is_gone(tmp_path: Path, url: str, toy: Any) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    toy.extract(open_mirror(url, ours), OLD)
    stale = toy.extract(open_mirror(url, theirs), OLD)  # open in another process, say
    remove(ours / "toy")
    open_mirror(url, theirs)
    assert store_names(theirs) == []
    assert list(verify_cache(theirs, store_names(theirs))) == []
    assert stale.coverage()["pending"] == 8


def test_garbage_counts_what_the_storage_holds(tmp_path: Path, url: str, toy: Any) -> None:
    root = toy.extract(open_mirror(url, tmp_path / "mirror"), OLD).index.root
    held = sum(found.size for found in Objects(url).list("toy").values())
    garbage = gc.find(root, ClipIndex.open(root).rows(toy.keys(OLD)), [])
    assert (garbage.place, garbage.stores, garbage.bytes) == (url, {"toy": held}, held)
    gc.collect(garbage)
    assert Objects(url).list("toy") == {}
    assert origin(root) is not None
