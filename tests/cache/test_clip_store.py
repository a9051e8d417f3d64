"""The clip store: what is written is read, damage is noticed, a kill at any moment leaves nothing wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.cache import ClipStore, Failure, RowKey, RowStatus
from uniego.cache.clip_format import (
    DamagedError,
    directory_size,
    pack_clip,
    pack_shard,
    unpack_directory,
    unpack_header,
)
from uniego.cache.clip_store import Record
from uniego.errors import FingerprintMismatch, IntegrityError, MissingInputError
from uniego.pipeline import files

KEYS = [RowKey(f"clip{number}", f"v{number}") for number in range(5)]


def images(number: int, count: int = 3) -> list[bytes]:
    return [bytes([number, place]) * (20 + 7 * place + number) for place in range(count)]


def record(number: int, count: int = 3) -> Record:
    frames = np.arange(count) * 2
    return Record(pack_clip(images(number, count), frames, length=2 * count, fps=30.0, has_duration=True, size=(4, 6)))


def fill(root: Path, keys: list[RowKey] = KEYS) -> ClipStore:
    """Two rows a shard; clip 1 failed."""
    store = ClipStore.create(root, keys, {"quality": 90}, 2)
    rows = store.index.rows(keys)
    for shard in store.pending(rows):
        wanted = {}
        for row, key in zip(rows.tolist(), keys, strict=True):
            if row // 2 == shard:
                failed = Record(failure=Failure(key.clip_id, "truncated", "cut short"))
                wanted[row] = failed if key.clip_id == "clip1" else record(int(key.clip_id[4:]))
        store.write_shard(shard, wanted)
    return store


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def read_all(store: ClipStore) -> dict[str, list[bytes]]:
    found = {}
    for key, row in zip(KEYS, store.index.rows(KEYS).tolist(), strict=True):
        if store.is_stored(row):
            header = store.header(row)
            found[key.clip_id] = store.images(row, header, range(len(header.frames)))
    return found


def test_what_is_written_is_read(tmp_path: Path) -> None:
    fill(tmp_path)
    store = ClipStore.open(tmp_path)
    rows = store.index.rows(KEYS)
    assert store.status(rows).tolist() == [1, 2, 1, 1, 1]
    assert store.failures(rows) == [Failure("clip1", "truncated", "cut short")]
    assert read_all(store) == {f"clip{n}": images(n) for n in (0, 2, 3, 4)}
    header = store.header(int(rows[2]))
    assert (header.length, header.fps, header.has_duration, header.height, header.width) == (6, 30.0, True, 4, 6)
    assert header.frames.tolist() == [0, 2, 4]
    assert store.images(int(rows[2]), header, [2, 0]) == [images(2)[2], images(2)[0]]
    before = tree(tmp_path)
    assert store.pending(rows) == []
    fill(tmp_path)
    assert tree(tmp_path) == before


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20, unique=True), st.integers(0, 60))
def test_the_nearest_stored_frame(stored: list[int], asked: int) -> None:
    frames = np.array(sorted(stored))
    packed = pack_clip([b"x"] * len(frames), frames, length=61, fps=30.0, has_duration=True, size=(2, 2))
    header = unpack_header(packed[: -len(frames)])
    chosen = int(header.frames[header.nearest(np.array([asked]))[0]])
    assert abs(chosen - asked) == min(abs(frame - asked) for frame in stored)
    assert chosen == asked or asked not in stored


def test_every_flipped_byte_is_noticed(tmp_path: Path, full: bool) -> None:
    """Of a shard's directory, of a clip's header, of its images."""
    fill(tmp_path)
    path = tmp_path / "frames" / "images" / "c.1"
    data = path.read_bytes()
    good = read_all(ClipStore.open(tmp_path))
    for at in range(0, len(data), 1 if full else 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(IntegrityError, match=r"c\.1 is damaged"):
            read_all(ClipStore.open(tmp_path))
    store = ClipStore.open(tmp_path)
    assert list(store.redo_damaged()) == [1]
    assert store.pending(store.index.rows(KEYS)) == [1]
    fill(tmp_path)
    assert read_all(ClipStore.open(tmp_path)) == good


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_lost_or_cut_file_is_pending(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    fill(tmp_path)
    before = tree(tmp_path / "frames" / "images")
    damage(tmp_path / "frames" / "images" / "c.0")
    store = ClipStore.open(tmp_path)
    rows = store.index.rows(KEYS)
    assert store.status(rows).tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(IntegrityError):
        store.header(int(rows[0]))
    fill(tmp_path)
    assert tree(tmp_path / "frames" / "images") == before


def test_rows_of_another_run_are_kept(tmp_path: Path) -> None:
    """Two runs, each with some clips of a shard: the second write keeps what the first has."""
    store = ClipStore.create(tmp_path, KEYS, {}, 4)
    store.write_shard(0, {0: record(0), 1: Record(failure=Failure("clip1", "missing", "no such file"))})
    assert store.status(np.arange(4)).tolist() == [1, 2, 0, 0]
    store.write_shard(0, {3: record(3)})
    assert store.status(np.arange(4)).tolist() == [1, 2, 0, 1]
    header = store.header(0)
    assert store.images(0, header, range(3)) == images(0)
    assert store.failure(1) == Failure("clip1", "missing", "no such file")


def test_another_video_is_another_row_and_other_settings_are_refused(tmp_path: Path) -> None:
    store = fill(tmp_path)
    changed = [RowKey("clip0", "other"), *KEYS[1:]]
    assert store.index.rows(changed)[0] == -1
    again = ClipStore.create(tmp_path, changed, {"quality": 90})
    rows = again.index.rows(changed)
    assert again.status(rows).tolist() == [RowStatus.PENDING, 2, 1, 1, 1]
    before = tree(tmp_path)
    with pytest.raises(FingerprintMismatch, match="quality"):
        ClipStore.create(tmp_path, KEYS, {"quality": 91})
    assert tree(tmp_path) == before


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="prepare-clips"):
        ClipStore.open(tmp_path)


def test_a_torn_directory_is_damage() -> None:
    data = pack_shard([record(0).data, b"", record(1).data])
    assert [place.header > 0 for place in unpack_directory(data[: directory_size(3)])] == [True, False, True]
    for end in range(directory_size(3)):
        with pytest.raises(DamagedError):
            unpack_directory(data[:end])


class _Crash(BaseException):
    pass


class _Dead(files.Operations):
    """Every operation from number `stop` on fails, as for a process that was killed; a write is torn."""

    def __init__(self, stop: int) -> None:
        self.stop, self.count = stop, 0

    def __getattribute__(self, name: str) -> Any:
        operation = super().__getattribute__(name)
        if name not in ("open", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            return operation

        def call(*args: Any) -> Any:
            self.count += 1
            if self.count > self.stop >= 0:
                if name == "write" and self.count == self.stop + 1:
                    operation(args[0], args[1][: len(args[1]) // 2])
                raise _Crash
            return operation(*args)

        return call


@pytest.mark.fault
def test_every_crash_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Creation and three shards, stopped before each operation on the disk: the next run ends with the same bytes."""
    counter = _Dead(-1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", counter)
        fill(tmp_path / "good")
    expected = tree(tmp_path / "good")
    assert counter.count > 30
    for stop in range(counter.count):
        root = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(files, "operations", _Dead(stop))
            with pytest.raises(_Crash):
                fill(root)
        if ClipStore.exists(root):
            torn = ClipStore.open(root)
            stored = torn.index.rows(KEYS)
            for row in stored[torn.status(stored) == RowStatus.DONE].tolist():
                header = torn.header(row)
                torn.images(row, header, range(len(header.frames)))
        fill(root)
        assert tree(root) == expected, f"operation {stop} of {counter.count}"
        shutil.rmtree(root)
