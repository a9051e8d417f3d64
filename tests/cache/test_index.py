"""Rows never move, whatever is planned in which order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uniego.cache import ClipIndex, RowKey, suggested_rows
from uniego.errors import IntegrityError, MissingInputError, UsageError

NAMES = st.text(st.characters(min_codepoint=32, blacklist_characters="\x7f", codec="utf-8"), min_size=1, max_size=6)
PLANS = st.lists(st.dictionaries(NAMES, st.sampled_from(["a", "b", ""]), max_size=12), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(1, 5))
def test_plans_of_any_order(tmp_path_factory: pytest.TempPathFactory, plans: list[dict[str, str]], size: int) -> None:
    root = tmp_path_factory.mktemp("index")
    model: dict[RowKey, int] = {}
    for plan in plans:
        keys = [RowKey(*pair) for pair in plan.items()]
        before = ClipIndex.open(root).num_shards if model else 0
        index = ClipIndex.plan(root, keys, size)
        rows = index.rows(keys).tolist()
        new = sorted(set(keys) - set(model), key=lambda key: (key.clip_id.encode(), key.identity))
        model.update({key: before * size + number for number, key in enumerate(new)})
        assert rows == [model[key] for key in keys]
    index = ClipIndex.open(root)
    assert index.rows(model).tolist() == list(model.values())
    stored = {
        key: row
        for shard in range(index.num_shards)
        for key, row in zip(index.keys(shard), index.shard_rows(shard), strict=True)
    }
    assert stored == model
    assert index.num_rows == max(model.values(), default=-1) + 1
    assert index.rows([RowKey("no\u2028body", "x")]).tolist() == [-1]


def test_order_of_the_table_does_not_matter(tmp_path: Path, toy: Any, tree: Any) -> None:
    ClipIndex.plan(tmp_path / "a", toy.keys("cab"))
    ClipIndex.plan(tmp_path / "b", toy.keys("abc"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(("clips", "size"), [(1, 8), (128, 8), (255, 8), (256, 16), (10_000, 512)])
def test_rows_per_shard(tmp_path: Path, toy: Any, clips: int, size: int) -> None:
    keys = toy.keys(f"{number}" for number in range(clips))
    assert ClipIndex.plan(tmp_path, keys).rows_per_shard == size
    more = ClipIndex.plan(tmp_path, [*keys, *toy.keys(["more"])], 77)
    assert (more.rows_per_shard, more.num_rows % size) == (size, 1)


@pytest.mark.parametrize(
    ("clips", "seconds", "rows"),
    [(0, 0.0, 8), (0, 1e4, 1), (10**6, 0.0, 1024), (10**6, 0.5, 1024), (10**6, 0.7, 512), (10**6, 30.0, 16)],
)
def test_shards_of_at_most_ten_minutes(clips: int, seconds: float, rows: int) -> None:
    assert suggested_rows(clips, seconds) == rows
    assert rows == 1 or rows * seconds <= 600
    assert clips / rows * 2 <= max(5_000, 2 * clips * seconds / 300)  # features and status of each shard


def test_fault_18_a_clip_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 clip ids are named more than once: 'a'"):
        ClipIndex.plan(tmp_path, [RowKey("a", "1"), RowKey("b", "1"), RowKey("a", "2")])
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("key", [("a\tb", "c"), ("a", "b\n"), ("", "x"), ("a\0", "x"), ("\udce4", "x")])
def test_ids_that_are_no_plain_text_are_refused(tmp_path: Path, key: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="clip id"):
        ClipIndex.plan(tmp_path, [RowKey(*key)])


def test_a_replaced_video_gets_a_new_row_and_a_dropped_clip_keeps_its_row(tmp_path: Path) -> None:
    first = ClipIndex.plan(tmp_path, [RowKey("a", "1"), RowKey("b", "1")], 4)
    second = ClipIndex.plan(tmp_path, [RowKey("a", "2")])
    assert first.rows([RowKey("a", "1")]).tolist() == [0]
    assert second.rows([RowKey("a", "2"), RowKey("b", "1"), RowKey("a", "1")]).tolist() == [4, 1, 0]


def test_missing_and_damaged_files_are_errors(tmp_path: Path, toy: Any) -> None:
    with pytest.raises(MissingInputError, match="no clip index"):
        ClipIndex.open(tmp_path)
    index = ClipIndex.plan(tmp_path, toy.keys("abcdef"), 2)
    rows = tmp_path / index.generations[0].file
    good = rows.read_bytes()
    for bad in (good[:-1], good.replace(b"a\t", b"x\t"), good + b"z\ty\n"):
        rows.write_bytes(bad)
        with pytest.raises(IntegrityError, match="differs from what"):
            ClipIndex.open(tmp_path).keys(0)
    rows.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        ClipIndex.open(tmp_path).keys(0)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(IntegrityError, match="cannot be read"):
        ClipIndex.open(tmp_path)
    (tmp_path / "index.json").write_text('{"schema_version": 2, "rows_per_shard": 1, "generations": []}')
    with pytest.raises(IntegrityError, match="schema version 2"):
        ClipIndex.open(tmp_path)


def test_features_without_an_index_are_not_given_to_other_clips(tmp_path: Path, toy: Any) -> None:
    toy.extract(tmp_path, "abc")
    (tmp_path / "index.json").unlink()
    with pytest.raises(IntegrityError, match=r"index\.json is missing"):
        ClipIndex.plan(tmp_path, toy.keys("xyz"))


PLANNER = """
import sys
from uniego.cache import ClipIndex, RowKey, suggested_rows
root, task = sys.argv[1:]
ClipIndex.plan(root, [RowKey(f"{task}-{n}", "i") for n in range(40)] + [RowKey("both", "i")], 4)
"""


def test_planners_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    planners = [subprocess.Popen([sys.executable, "-c", PLANNER, str(tmp_path), task]) for task in "abc"]
    assert [planner.wait(60) for planner in planners] == [0, 0, 0]
    index = ClipIndex.open(tmp_path)
    rows = index.rows([RowKey(f"{task}-{n}", "i") for task in "abc" for n in range(40)] + [RowKey("both", "i")])
    assert len(np.unique(rows)) == 121
    assert rows.min() == 0


def test_bounds(tmp_path: Path, toy: Any) -> None:
    index = ClipIndex.plan(tmp_path, toy.keys("abcd"), 3)
    assert (index.num_rows, index.num_shards, index.shard_rows(1)) == (4, 2, range(3, 4))
    with pytest.raises(IndexError, match="shard 2 of 2"):
        index.shard_rows(2)
    empty = ClipIndex.plan(tmp_path / "empty", [])
    assert (empty.num_rows, empty.num_shards, empty.rows([]).tolist()) == (0, 0, [])
