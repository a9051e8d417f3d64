"""Views of a store: the same bits in memory and from a file, atomically built, rebuilt when stale or damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.cache import RowStatus
from uniego.cache.view import Arrays, Part, content_key, mapped, resident

IDS = [*(f"clip{i}" for i in range(8)), "bad1", "none1"]
PARTS = {"values": Part((5, 3), "float32"), "present": Part((5,), "bool")}


class Fill:
    """Fills both arrays; counts how often it was asked to."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self, out: Arrays) -> None:
        self.calls += 1
        out["values"][1:] = np.random.default_rng(self.seed).normal(size=(4, 3))
        out["present"][::2] = True


def same(a: Arrays, b: Arrays) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in PARTS)


def test_both_hold_the_same_bits_and_a_file_is_made_once(tmp_path: Path) -> None:
    fill = Fill()
    first = mapped(tmp_path / "view", "k1", PARTS, fill)
    again = mapped(tmp_path / "view", "k1", PARTS, fill)
    assert fill.calls == 1
    assert isinstance(again["values"], np.memmap)
    assert same(first, resident(PARTS, fill))
    assert same(again, first)
    again["values"][0] = 7.0  # a private copy
    assert same(mapped(tmp_path / "view", "k1", PARTS, fill), first)
    assert sum(part.bytes for part in PARTS.values()) == 65


def test_another_content_replaces_the_file(tmp_path: Path) -> None:
    mapped(tmp_path / "view", "k1", PARTS, Fill(0))
    assert same(mapped(tmp_path / "view", "k2", PARTS, Fill(1)), resident(PARTS, Fill(1)))
    assert [path.name for path in (tmp_path / "view").iterdir()] == ["k2"]


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "json"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    mapped(tmp_path / "view", "k", PARTS, Fill())
    path = tmp_path / "view" / "k" / ("view.json" if damage == "json" else "values.npy")
    raw = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) if damage == "flip" else raw[:-3])
    fill = Fill()
    assert same(mapped(tmp_path / "view", "k", PARTS, fill), resident(PARTS, Fill()))
    assert fill.calls == 1


@pytest.mark.fault
def test_a_killed_building_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def dies(out: Arrays) -> None:
        out["values"][:] = 1.0
        os._exit(9)

    child = os.fork()
    if child == 0:
        mapped(tmp_path / "view", "k", PARTS, dies)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "view" / "k").exists()
    assert same(mapped(tmp_path / "view", "k", PARTS, Fill()), resident(PARTS, Fill()))
    assert [path.name for path in (tmp_path / "view").iterdir()] == ["k"]


def test_the_key_follows_content_rows_and_recipe(tmp_path: Path, toy: Any) -> None:
    store = toy.extract(tmp_path / "a", IDS)
    rows = store.index.rows(toy.keys(IDS))
    key = content_key([store], rows, ["mean", 8])
    assert content_key([toy.extract(tmp_path / "b", IDS)], rows, ["mean", 8]) == key
    other_rows = [content_key([store], r, ["mean", 8]) for r in (rows[::-1], rows[1:], np.append(rows, -1))]
    assert len({key, content_key([store], rows, ["mean", 4]), *other_rows}) == 5
    values, status, failures = toy.shard(store.index.keys(0))
    status[0] = RowStatus.ABSENT
    store.redo(0)
    store.write_shard(0, values, status, [f for f in failures if f.clip_id != store.index.keys(0)[0].clip_id])
    assert content_key([store], rows, ["mean", 8]) != key
