"""Assembly101: frames at 30 and 60 per second, two headsets, a row per view; coarse actions frame by frame."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uniego.datasets.assembly101 import VERBS, read_coarse
from uniego.errors import TableError
from uniego.pipeline.clips import read_clip_table
from uniego.pipeline.poses import read_pose
from uniego.pipeline.video import open_video, segment

Call = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, str]]]


def build(call: Call, root: Path, out: Path, *more: object) -> Any:
    result = call("build", "assembly101", "--root", root, "--out", out, *more)
    assert result.exit_code == 0, result.output
    return result


def test_one_clip_per_segment_of_e4_and_v3(
    assembly101: Path, tmp_path: Path, call: Call, rows: Rows, frame_number: Any
) -> None:
    out = tmp_path / "clips.csv"
    result = build(call, assembly101, out)
    table = rows(out)
    assert len(table) == 4  # of sixteen rows
    assert {row["ego_view"] for row in table} == {"HMC_84358933_mono10bit", "HMC_21179183_mono10bit"}  # by the headset
    assert {row["exo_view"] for row in table} == {"C10118_rgb"}
    first = table[0]
    assert (first["label"], first["class_name"], first["action"]) == ("18", "clap", "clap hand")  # cells are padded
    clip = read_clip_table(out).clips[0]
    with open_video(clip.ego_path) as video:  # annotated at 30 frames per second, filmed at 60
        begin, end = segment(video.info, clip.start_s, clip.end_s)
        assert (begin, end) == (12, 50)  # frames 6 to 24 at 30, the last one included
        assert frame_number(video.frames([begin])[0]) == 12
    cut = next(row for row in table if row["split"] == "test" and row["label"] == "4")
    assert float(cut["end_s"]) == pytest.approx(100 / 60, abs=0.02)  # this ego video is shorter than its annotation
    assert "note: 1 x segments cut at the end of the shorter video" in result.output
    assert "2 verbs with clips, but the data set is published with 24" in result.output


def test_another_exo_camera(assembly101: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    build(call, assembly101, tmp_path / "a.csv", "--exo", "v1")
    build(call, assembly101, tmp_path / "b.csv", "--exo", "C10095_rgb")
    assert {row["exo_view"] for row in rows(tmp_path / "a.csv")} == {"C10095_rgb"}
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    refused = call("build", "assembly101", "--root", assembly101, "--out", tmp_path / "c.csv", "--exo", "v9")
    assert refused.exit_code == 2
    none = call("build", "assembly101", "--root", assembly101, "--out", tmp_path / "c.csv", "--exo", "v4")
    assert none.exit_code == 2
    assert "skipped: 4 x no row of the exo view v4" in none.output
    assert "no clip is left to write" in none.output


def test_hands_are_the_skeletons(assembly101: Path, tmp_path: Path, call: Call) -> None:
    result = build(call, assembly101, tmp_path / "clips.csv")
    assert "note: 2 x clips without hand poses" in result.output
    clip = next(clip for clip in read_clip_table(tmp_path / "clips.csv").clips if clip.pose_path)
    assert clip.extra["hand_pose_path"] == str(clip.pose_path)
    pose = read_pose(clip.pose_path or "", clip_id=clip.clip_id, start_s=clip.start_s, end_s=clip.end_s)
    assert pose.keypoints.shape == (2, 38, 21, 3)  # at 60 frames per second


def test_missing_videos(assembly101: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    next(assembly101.glob("recordings/*/HMC_84358933_mono10bit.mp4")).unlink()
    result = build(call, assembly101, tmp_path / "a.csv")
    assert "skipped: 2 x the ego video is not on the disk" in result.output
    build(call, assembly101, tmp_path / "b.csv", "--keep-missing")
    assert (len(rows(tmp_path / "a.csv")), len(rows(tmp_path / "b.csv"))) == (2, 4)


def test_the_version_without_views_counts_60_frames(assembly101: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    for path in (assembly101 / "fine-grained-annotations").glob("*.csv"):
        with path.open(newline="") as stream:
            read = list(csv.DictReader(stream))
        chosen = [row for row in read if row["video"].endswith("C10118_rgb.mp4")]
        for row in chosen:
            del row["is_RGB"]
            row["video"] = row["video"].partition("/")[0]
            row |= {name: f"{2 * int(row[name]):09d}" for name in ("start_frame", "end_frame")}
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(chosen[0]))
            writer.writeheader()
            writer.writerows(chosen)
    result = build(call, assembly101, tmp_path / "clips.csv")
    assert "2 validation rows in the skeletons' version, but the data set is published with 15699" in result.output
    table = rows(tmp_path / "clips.csv")
    assert [float(row["start_s"]) for row in table[:2]] == [0.2, 1.0]
    assert {row["ego_view"] for row in table} == {"HMC_84358933_mono10bit", "HMC_21179183_mono10bit"}  # by the files


def test_old_test_files_have_no_labels(assembly101: Path, tmp_path: Path, call: Call) -> None:
    path = assembly101 / "fine-grained-annotations/test.csv"
    path.write_text("id,video,start,end,is_shared,is_rgb\n0,s/C10118_rgb.mp4,1,2,0,1\n")
    result = call("build", "assembly101", "--root", assembly101, "--out", tmp_path / "c.csv", "--evaluate-on", "test")
    assert result.exit_code == 2
    assert "have no labels" in result.output


def test_coarse_actions_frame_by_frame(assembly101: Path, tmp_path: Path, call: Call, rows: Rows) -> None:
    """No final newline, CRLF, a misspelt name, `val` for validation, frames that begin at 3, names with spaces."""
    result = build(call, assembly101, tmp_path / "clips.csv")
    assert "2 coarse actions, but the data set is published with 202" in result.output
    truth = tmp_path / "clips-segmentation"
    files = sorted((truth / "groundTruth").iterdir())
    assert len(files) == 2
    for file in files:
        text = file.read_text()
        assert text.split("\n")[:-1] == ["attach_wheel"] * 17 + ["detach_wheel"] * 13  # as the field's readers cut it
    assert (truth / "mapping.txt").read_text() == "0 attach_wheel\n1 detach_wheel\n"
    assert sorted(path.name for path in (truth / "splits").iterdir()) == ["train.split1.bundle", "val.split1.bundle"]
    videos = rows(truth / "videos.csv")
    assert {(video["fps"], video["start_s"], video["frames"]) for video in videos} == {("30", "0.1", "30")}
    assert all(Path(video["ego_path"]).is_file() for video in videos)


def test_coarse_segments_must_follow_on_one_another(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0\t5\ta\n6\t9\tb\n")
    with pytest.raises(TableError, match="ends at frame 5, the next starts at 6"):
        read_coarse(path)


def test_the_real_verbs_and_annotations(call: Call, rows: Rows, tmp_path: Path) -> None:
    folder = os.environ.get("UNIEGO_TEST_ANNOTATIONS")
    if not folder:
        pytest.skip("UNIEGO_TEST_ANNOTATIONS does not name a folder of annotation samples")
    real = Path(folder) / "assembly101"
    verbs = {int(row["verb_id"]): row["verb_cls"] for row in rows(real / "actions.csv")}
    assert [verbs[number] for number in range(24)] == list(VERBS)
    annotations = tmp_path / "root/fine-grained-annotations"
    annotations.mkdir(parents=True)
    for name in ("train", "validation"):
        (annotations / f"{name}.csv").write_bytes((real / "msg3d_validation_60fps.head200.csv").read_bytes())
    refused = call("build", "assembly101", "--root", tmp_path / "root", "--out", tmp_path / "c.csv", "--keep-missing")
    assert "two clips are named" in refused.output  # the same rows in both files
    (annotations / "validation.csv").write_text((annotations / "train.csv").read_text().splitlines()[0] + "\n")
    built = build(call, tmp_path / "root", tmp_path / "c.csv", "--keep-missing", "--no-segmentation")
    table = rows(tmp_path / "c.csv")
    assert len(table) + built.output.count("second row") == len(rows(annotations / "train.csv"))
    first = min(table, key=lambda row: float(row["start_s"]))
    assert float(first["start_s"]) > 0
