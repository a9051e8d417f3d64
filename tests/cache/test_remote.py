"""A cache in object storage, on a real S3 server of this test: planned, written, resumed, verified, read, grown."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import ClipIndex, FeatureStore, remove
from uniego.cache.coverage import count_rows
from uniego.cache.info import describe
from uniego.cache.ledger import Ledger
from uniego.cache.remote import open_mirror
from uniego.cache.stats import statistics
from uniego.cache.verify import verify_cache
from uniego.errors import FingerprintMismatch, IntegrityError, MissingInputError, UsageError
from uniego.pipeline.files import hash_bytes
from uniego.pipeline.objects import Objects, mirror, origin

pytest.importorskip("obstore", reason="object storage needs the extra s3")
server = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto")
boto3 = pytest.importorskip("boto3", reason="the S3 server of these tests is moto")

IDS = [*(f"clip{i}" for i in range(8)), "bad1", "none1", "zero1"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A place in a bucket that is this test's own."""
    settings = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{hash_bytes(request.node.nodeid.encode())}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/cache"


def test_the_storage_holds_the_bytes_of_a_cache_in_a_folder(
    tmp_path: Path, url: str, toy: Any, tree: Callable[[Path], dict[str, bytes | None]]
) -> None:
    toy.extract(tmp_path / "disk", IDS)
    toy.check(toy.extract(open_mirror(url, tmp_path / "mirror"), IDS), IDS)
    remote = Objects(url)
    stored = {name: remote.get(name) for name in remote.list()}
    on_disk = {name: data for name, data in tree(tmp_path / "disk").items() if data is not None and name != ".lock"}
    lines = on_disk.pop("toy/ledger/local.jsonl").splitlines(keepends=True)
    objects = [data for name, data in stored.items() if name.startswith("toy/ledger/")]
    assert sorted(objects) == sorted(lines)
    assert {name: data for name, data in stored.items() if not name.startswith("toy/ledger/")} == on_disk
    for name, data in stored.items():  # downloaded, it is a cache like any other
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    index = ClipIndex.open(tmp_path / "copy")
    toy.check(FeatureStore.open(tmp_path / "copy" / "toy", index), IDS)


def test_a_cache_in_a_folder_may_be_uploaded_as_it_is(
    tmp_path: Path, url: str, toy: Any, tree: Callable[[Path], dict[str, bytes | None]]
) -> None:
    toy.extract(tmp_path / "disk", IDS[:6])
    for name, data in tree(tmp_path / "disk").items():
        if data is not None:
            Objects(url).put(name, data)
    toy.check(toy.extract(open_mirror(url, tmp_path / "mirror"), IDS), IDS)


def test_anybody_opens_it_afresh(tmp_path: Path, url: str, toy: Any) -> None:
    toy.extract(open_mirror(url, tmp_path / "mirror"), IDS)
    root = open_mirror(url, tmp_path / "another")
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    toy.check(store, IDS)
    assert store.pending() == []
    rows = store.index.rows(toy.keys(IDS))
    assert count_rows(store, rows).done == 9
    found = statistics(store, "features", rows)
    values, present = store.read(rows, "features")
    np.testing.assert_allclose(found["mean"], values[present].astype(float).mean(), rtol=1e-12)
    report = describe(root)
    assert report["cache"] == url
    assert report["bytes"] == sum(found.size for found in Objects(url).list().values())
    (checked,) = verify_cache(root, ["toy"], full=True)
    assert (checked.shards, checked.problems) == (4, [])
    assert not list(root.rglob("c.*"))  # nothing but small files came down


def test_work_is_shared_and_goes_on(tmp_path: Path, url: str, toy: Any) -> None:
    """Two machines, one planner: each sees the other's shards; a killed one leaves its own to be done."""
    first = toy.open(open_mirror(url, tmp_path / "one"), IDS, task="one")
    root = open_mirror(url, tmp_path / "two")
    second = FeatureStore.open(root / "toy", ClipIndex.open(root), "two")
    for shard, store in ((0, first), (1, second), (1, first)):
        store.write_shard(shard, *toy.shard(store.index.keys(shard)))
    values = {name: data.tobytes() for name, data in toy.shard(first.index.keys(2))[0].items()}
    Objects(url).put("toy/features.zarr/features/c.2.0.0", values["features"])  # a chunk without its line
    root = open_mirror(url, tmp_path / "three")
    third = FeatureStore.open(root / "toy", ClipIndex.open(root), "three")
    assert third.pending() == [2, 3]
    toy.check(toy.extract(root, IDS, task="three"), IDS)


def test_it_grows_and_is_redone(tmp_path: Path, url: str, toy: Any) -> None:
    store = toy.extract(open_mirror(url, tmp_path / "mirror"), IDS)
    assert store.redo(1)
    assert store.pending() == [1]
    more = [*IDS, "new1", "new2"]
    toy.extract(open_mirror(url, tmp_path / "mirror"), more)
    root = open_mirror(url, tmp_path / "another")
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    toy.check(store, more)
    assert store.verify(full=True) == {}
    with pytest.raises(FingerprintMismatch):
        FeatureStore.create(root / "toy", store.index, toy.specs, {"weights": "other"}, {})
    remove(root / "toy")
    assert sorted(name.split("/")[0] for name in Objects(url).list()) == ["index", "index", "index.json"]


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_found(tmp_path: Path, url: str, toy: Any, damage: str) -> None:
    toy.extract(open_mirror(url, tmp_path / "mirror"), IDS)
    remote, name = Objects(url), "toy/features.zarr/features/c.1.0.0"
    good = remote.get(name)
    if damage == "delete":
        remote.delete(name)
    else:
        remote.put(name, bytes([good[0] ^ 1]) + good[1:] if damage == "flip" else good[:-1])
    root = open_mirror(url, tmp_path / "another")
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    with pytest.raises(IntegrityError, match=r"shard 1|c\.1\.0\.0"):
        store.read([3], "features")
    (checked,) = verify_cache(root, ["toy"], full=True)
    assert [(p.shard, p.marked) for p in checked.problems] == [(1, True)]
    again = toy.extract(open_mirror(url, tmp_path / "mirror"), IDS)
    toy.check(again, IDS)
    assert remote.get(name) == good


def test_a_mirror_follows_what_it_mirrors(tmp_path: Path, url: str) -> None:
    remote = Objects(url)
    for name in ("a.json", "b/c.json", "big/x.bin"):
        remote.put(name, name.encode())

    def small(name: str) -> bool:
        return name.endswith(".json")

    folder = mirror(url, tmp_path / "m", small)
    remote.put("a.json", b"another")
    remote.delete("b/c.json")
    kept = (folder / "b" / "c.json").read_bytes()
    mirror(url, folder, small)
    assert kept == b"b/c.json"
    assert {p.name: p.read_bytes() for p in folder.rglob("*.json") if p.name[0] != "."} == {"a.json": b"another"}
    found = origin(folder)
    assert found is not None
    assert found.url == url
    assert origin(tmp_path) is None
    mirror(f"{url}/elsewhere", folder, small)
    assert not (folder / "a.json").exists()


def test_what_is_not_there_is_said(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingInputError):
        ClipIndex.open(open_mirror(url, tmp_path / "mirror"))
    with pytest.raises(OSError, match="no-such-bucket"):
        open_mirror("s3://no-such-bucket-here/x", tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        open_mirror(url, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(FileNotFoundError):
        Objects(url).get("nothing")
    assert Objects(url).head("nothing") is None
    Objects(url).delete("nothing")


def test_a_put_may_be_conditional(url: str) -> None:
    remote = Objects(url)
    assert remote.put_over("a", b"1", None)
    assert not remote.put_over("a", b"2", None)
    assert remote.put_over("a", b"1", None)  # as if its answer had been lost
    seen = remote.head("a")
    assert remote.put_over("a", b"3", seen)
    assert not remote.put_over("a", b"4", seen)
    assert remote.get("a") == b"3"
    remote.delete("a")
    assert not remote.put_over("a", b"5", seen)
    assert remote.find("a") is None


def test_the_ledger_of_a_mirror_is_an_ordinary_one(tmp_path: Path, url: str, toy: Any) -> None:
    toy.extract(open_mirror(url, tmp_path / "mirror"), IDS)
    shutil.copytree(tmp_path / "mirror" / "toy" / "ledger", tmp_path / "ledger")
    ledger = Ledger(tmp_path / "ledger")
    ledger.refresh()
    assert ledger.shards() == [0, 1, 2, 3]
