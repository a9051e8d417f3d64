"""Killed anywhere, run again: the same bytes. Two writers: no mixture."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import ClipIndex, FeatureStore, RowStatus, gc, remove
from uniego.errors import IntegrityError
from uniego.pipeline import files

FIRST = ["c1", "bad2", "zero3", "none4"]
ALL = [*FIRST, "c5", "c6"]


class Crash(BaseException):
    """The process is dead from here on."""


class Interrupted(files.Operations):
    """Calls `at_call` before operation number `stop`; with `tear`, after half of a write."""

    def __init__(self, stop: int, at_call: Callable[[], None], *, tear: bool = False) -> None:
        self.stop, self.at_call, self.tear, self.count = stop, at_call, tear, 0

    def __getattribute__(self, name: str) -> Any:
        operation = super().__getattribute__(name)
        if name not in ("open", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            return operation

        def call(*args: Any) -> Any:
            count = self.count
            self.count += 1
            if count == self.stop:
                if name == "write" and self.tear:
                    operation(args[0], args[1][: len(args[1]) // 2])
                self.at_call()
            return operation(*args)

        return call


class Dead(Interrupted):
    """Every operation from number `stop` on fails, as it does for a process that was killed."""

    def __init__(self, stop: int, *, tear: bool = False) -> None:
        super().__init__(stop, self.die, tear=tear)

    def die(self) -> None:
        self.stop = self.count  # the next one dies too: no clean-up after death
        raise Crash


def count_operations(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    with monkeypatch.context() as patch:
        counter = Interrupted(-1, lambda: None)
        patch.setattr(files, "operations", counter)
        run()
    return counter.count


@pytest.mark.fault
@pytest.mark.parametrize("tear", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_crash_point(tmp_path: Path, toy: Any, tree: Any, monkeypatch: pytest.MonkeyPatch, tear: bool) -> None:
    """Creation, two shards, growth by another; stopped before each operation, and within each write."""
    stages = [lambda root: toy.extract(root, FIRST), lambda root: toy.extract(root, ALL)]
    start, points = tmp_path / "start", 0
    start.mkdir()
    for number, stage in enumerate(stages):
        good = tmp_path / f"good{number}"
        shutil.copytree(start, good)
        total = count_operations(monkeypatch, lambda s=stage, g=good: s(g))
        expected = tree(good)
        for stop in range(total):
            root = tmp_path / "run"
            shutil.copytree(start, root)
            with monkeypatch.context() as patch:
                patch.setattr(files, "operations", Dead(stop, tear=tear))
                with pytest.raises(Crash):
                    stage(root)
            if (root / "toy" / "manifest.json").exists():
                assert FeatureStore.open(root / "toy", ClipIndex.open(root)).verify(full=True) == {}
            stage(root)
            assert tree(root) == expected, f"stage {number}, operation {stop} of {total}"
            shutil.rmtree(root)
        points += total
        start = good
    assert points > 100


@pytest.mark.fault
def test_every_crash_point_of_a_rewrite_a_removal_and_a_collection(
    tmp_path: Path, toy: Any, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that another run left half pending is written again; the store is removed; its shards are dropped."""
    start = tmp_path / "start"
    store = toy.open(start, FIRST)
    values, status, _ = toy.shard(store.index.keys(0))
    store.write_shard(0, values, np.where(status == 2, 0, status) * [0, 1, 1])

    def rewrite(root: Path) -> None:
        store = toy.open(root, FIRST)
        for shard in store.pending(store.index.rows(toy.keys(FIRST))):
            store.write_shard(shard, *toy.shard(store.index.keys(shard)))

    def overwrite(root: Path) -> None:
        remove(root / "toy")
        toy.extract(root, FIRST)

    def collect(root: Path) -> None:
        index = ClipIndex.open(root)
        gc.collect(gc.find(root, index.rows(toy.keys(FIRST))[:0], {"toy"}))

    for run in (rewrite, overwrite, collect):
        good = tmp_path / run.__name__
        shutil.copytree(start, good)
        total = count_operations(monkeypatch, lambda r=run, g=good: r(g))
        for stop in range(total):
            root = tmp_path / "run"
            shutil.copytree(start, root)
            with monkeypatch.context() as patch:
                patch.setattr(files, "operations", Dead(stop, tear=True))
                with pytest.raises(Crash):
                    run(root)
            run(root)
            assert tree(root) == tree(good), f"{run.__name__}, operation {stop} of {total}"
            shutil.rmtree(root)


@pytest.mark.fault
def test_rows_that_a_rewrite_keeps_survive_every_crash(
    tmp_path: Path, toy: Any, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes the pending rows of a shard may not be able to compute the others again."""
    start = tmp_path / "start"
    store = toy.open(start, ["bad1", "c2", "c3"])
    values, status, failures = toy.shard(store.index.keys(0))
    store.write_shard(0, values, status * [1, 1, 0], failures)

    def complete(root: Path) -> None:
        store = toy.open(root, ["bad1", "c2", "c3"])
        if store.pending(store.index.rows(toy.keys(["c3"]))):
            store.write_shard(0, values, status * [0, 0, 1])

    good = tmp_path / "good"
    shutil.copytree(start, good)
    total = count_operations(monkeypatch, lambda: complete(good))
    for stop in range(total):
        root = tmp_path / "run"
        shutil.copytree(start, root)
        for again in (stop, min(stop + 3, total - 1), 7):  # three kills, one after the other
            with monkeypatch.context() as patch, contextlib.suppress(Crash):
                patch.setattr(files, "operations", Dead(again, tear=True))
                complete(root)
            left = FeatureStore.open(root / "toy", ClipIndex.open(root))
            kept = left.index.rows(toy.keys(["bad1", "c2"]))
            np.testing.assert_array_equal(left.status(kept), [RowStatus.FAILED, RowStatus.DONE])
            np.testing.assert_array_equal(left.read(kept[1:], "logits")[0][0], values["logits"][1])
            last = left.index.rows(toy.keys(["c3"]))
            assert left.status(last)[0] == RowStatus.DONE or left.pending(last) == [0]
        complete(root)
        toy.check(FeatureStore.open(root / "toy", ClipIndex.open(root)), ["bad1", "c2", "c3"])
        chunks = {name: data for name, data in tree(good / "toy" / "features.zarr").items() if "/c." in name}
        assert chunks.items() <= tree(root / "toy" / "features.zarr").items()
        shutil.rmtree(root)


def test_a_line_is_written_after_its_files_are_durable(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy.open(tmp_path, FIRST)
    calls: list[str] = []

    class Recorder(files.Operations):
        def __getattribute__(self, name: str) -> Any:
            calls.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(files, "operations", Recorder())
    store.write_shard(0, *toy.shard(store.index.keys(0)))
    one_file = ["open", "write", "fsync", "rename", "fsync"]
    assert calls == one_file * 3 + ["open", "fsync", "write", "fsync"]


@pytest.mark.parametrize("same", [True, False])
def test_fault_05_two_writers_of_one_shard_at_every_interleaving(
    tmp_path: Path, toy: Any, tree: Any, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    ids = ["c1", "c2", "c3"]
    start = tmp_path / "start"
    values, status, _ = toy.shard(toy.keys(ids))
    theirs = {name: block if same else block + 1 for name, block in values.items()}
    others = status if same else np.array([1, 1, 3])
    toy.open(start, ids)
    total = count_operations(
        monkeypatch,
        lambda: toy.open(shutil.copytree(start, tmp_path / "count"), ids).write_shard(0, values, status),
    )
    for stop in range(total):
        root = shutil.copytree(start, tmp_path / f"run{stop}")
        index = ClipIndex.open(root)
        one, two = (FeatureStore.open(root / "toy", index, task) for task in ("one", "two"))
        with monkeypatch.context() as patch:
            interrupted = Interrupted(stop, lambda s=two: s.write_shard(0, theirs, others))
            patch.setattr(files, "operations", interrupted)
            one.write_shard(0, values, status)
        if not one.pending():
            assert one.verify(full=True) == {}
            got, present = one.read([0, 1, 2], "logits")
            mine = np.array_equal(got, values["logits"]) and present.all()
            assert mine or np.array_equal(got[present], theirs["logits"][others == 1])
        else:
            assert not same
            with pytest.raises(IntegrityError, match="two writers"):
                one.read([0], "logits")
        toy.extract(root, ids, task="one")
        assert one.pending() == []
        assert one.verify(full=True) == {}


@pytest.mark.fault
def test_fault_05_one_task_started_twice_on_devices_that_compute_differently(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both lines stand in one file; the one whose files are there is believed."""
    one, two = (toy.open(tmp_path, ["c1", "c2", "c3"]) for _ in range(2))
    one.maker, two.maker = "one device", "another"
    values, status, _ = toy.shard(one.index.keys(0))
    theirs = {name: block + 1 for name, block in values.items()}
    plain = type(one._shards).write_chunk

    def write(shards: Any, name: str, shard: int, data: bytes) -> None:
        plain(shards, name, shard, data)
        if shards is one._shards and name == "logits":  # both of its arrays are written, and it is overtaken
            two.write_shard(0, theirs, status)

    monkeypatch.setattr(type(one._shards), "write_chunk", write)
    one.write_shard(0, values, status)
    assert one.verify(full=True) == {}
    np.testing.assert_array_equal(one.read([0, 1, 2], "logits")[0], theirs["logits"])


def test_fault_06_a_full_disk_stops_and_goes_on_later(
    tmp_path: Path, toy: Any, tree: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.extract(tmp_path / "good", ALL)
    store = toy.open(tmp_path / "run", ALL)
    store.write_shard(0, *toy.shard(store.index.keys(0)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", Interrupted(11, full, tear=True))
        with pytest.raises(OSError, match=r"bytes needed, \d+ free"):
            store.write_shard(1, *toy.shard(store.index.keys(1)))
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert store.pending() == [1]
    toy.extract(tmp_path / "run", ALL)
    assert tree(tmp_path / "run") == tree(tmp_path / "good")


CHILDREN = """
import os, runpy, sys
from pathlib import Path

Toy = runpy.run_path(sys.argv[1])["Toy"]
IDS = [f"c{n:03d}" for n in range(90)]


class Counted(Toy):
    def shard(self, keys, *rest):  # what stands for decoding says so first, in one write
        os.write(log, f"{keys[0].clip_id}\\\\n".encode())
        return super().shard(keys, *rest)


for line in sys.stdin:
    root = Path(line.strip())
    child = os.fork()
    if child == 0:
        log = os.open(root.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        Counted().extract(root, IDS)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Extractor:
    """A process that has everything imported and forks an extraction of 30 shards for every line it is sent."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", CHILDREN, str(Path(__file__).with_name("conftest.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, root: Path, kill_after: float | None = None) -> int:
        """The exit code of one extraction, killed after so many seconds if it is still at work."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # waited for already
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())


@pytest.mark.fault
def test_fault_01_a_real_process_killed_at_random_moments(tmp_path: Path, toy: Any, tree: Any, full: bool) -> None:
    """Five kills to an extraction; what was finished before a kill is not computed again."""
    ids, rng = [f"c{n:03d}" for n in range(90)], random.Random(0)
    kills, landed, number = 100 if full else 10, 0, 0
    with Extractor() as extractor:
        begin = time.monotonic()
        assert extractor.run(tmp_path / "good") == 0
        whole, good = time.monotonic() - begin, tree(tmp_path / "good")
        while landed < kills:
            root, log, number = tmp_path / f"run{number}", tmp_path / f"run{number}.log", number + 1
            finished: set[str] = set()
            for _ in range(5):
                before = len(log.read_text().split()) if log.exists() else 0
                killed = extractor.run(root, kill_after=rng.uniform(0, whole / 2)) == -signal.SIGKILL
                landed += killed
                whole *= 1.0 if killed else 0.8  # it goes faster than the first time
                computed = log.read_text().split()[before:] if log.exists() else []
                assert not finished & set(computed)
                finished |= _finished(root)
            before = len(log.read_text().split())
            assert extractor.run(root) == 0
            assert not finished & set(log.read_text().split()[before:])
            toy.check(FeatureStore.open(root / "toy", ClipIndex.open(root)), ids)
            assert tree(root) == good
            shutil.rmtree(root)
            assert number <= 2 * kills, "hardly a kill lands while the extraction is at work"


def _finished(root: Path) -> set[str]:
    """First clips of the shards that the ledger says are written; every byte of them must be good."""
    if not (root / "toy" / "manifest.json").exists():
        return set()
    store = FeatureStore.open(root / "toy", ClipIndex.open(root))
    assert store.verify(full=True) == {}
    return {store.index.keys(shard)[0].clip_id for shard in store.written()}
