"""Builders for one's own data, and what all builders promise about their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.datasets.building import Build, Row, write_build
from uniego.datasets.segmentation import read_lines
from uniego.datasets.splits import disjoint
from uniego.errors import TableError, UsageError
from uniego.pipeline.clips import missing_files, read_clip_table

Call = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, str]]]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"video")
    return root


def test_folders_of_splits_and_classes(tmp_path: Path, call: Call, rows: Rows) -> None:
    root = touch(
        tmp_path / "v", "train/wave/a_ego.mp4", "train/wave/a_exo.mp4", "train/bow/deep/b_ego.mp4",
        "validation/wave/c_ego.mkv", "test/bow/d.v2_ego.mp4", "train/stray.mp4", "train/bow/notes.txt",
        "train/bow/._b_ego.mp4", "train/bow/lego_ego.mp4", "train/bow/lego_exo.mp4",
    )  # fmt: skip
    out = tmp_path / "clips.csv"
    result = call("build", "folders", "--root", root, "--out", out, "--pair", "_ego=_exo")
    assert result.exit_code == 0, result.output
    assert "skipped: 1 x a video outside the folders of classes" in result.output
    assert "note: 3 x the exo video is not on the disk" in result.output
    table = {row["clip_id"]: row for row in rows(out)}
    assert set(table) == {
        "train/wave/a_ego",
        "train/bow/deep/b_ego",
        "validation/wave/c_ego",
        "test/bow/d_v2_ego",
        "train/bow/lego_ego",
    }
    assert table["train/wave/a_ego"]["exo_path"] == "v/train/wave/a_exo.mp4"
    assert table["train/bow/lego_ego"]["exo_path"] == "v/train/bow/lego_exo.mp4"
    assert {row["split"] for row in table.values()} == {"train", "val", "test"}
    assert {row["label"]: row["class_name"] for row in table.values()} == {"0": "bow", "1": "wave"}
    both = call("build", "folders", "--root", root, "--out", out, "--pair", "_ego=_exo", "--require-exo", "--overwrite")
    assert "wrote 2 clips" in both.output


def test_folders_of_classes_alone(tmp_path: Path, call: Call, rows: Rows) -> None:
    root = touch(tmp_path / "v", "wave/a.mp4", "bow/b.frames")
    assert call("build", "folders", "--root", root, "--out", tmp_path / "c.csv", "--split", "test").exit_code == 0
    assert [row["split"] for row in rows(tmp_path / "c.csv")] == ["test", "test"]
    empty = call("build", "folders", "--root", tmp_path, "--out", tmp_path / "d.csv", "--split", "dev")
    assert empty.exit_code == 2


@pytest.mark.parametrize("mark", [",", "\t", " "])
def test_released_lists(tmp_path: Path, call: Call, rows: Rows, mark: str) -> None:
    """No header, labels as numbers; dots in names; every `ego` of a file's name becomes `exo`."""
    root = touch(tmp_path / "v", "s 1/start0.85_ego.mp4", "s 1/start0.85_exo.mp4", "s 1/other_ego.mp4")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_bytes(f"s 1/start0.85_ego.mp4{mark}3\r\n\r\ns 1/other_ego.mp4{mark}0".encode())
    (lists / "test.csv").write_text(f"s 1/other_ego.mp4{mark}1\ns 1/gone_ego.mp4{mark}1\n", encoding="utf-8-sig")
    result = call("build", "list", lists, "--prefix", root, "--out", tmp_path / "clips.csv")
    assert result.exit_code == 0, result.output
    assert "skipped: 1 x the ego video is not on the disk" in result.output
    table = {row["clip_id"]: row for row in rows(tmp_path / "clips.csv")}
    assert set(table) == {"s 1/start0_85_ego", "s 1/other_ego#1", "s 1/other_ego#2"}
    assert table["s 1/start0_85_ego"]["exo_path"].endswith("start0.85_exo.mp4")
    assert table["s 1/start0_85_ego"]["label"] == "3"
    assert read_clip_table(tmp_path / "clips.csv").num_classes == 4
    (lists / "test.csv").write_text("nothing\n")
    bad = call("build", "list", lists, "--out", tmp_path / "d.csv")
    assert bad.exit_code == 2
    assert "line 1 is not" in bad.output
    (tmp_path / "none").mkdir()
    assert "none of train.csv" in call("build", "list", tmp_path / "none", "--out", tmp_path / "d.csv").output


def test_kinetics(tmp_path: Path, call: Call, rows: Rows) -> None:
    videos = touch(tmp_path / "v", "wave hand/-abc_000003_000013.mp4", "def.mkv")
    table = tmp_path / "k.csv"
    table.write_text(
        '"label","youtube_id","time_start","time_end","split"\n"wave hand",-abc,3,13,train\n'
        "bow,def,1.0,4.5,validate\nbow,gone,0,10,test\n,xyz,0,10,test\nbow,def,9,9,holdout\n"
    )
    result = call("build", "kinetics", table, "--videos", videos, "--out", tmp_path / "c.csv")
    assert result.exit_code == 0, result.output
    for words in (
        "1 x the video is not on the disk",
        "1 x no label",
        "1 x unknown split 'holdout'",
        "skipped 3 in all",
    ):
        assert words in result.output
    first, second = rows(tmp_path / "c.csv")
    assert (first["start_s"], first["end_s"], first["label"]) == ("", "", "1")  # cut already
    assert (second["start_s"], second["end_s"], second["split"]) == ("1", "4.5", "val")
    table.write_text("label,youtube_id\nbow,def\n")
    assert (
        "no column time_start"
        in call("build", "kinetics", table, "--videos", videos, "--out", tmp_path / "d.csv").output
    )


def test_nothing_is_replaced_unasked_and_bytes_repeat(fitness: Path, tmp_path: Path, call: Call) -> None:
    arguments = ("build", "egoexo-fitness", "--root", fitness, "--split", "actor", "--out", tmp_path / "t/clips.csv")
    assert call(*arguments).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()}
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "give --overwrite" in refused.output
    assert call(*arguments, "--overwrite").exit_code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file()} == before
    assert missing_files(read_clip_table(tmp_path / "t/clips.csv")) == []


def test_paths_start_where_they_are_told_to(tmp_path: Path, call: Call, rows: Rows) -> None:
    root = touch(tmp_path / "data/v", "wave/a.mp4")
    out = tmp_path / "tables/c.csv"
    call("build", "folders", "--root", root, "--out", out)
    assert rows(out)[0]["ego_path"] == str(root / "wave/a.mp4")
    call("build", "folders", "--root", root, "--out", out, "--relative-to", tmp_path / "data", "--overwrite")
    assert rows(out)[0]["ego_path"] == "v/wave/a.mp4"


def test_two_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = [Row("a", "train", 0, tmp_path / name) for name in ("x.mp4", "y.mp4")]
    with pytest.raises(TableError, match=r"two clips are named 'a'.*x\.mp4.*y\.mp4"):
        write_build(Build(rows), tmp_path / "c.csv")
    assert list(tmp_path.iterdir()) == []


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 9), min_size=2, max_size=8),
    st.floats(0.05, 0.95),
    st.integers(0, 99),
)
def test_groups_stay_together(sizes: dict[str, int], share: float, seed: int) -> None:
    rows = [Row(f"{name}{i}", "train", 0, Path("v"), extra={"g": name}) for name, n in sizes.items() for i in range(n)]
    new = disjoint(rows, lambda row: row.extra["g"], share, seed)
    sides = {name: {row.split for row in new if row.extra["g"] == name} for name in sizes}
    assert all(len(splits) == 1 for splits in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}
    again = disjoint(rows[::-1], lambda row: row.extra["g"], share, seed)[::-1]
    assert [row.split for row in again] == [row.split for row in new]  # whatever the order


def test_shares_and_single_groups_are_refused() -> None:
    row = Row("a", "train", 0, Path("v"))
    for share in (0.0, 1.0):
        with pytest.raises(UsageError, match="--test-share"):
            disjoint([row], str, share, 0)
    with pytest.raises(UsageError, match="cannot be split"):
        disjoint([row, row], lambda _: "one", 0.5, 0)


def test_lines_without_a_last_newline(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfwave\r\nbow\r\n\r\nwave")
    assert read_lines(tmp_path / "a.txt") == ["wave", "bow", "wave"]
