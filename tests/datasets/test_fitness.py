"""EgoExo-Fitness: what its annotations say, and the traps in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uniego.datasets.fitness import CLASSES, label_of, read_cvsv_records, read_records
from uniego.errors import TableError
from uniego.pipeline.clips import missing_files, read_clip_table
from uniego.pipeline.video import open_video, segment

Call = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, str]]]


def test_clips_of_the_official_split(fitness: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    out = tmp_path / "clips.csv"
    result = call("build", "egoexo-fitness", "--root", fitness, "--out", out)
    assert result.exit_code == 0, result.output
    table = rows(out)
    assert len(table) == 12
    first = next(row for row in table if row["clip_id"] == "AbC123_4-3-1_ego_m_00")
    assert (first["split"], first["label"], first["class_name"]) == ("train", "2", CLASSES[2])  # action_id - 1
    assert float(first["start_s"]) == pytest.approx(10 / 30, abs=1e-6)  # from the record's begin, not the sequence's
    assert (first["record"], first["actor"]) == ("AbC123", "zhang")
    assert "skipped: 4 x the record has none of the views exo_m, exo_l, exo_r" in result.output
    assert "note: 4 x exo_l instead of exo_m, which the record lacks" in result.output
    assert "note: 3 x segments cut at the last frame of the shorter view" in result.output
    assert "note: 3 x records in train and test alike, as officially split" in result.output
    assert "warning: 4 records, but the data set is published with 76" in result.output
    last = next(row for row in table if row["clip_id"] == "AbC123_b2-5-3-1-2_ego_m_01")
    assert float(last["end_s"]) == pytest.approx(85 / 30, abs=1e-6)
    assert last["label"] == "7"  # "Left Leg Lunge With Knee Lift"
    assert missing_files(read_clip_table(out)) == []
    assert len(rows(tmp_path / "clips.classes.csv")) == 12


def test_views_on_their_side_are_set_upright(fitness: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "clips.csv"
    assert call("build", "egoexo-fitness", "--root", fitness, "--out", out, "--exo-views", "exo_l,exo_r").exit_code == 0
    said = {path.name: json.loads(path.read_bytes()) for path in (tmp_path / "clips-frames").iterdir()}
    assert said["AbC123_exo_l.frames"]["rotation"] == 90
    assert said["AbC123_ego_m.frames"] == {
        "folder": "../fitness/frames_open/AbC123/ego_m",
        "fps": 30.0,
        "rotation": 0,
        "first": 1,
    }
    for clip in read_clip_table(out).clips:
        with open_video(clip.video("exo") or "") as video:
            assert (video.info.width, video.info.height, video.info.rotation) == (32, 24, 90)
            first, end = segment(video.info, clip.start_s, clip.end_s)
            assert end <= 85
            assert video.frames([first]).shape[1:3] == (24, 32)
    assert (
        call(
            "build", "egoexo-fitness", "--root", fitness, "--out", tmp_path / "r.csv", "--exo-views", "exo_r"
        ).exit_code
        == 0
    )
    assert json.loads((tmp_path / "r-frames/AbC123_exo_r.frames").read_bytes())["rotation"] == 270


def test_views_of_one_moment_fall_on_both_sides_officially_only(
    fitness: Path, tmp_path: Path, call: Call, rows: Rows
) -> None:
    """The check sees it in the exo videos that both share."""
    for mode, leaks in (("official", True), ("record", False), ("actor", False)):
        out = tmp_path / f"{mode}.csv"
        result = call(
            "build", "egoexo-fitness", "--root", fitness, "--out", out, "--ego-views", "ego_m,ego_l", "--split", mode
        )
        assert result.exit_code == 0, result.output
        report = json.loads(call("check", out, "--json", "--sample", 0, "--look-alikes", 0).stdout)
        assert any(leak["view"] == "exo" for leak in report["overlaps"]) is leaks
        if not leaks:
            column = {"record": "record", "actor": "actor"}[mode]
            sides: dict[str, set[str]] = {}
            for row in rows(out):
                sides.setdefault(row[column], set()).add(row["split"])
            assert {len(splits) for splits in sides.values()} == {1}
            assert set.union(*sides.values()) == {"train", "test"}


def test_whole_actions_and_their_timeline(fitness: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    out = tmp_path / "clips.csv"
    arguments = ("build", "egoexo-fitness", "--root", fitness, "--out", out, "--segments", "action")
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "no official split" in refused.output
    result = call(*arguments, "--split", "record", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "8 actions, but the data set is published with 1086" in result.output
    assert "22 actions times views" in result.output
    assert {row["label"] for row in rows(out)} == {"2", "11"}
    truth = tmp_path / "clips-segmentation"
    lines = (truth / "groundTruth/AbC123.txt").read_text().splitlines()
    assert len(lines) == 85  # of the shorter view
    assert (lines[9], lines[10], lines[24], lines[25]) == (
        "background",
        "Kneeling_Torso_Twist",
        "Kneeling_Torso_Twist",
        "background",
    )
    assert (truth / "mapping.txt").read_text().splitlines()[:2] == ["0 background", "1 Kneeling_pushing-ups"]
    bundled = [line for path in sorted((truth / "splits").iterdir()) for line in path.read_text().splitlines()]
    assert sorted(bundled) == ["AbC123.txt", "dEf456.txt", "gHi789.txt"]


def test_the_records_of_the_pair_lists(fitness: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    """The list of train pairs ends in NUL bytes."""
    annotations = fitness / "raw_annotations"
    assert read_cvsv_records(annotations / "train_pairs_open.txt") == {"AbC123"}
    out = tmp_path / "clips.csv"
    result = call("build", "egoexo-fitness", "--root", fitness, "--out", out, "--split", "cvsv")
    assert "skipped: 4 x the record is in neither list of pairs" in result.output
    assert {(row["record"], row["split"]) for row in rows(out)} == {("AbC123", "train"), ("dEf456", "test")}


def test_record_ids_in_the_record_or_in_the_index(fitness: Path) -> None:
    path = fitness / "raw_annotations/meta_records.json"
    assert set(read_records(path)) == {"AbC123", "dEf456", "gHi789", "jKl012"}
    path.write_text('{"records": [{"views": []}]}')
    with pytest.raises(TableError, match="not the record list"):
        read_records(path)


def test_spellings_of_classes() -> None:
    for name in ("Kneeling Side Torso Twist", "Kneeling Right-side Torso Twist", "kneeling torso twist"):
        assert label_of(name) == 2
    assert label_of("Right Leg Reverse Lunge") == 6
    assert label_of("Leg Press") is None


def test_missing_folders_are_skipped_or_kept(fitness: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    (fitness / "frames_open/gHi789/exo_m").rename(fitness / "elsewhere")
    arguments = ("build", "egoexo-fitness", "--root", fitness, "--out", tmp_path / "clips.csv")
    result = call(*arguments)
    assert "skipped: 4 x the folder of exo_m is not on the disk" in result.output
    kept = call(*arguments, "--keep-missing", "--overwrite")
    assert kept.exit_code == 0, kept.output
    assert len(rows(tmp_path / "clips.csv")) == 16  # and the record without exo views


def test_the_real_label_banks_and_lists() -> None:
    folder = os.environ.get("UNIEGO_TEST_ANNOTATIONS")
    if not folder:
        pytest.skip("UNIEGO_TEST_ANNOTATIONS does not name a folder of annotation samples")
    bank = json.loads((Path(folder) / "egoexo_fitness/cvsv_label_bank_coarse.json").read_bytes())
    names = {name for sequence in bank.values() for name in sequence}
    assert {name for name in names if label_of(name) is None} == set()
    assert {label_of(name) for name in names} == set(range(12))
    lists = [Path(folder) / f"egoexo_fitness/cvsv_{split}_pairs_open.head60.txt" for split in ("train", "test")]
    train, test = map(read_cvsv_records, lists)
    assert train
    assert not train & test
