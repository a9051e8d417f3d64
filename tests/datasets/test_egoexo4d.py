"""Ego-Exo4D: which videos make a pair, which steps are classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uniego.pipeline.clips import missing_files, read_clip_table
from uniego.pipeline.poses import read_pose

Call = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, str]]]


def build(call: Call, root: Path, out: Path, *more: object) -> Any:
    result = call("build", "egoexo4d", "--root", root, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result


def test_pairs_and_fallbacks(egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    out = tmp_path / "clips.csv"
    result = build(call, egoexo4d, out)
    table = rows(out)
    assert len(table) == 9
    exo = {row["take"]: row["exo_view"] for row in table}
    assert exo == {"cmu_bike01_2": "cam02", "iiith_cooking_01_1": "cam02", "sfu_cooking_003_5": "cam01"}
    assert "note: 4 x exo by the take's best_exo" in result.output
    assert "note: 4 x exo by the descriptions of the take, which has no best_exo" in result.output
    assert "note: 4 x exo is the first camera by name" in result.output
    assert "skipped: 5 x the take was dropped" in result.output
    assert "skipped: 3 x the segment is empty" in result.output
    assert "skipped: 3 x the segment starts after the video's end" in result.output
    assert "note: 3 x segments cut at the end of the shorter video" in result.output
    for row in table:
        assert "_214-1.mp4" in row["ego_path"]  # Aria's RGB camera, aria01 or aria02
        assert "downscaled/448" in row["ego_path"]
        assert "." not in row["clip_id"]  # a name ends at its first dot for some readers
    assert missing_files(read_clip_table(out)) == []
    assert {row["split"] for row in table if row["take"] == "sfu_cooking_003_5"} == {"test"}
    assert "but the data set is published with 3072" in result.output
    assert "1 x splits.json" not in result.output


def test_the_best_camera_of_each_segment(egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    result = build(call, egoexo4d, tmp_path / "clips.csv", "--exo", "segment")
    cooking = [row for row in rows(tmp_path / "clips.csv") if row["take"] == "iiith_cooking_01_1"]
    chosen = {row["class_name"]: row["exo_view"] for row in cooking}
    assert chosen == {"Add oil": "cam02", "Stir": "cam01", "Remove wheel": "cam02"}  # a tie goes by name
    assert "note: 2 x exo by the descriptions within the segment" in result.output


def test_classes_are_the_steps_in_use_although_ids_have_gaps(
    egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows
) -> None:
    result = build(call, egoexo4d, tmp_path / "a.csv")
    assert "3 classes, but the data set is published with 665" in result.output
    names = [(row["label"], row["name"], row["step_unique_id"]) for row in rows(tmp_path / "a.classes.csv")]
    assert names == [("0", "Remove wheel", "7"), ("1", "Add oil", "843"), ("2", "Stir", "1567")]
    build(call, egoexo4d, tmp_path / "b.csv", "--classes", "vocabulary")
    assert [row["name"] for row in rows(tmp_path / "b.classes.csv")] == [
        "Remove wheel",
        "Never seen",
        "Add oil",
        "Stir",
    ]


def test_the_benchmark_has_its_own_labels(egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    result = build(call, egoexo4d, tmp_path / "clips.csv", "--classes", "benchmark")
    assert "2 classes, but the data set is published with 278" in result.output
    assert "skipped: 2 x label_id and label_mapping.csv disagree" in result.output
    table = rows(tmp_path / "clips.csv")
    assert [(row["label"], row["class_name"], row["start_s"]) for row in table] == [("0", "Add oil", "0")] * 2
    assert [row["name"] for row in rows(tmp_path / "clips.classes.csv")] == ["Add oil", "Remove wheel, rear"]


def test_skeletons_of_the_chosen_camera(egoexo4d: Path, tmp_path: Path, call: Call) -> None:
    result = build(call, egoexo4d, tmp_path / "clips.csv")
    assert "note: 6 x clips without body poses" in result.output
    clip = next(clip for clip in read_clip_table(tmp_path / "clips.csv").clips if clip.pose_path and not clip.start_s)
    assert "automatic/uid-a.json" in str(clip.pose_path)
    assert clip.extra["hand_pose_path"].endswith("hand/annotation/uid-a.json")
    assert clip.exo_path is not None
    pose = read_pose(clip.pose_path or "", clip_id=clip.clip_id, video_stem=clip.exo_path.stem, start_s=0.0, end_s=0.5)
    assert pose.keypoints.shape == (1, 15, 17, 3)


def test_takes_in_the_official_test_split_are_left_out(egoexo4d: Path, tmp_path: Path, call: Call) -> None:
    path = egoexo4d / "annotations/splits.json"
    content = json.loads(path.read_bytes())
    content["take_uid_to_split"]["uid-b"] = "test"
    path.write_text(json.dumps(content))
    assert "skipped: 5 x the take is in the official test split" in build(call, egoexo4d, tmp_path / "c.csv").output


def test_full_size_or_scaled_down(egoexo4d: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    build(call, egoexo4d, tmp_path / "a.csv", "--resolution", "full", "--keep-missing")
    assert not any("downscaled" in row["ego_path"] for row in rows(tmp_path / "a.csv"))
    refused = call("build", "egoexo4d", "--root", egoexo4d, "--out", tmp_path / "b.csv", "--resolution", "full")
    assert refused.exit_code == 2
    assert "x the ego video is not on the disk" in refused.output
