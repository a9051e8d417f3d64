"""What is seen of the files that clips are made from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.pipeline.clips import Clip
from uniego.pipeline.sources import identity, measure, sample

MIB = 1 << 20


@given(st.binary(min_size=1, max_size=300), st.integers(0, 10**6), st.integers(1, 255))
def test_every_byte_of_a_small_file_counts(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, change: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "sampled"
    path.write_bytes(data)
    before = sample(path, len(data))
    changed = bytearray(data)
    changed[at % len(data)] ^= change
    path.write_bytes(changed)
    assert sample(path, len(data)) != before


@pytest.mark.parametrize(
    ("at", "seen"), [(0, True), (65535, True), (65536, False), (3 * MIB // 2, True), (3 * MIB - 1, True)]
)
def test_start_middle_and_end_of_a_large_file_count(tmp_path: Path, at: int, seen: bool) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * MIB))
    before = sample(path, 3 * MIB)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
    assert (sample(path, 3 * MIB) != before) == seen


def test_empty_and_longer_files_differ(tmp_path: Path) -> None:
    samples = set()
    for size in (0, 1, 2, MIB, MIB + 1, MIB + 2):
        (tmp_path / "a").write_bytes(bytes(size))
        samples.add(sample(tmp_path / "a", size))
    assert len(samples) == 6


def test_files_are_read_again_only_when_size_or_time_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    sources = {"ego": "a.mp4", "exo": "none.mp4", "pose": "."}
    clip = Clip("a", "train", 0, path, tmp_path / "none.mp4", None, None, tmp_path, {}, sources)
    seen = measure([clip])
    assert seen["none.mp4"] is None
    assert seen["."] is None  # a folder is no file
    known = {name: look for name, look in seen.items() if look}
    reads: list[object] = []
    plain = sample

    def counted(path: Path, size: int) -> str:
        if path.is_file():
            reads.append(path)
        return plain(path, size)

    monkeypatch.setattr("uniego.pipeline.sources.sample", counted)
    assert measure([clip], known) == seen
    assert reads == []
    os.utime(path, ns=(1, 1))
    touched = measure([clip], seen)
    assert len(reads) == 1
    assert identity(clip, touched) == identity(clip, seen)
    assert identity(clip, {**seen, "a.mp4": 5}) != identity(clip, seen)  # a record of sizes alone
    assert measure([clip], {"a.mp4": 5})["a.mp4"] == 5
    assert measure([clip], {"a.mp4": 6})["a.mp4"] == touched["a.mp4"]
