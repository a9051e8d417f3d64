"""docs/cache-format.md as a specification: a reader written from that page alone, without uniego, reads a cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from uniego.cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey

PENDING, DONE, FAILED, ABSENT = 0, 1, 2, 3


def blake(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Reader:
    """What another program would write: json, hashlib and Zarr, nothing of ours."""

    def __init__(self, cache: Path, store: str) -> None:
        self.store = cache / store
        index = json.loads((cache / "index.json").read_text())
        assert index["schema_version"] == 1
        self.per_shard: int = index["rows_per_shard"]
        self.rows: dict[tuple[str, str], int] = {}  # (clip_id, identity): row
        self.lines: dict[int, list[bytes]] = {}  # shard: its lines
        for generation in index["generations"]:
            data = (cache / generation["file"]).read_bytes()
            assert blake(data) == generation["hash"]
            lines = data.split(b"\n")[:-1]
            assert len(lines) == generation["rows"]
            for i, line in enumerate(lines):
                row = generation["start"] + i
                clip_id, identity = line.decode().split("\t")
                self.rows[clip_id, identity] = row
                self.lines.setdefault(row // self.per_shard, []).append(line)
        self.manifest = json.loads((self.store / "manifest.json").read_text())
        self.entries = self._ledger()

    def _ledger(self) -> dict[int, dict[str, Any]]:
        """shard: the line that counts."""
        lines: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}
        for path in sorted((self.store / "ledger").glob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:
                body, _, check = line.rpartition(b',"check":"')
                if blake(body + b"}").encode() + b'"}' != check:
                    continue
                record = json.loads(line)
                lines.setdefault(record["shard"], {})[path.name, record.get("maker", "")] = record  # the last
        entries: dict[int, dict[str, Any]] = {}
        for shard, of_files in lines.items():
            top = max(record["revision"] for record in of_files.values())
            for record in of_files.values():
                if record["revision"] == top and self._is_written(shard, record):
                    entries[shard] = record
        return entries

    def _is_written(self, shard: int, record: dict[str, Any]) -> bool:
        if "arrays" not in record or record["keys"] != blake(b"\n".join(self.lines[shard])):
            return False
        allowed = [record["arrays"], record.get("instead", {})]
        return all(
            any(stored.get(name, {}).get("hash") == blake(self._chunk(name, shard).read_bytes()) for stored in allowed)
            for name in record["arrays"]
        )

    def _chunk(self, array: str, shard: int) -> Path:
        rest = ".0" * len(self.manifest["arrays"][array]["shape"]) if array != "status" else ""
        return self.store / "features.zarr" / array / f"c.{shard}{rest}"

    def status(self, row: int) -> int:
        entry = self.entries.get(row // self.per_shard)
        if entry is None:
            return PENDING
        codes = [code for code, length in entry["status"] for _ in range(length)]
        at = row % self.per_shard
        return codes[at] if at < len(codes) else PENDING

    def read(self, array: str, key: tuple[str, str]) -> npt.NDArray[Any] | None:
        """The clip's values; None where it has none."""
        row = self.rows.get(key)
        if row is None or self.status(row) != DONE:
            return None
        values = np.asarray(zarr.open_group(self.store / "features.zarr", mode="r")[array][row])
        assert np.isfinite(values).all()
        return values

    def failures(self) -> list[list[str]]:
        return [failure for shard in sorted(self.entries) for failure in self.entries[shard]["failures"]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two generations, two tasks, a failed, an absent and a pending row, and a shard that was voided and redone."""
    specs = {"features": ArraySpec((2, 3), "float16", ("time", "feature"), "numbers")}
    root = tmp_path / "cache"

    def write(store: FeatureStore, shard: int, status: list[int], failures: tuple[Failure, ...] = ()) -> None:
        values = np.full((len(status), 2, 3), np.nan, np.float16)
        for i, code in enumerate(status):
            if code == DONE:
                values[i] = shard * 10 + i
        store.write_shard(shard, {"features": values}, np.array(status, np.uint8), failures)

    first = ClipIndex.plan(root, [RowKey(f"clip {i}", "a") for i in range(3)], 2)
    store = FeatureStore.create(root / "ego_dino", first, specs, {"weights": "w"}, {"note": "n"}, task="one")
    write(store, 0, [DONE, FAILED], (Failure("clip 1", "truncated", "no “frames”\nleft"),))
    second = ClipIndex.plan(root, [RowKey("später", "b"), RowKey("clip 0", "other video")], 2)
    store = FeatureStore.create(root / "ego_dino", second, specs, {"weights": "w"}, {"note": "n"}, task="two")
    write(store, 2, [DONE, ABSENT])
    assert store.redo(2)
    write(store, 2, [ABSENT, DONE])
    return root


def test_what_the_page_says_is_enough_to_read_a_cache(cache: Path) -> None:
    reader = Reader(cache, "ego_dino")
    assert reader.manifest["fingerprint"] == {"weights": "w"}
    assert reader.rows == {("clip 0", "a"): 0, ("clip 1", "a"): 1, ("clip 2", "a"): 2} | {
        ("clip 0", "other video"): 4,
        ("später", "b"): 5,
    }
    assert [reader.status(row) for row in range(6)] == [DONE, FAILED, PENDING, PENDING, ABSENT, DONE]
    np.testing.assert_array_equal(reader.read("features", ("clip 0", "a")), np.zeros((2, 3), np.float16))
    np.testing.assert_array_equal(reader.read("features", ("später", "b")), np.full((2, 3), 21, np.float16))
    assert reader.read("features", ("clip 1", "a")) is None
    assert reader.read("features", ("clip 0", "other video")) is None
    assert reader.failures() == [["clip 1", "truncated", "no “frames”\nleft"]]


def test_it_agrees_with_the_store(cache: Path) -> None:
    reader, index = Reader(cache, "ego_dino"), ClipIndex.open(cache)
    store = FeatureStore.open(cache / "ego_dino", index)
    assert store.status().tolist() == [reader.status(row) for row in range(index.num_rows)]
    values, present = store.read(list(reader.rows.values()), "features")
    for key, value, there in zip(reader.rows, values, present, strict=True):
        mine = reader.read("features", key)
        assert (mine is not None) == bool(there)
        if mine is not None:
            np.testing.assert_array_equal(mine, value)


def test_a_damaged_chunk_and_a_torn_line_do_not_count(cache: Path) -> None:
    chunk = cache / "ego_dino" / "features.zarr" / "features" / "c.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[0] ^= 1
    chunk.write_bytes(bytes(data))
    ledger = cache / "ego_dino" / "ledger" / "two.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    reader = Reader(cache, "ego_dino")
    assert [reader.status(row) for row in range(6)] == [PENDING] * 6
