"""Any sequence of what can happen to a cache, against a dictionary of what each clip must read as."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from uniego.cache import ClipIndex, FeatureStore, RowKey, RowStatus, gc
from uniego.cache.verify import verify_cache
from uniego.errors import IntegrityError
from uniego.pipeline import files

CLIPS = [f"{kind}{number}" for kind in ("c", "bad", "none", "zero") for number in range(4)]


class Crash(BaseException):
    """The process is dead."""


class Deadly(files.Operations):
    """Every operation from number `left` on fails; a write is torn first."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __getattribute__(self, name: str) -> Any:
        operation = super().__getattribute__(name)
        if name.startswith("_") or name == "left":
            return operation

        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == -1 and name == "write":
                operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self.left < 0:
                raise Crash
            return operation(*arguments)

        return call


class CacheMachine(RuleBasedStateMachine):
    """`versions`: which video each clip of the table has now; `damage`: files that differ from what was written."""

    toy: Any

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="uniego-machine-"))
        self.versions: dict[str, int] = {"c0": 0, "bad0": 0, "none0": 0, "c1": 0}
        self.damaged: dict[int, bool] = {}  # shard: whether its size tells
        self.extracted: set[RowKey] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # What can happen

    @rule()
    def extract(self) -> None:
        store = self.open()
        for shard in store.pending(store.index.rows(self.keys())):
            self.write(store, shard)
        self.extracted = set(self.keys()) | self.extracted

    @rule(operations=st.integers(0, 60))
    def killed(self, operations: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "operations", Deadly(operations))
            with contextlib.suppress(Crash):
                self.extract()
        if self.damaged:  # a shard that was being redone may be taken back, or mended in part
            store = self.opened()
            self.damaged = {shard: tells for shard, tells in self.damaged.items() if store.problem(shard, full=True)}

    @precondition(lambda self: self.made)
    @rule(tail=st.binary(min_size=1, max_size=30).filter(lambda data: b"\n" not in data))
    def torn_line(self, tail: bytes) -> None:
        path = self.root / "toy" / "ledger" / "local.jsonl"
        if path.exists():
            path.write_bytes(path.read_bytes() + tail)

    @precondition(lambda self: self.made)
    @rule(pick=st.integers(0, 99), how=st.sampled_from(["flip", "cut", "delete"]), where=st.integers(0, 10**6))
    def corrupt(self, pick: int, how: str, where: int) -> None:
        store = self.opened()
        written = store.written()
        sound = [shard for shard in written if shard not in self.damaged]
        if not sound:
            return
        shard = sound[pick % len(sound)]
        name = ["features/c.{}.0.0", "logits/c.{}.0"][where % 2].format(shard)
        path = self.root / "toy" / "features.zarr" / name
        data = path.read_bytes()
        at = where % len(data)
        if how == "flip":
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        elif how == "cut":
            path.write_bytes(data[:at])
        else:
            path.unlink()
        self.damaged[shard] = how != "flip"

    @precondition(lambda self: self.made)
    @rule(full=st.booleans())
    def verify(self, full: bool) -> None:
        (checked,) = verify_cache(self.root, ["toy"], full=full)
        expected = {shard for shard, tells in self.damaged.items() if tells or full}
        assert {problem.shard for problem in checked.problems} == expected
        assert all(problem.marked for problem in checked.problems)
        assert not expected & set(self.opened().written())
        self.damaged = {shard: tells for shard, tells in self.damaged.items() if shard not in expected}

    @rule(clip=st.sampled_from(CLIPS))
    def grow(self, clip: str) -> None:
        self.versions.setdefault(clip, 0)

    @precondition(lambda self: len(self.versions) > 1)
    @rule(pick=st.integers(0, 99))
    def shrink(self, pick: int) -> None:
        del self.versions[sorted(self.versions)[pick % len(self.versions)]]

    @rule(random=st.randoms(use_true_random=False))
    def reorder(self, random: Any) -> None:
        items = list(self.versions.items())
        random.shuffle(items)
        self.versions = dict(items)

    @rule(pick=st.integers(0, 99))
    def replace(self, pick: int) -> None:
        self.versions[sorted(self.versions)[pick % len(self.versions)]] += 1

    @precondition(lambda self: self.made)
    @rule()
    def collect(self) -> None:
        index = ClipIndex.open(self.root)
        rows = index.rows(self.keys())
        garbage = gc.find(self.root, rows, {"toy"})
        dropped = set(garbage.shards.get("toy", ()))
        assert not dropped & set((rows[rows >= 0] // index.rows_per_shard).tolist())
        before = self.opened().status(rows)
        gc.collect(garbage)
        np.testing.assert_array_equal(self.opened().status(rows), before)
        assert gc.find(self.root, rows, {"toy"}).bytes == 0
        self.damaged = {shard: tells for shard, tells in self.damaged.items() if shard not in dropped}

    # What must hold

    @invariant()
    def what_is_read_is_right_or_refused(self) -> None:
        if not self.made:
            return
        store = self.opened()
        keys = self.keys()
        rows = store.index.rows(keys)
        for key, row, code in zip(keys, rows.tolist(), store.status(rows).tolist(), strict=True):
            wanted, status, _ = self.toy.shard([RowKey(self.content(key), "")])
            assert code in (RowStatus.PENDING, status[0]), key
            shard = row // store.index.rows_per_shard
            damaged = shard in self.damaged
            for name, values in wanted.items():
                try:
                    got, present = store.read([row], name)
                except IntegrityError:
                    assert damaged
                    continue
                assert present[0] == (code == RowStatus.DONE)
                if present[0]:
                    np.testing.assert_array_equal(got[0], values[0])

    @invariant()
    def after_an_extraction_everything_is_there(self) -> None:
        if not self.made or not set(self.keys()) <= self.extracted or self.damaged:
            return
        store = self.opened()
        rows = store.index.rows(self.keys())
        if store.pending(rows):
            return  # marked, collected or killed while it was being redone: the next extraction's work
        _, status, _ = self.toy.shard([RowKey(self.content(key), "") for key in self.keys()])
        np.testing.assert_array_equal(store.status(rows), status)
        assert store.verify(full=True) == {}

    # Means

    @property
    def made(self) -> bool:
        return (self.root / "toy" / "manifest.json").exists()

    def keys(self) -> list[RowKey]:
        return [RowKey(clip, f"video {version}") for clip, version in self.versions.items()]

    def content(self, key: RowKey) -> str:
        """The toy computes by the name: another video, other features; the kind stays."""
        clip, version = key.clip_id, int(key.identity.split()[1])
        return clip if not version else f"{clip}{version:03d}"

    def open(self) -> FeatureStore:
        index = ClipIndex.plan(self.root, self.keys(), 3)
        return FeatureStore.create(self.root / "toy", index, self.toy.specs, self.toy.fingerprint, {})

    def opened(self) -> FeatureStore:
        return FeatureStore.open(self.root / "toy", ClipIndex.open(self.root))

    def write(self, store: FeatureStore, shard: int) -> None:
        """As extraction does: rows of clips that the table no longer names stay pending."""
        keys, named = store.index.keys(shard), set(self.keys())
        values, status, failures = self.toy.shard([RowKey(self.content(key), "") for key in keys])
        ids = {self.content(key): key.clip_id for key in keys}
        status = np.where([key in named for key in keys], status, RowStatus.PENDING).astype(np.uint8)
        failed = {key.clip_id for key, code in zip(keys, status, strict=True) if code == RowStatus.FAILED}
        failures = [f._replace(clip_id=ids[f.clip_id]) for f in failures if ids[f.clip_id] in failed]
        try:
            store.write_shard(shard, values, status, failures)
        except IntegrityError:  # rows of earlier runs are to be kept and cannot be read: only `verify` takes them back
            assert self.damaged.get(shard) is False
            return
        self.damaged.pop(shard, None)


@pytest.mark.fault
def test_any_sequence_of_events(toy: Any, full: bool) -> None:
    machine = type("Machine", (CacheMachine,), {"toy": toy})
    examples, steps = (100, 60) if full else (15, 20)
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=steps))
