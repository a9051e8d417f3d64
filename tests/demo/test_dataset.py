"""The demo's data on disk: what the pipeline reads back agrees with what was rendered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner
from uniego import cli
from uniego.demo.dataset import FPS, Take, make_take, write_dataset
from uniego.demo.world import ACTIONS, ALL_ACTIONS
from uniego.errors import UsageError
from uniego.pipeline.clips import ClipTable, missing_files, read_clip_table
from uniego.pipeline.poses import read_pose
from uniego.pipeline.video import open_video, segment

SIZE, CLIPS = 64, 24
SEGMENTS = [
    ("tilt up", 5, 26),
    ("screw", 35, 56),
    ("pull", 63, 81),
    ("push", 92, 112),
    ("tilt down", 121, 141),
    ("put down", 150, 170),
    ("pick up", 178, 200),
    ("unscrew", 213, 232),
]
LOOKS = {"ego": (103.44360, 0.05542, 0.68602), "exo": (101.74408, 0.04591, 2.92355)}
"""Of take 0 of seed 5: where its actions are; by view, the means of colours, of colours weighted, and of depths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "data"
    write_dataset(path, seed=5, clips=CLIPS, size=SIZE, workers=2)
    return path


@pytest.fixture(scope="module")
def table(folder: Path) -> ClipTable:
    return read_clip_table(folder / "clips.csv")


@pytest.fixture(scope="module")
def take() -> Take:
    return make_take(5, 0, size=SIZE)


def test_the_table_is_one_that_the_pipeline_takes(table: ClipTable) -> None:
    assert missing_files(table) == []
    assert table.splits == {"train": 16, "val": 0, "test": 8}
    assert sorted(table.classes) == sorted(ACTIONS)
    for split in ("train", "test"):
        counts = np.bincount([clip.label for clip in table.clips if clip.split == split])
        assert len(set(counts)) == 1  # balanced


def test_people_do_not_cross_splits(table: ClipTable) -> None:
    people = {split: {c.extra["subject"] for c in table.clips if c.split == split} for split in ("train", "test")}
    assert not people["train"] & people["test"]


@pytest.mark.parametrize("view", ["ego", "exo"])
def test_videos_show_the_rendered_frames(table: ClipTable, take: Take, view: str) -> None:
    path = table.clips[0].video(view)  # type: ignore[arg-type]
    assert path is not None
    wanted = take.views[view].rgb.astype(float)  # type: ignore[index]
    with open_video(path) as video:
        assert video.info.frame_count == len(wanted)
        frames = video.frames(range(len(wanted))).astype(float)
    error = ((frames - wanted) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 25


def test_segments_depths_and_skeletons_meet_in_a_clip(folder: Path, table: ClipTable, take: Take) -> None:
    """The frames of a clip's seconds are those of its action; its skeleton lies on the person."""
    for clip, wanted in zip(table.clips[:8], take.segments, strict=True):
        assert table.classes[clip.label] == wanted.action
        assert clip.exo_path is not None
        assert clip.pose_path is not None
        with open_video(clip.exo_path) as video:
            first, end = segment(video.info, clip.start_s, clip.end_s)
        assert (first, end) == (wanted.first, wanted.end)
        pose = read_pose(
            clip.pose_path,
            clip_id=clip.clip_id,
            video_stem=clip.exo_path.stem,
            start_s=clip.start_s,
            end_s=clip.end_s,
            fps=float(FPS),
        )
        exact = take.views["exo"].joints_2d[first:end]
        assert pose.keypoints.shape == (1, end - first, 17, 3)
        seen = exact[..., 2] > 0
        off = np.linalg.norm(pose.keypoints[0, ..., :2] - exact[..., :2], axis=-1)[seen]
        assert np.median(off) < 1.5
        depth = np.asarray(zarr.open_array(str(folder / "depth" / f"{clip.exo_path.stem}.zarr"), mode="r"))[first:end]
        rendered = take.views["exo"].depth[first:end]
        assert np.median(np.abs(depth / 1000 - rendered)) < 0.03
        assert depth.dtype == np.uint16


def test_the_segmentation_layout_says_the_same(folder: Path, table: ClipTable, take: Take) -> None:
    lines = (folder / "groundTruth" / "s000_ego.txt").read_text().splitlines()
    assert lines == take.labels()
    assert lines.count("background") > 0
    for clip in table.clips[:8]:
        middle = int((clip.start_s + clip.end_s) / 2 * FPS)  # type: ignore[operator]
        assert lines[middle] == table.classes[clip.label].replace(" ", "_")
    names = dict(reversed(line.split()) for line in (folder / "mapping.txt").read_text().splitlines())
    assert set(lines) <= set(names)
    bundles = {s: (folder / "splits" / f"{s}.split1.bundle").read_text().split() for s in ("train", "test")}
    assert bundles == {"train": ["s000_ego.txt", "s001_ego.txt"], "test": ["s002_ego.txt"]}


def test_one_seed_is_one_data_set_and_two_are_two(take: Take) -> None:
    again, other = make_take(5, 0, size=SIZE), make_take(6, 0, size=SIZE)
    assert all(np.array_equal(take.views[v].rgb, again.views[v].rgb) for v in ("ego", "exo"))
    assert take.segments == again.segments
    assert take.views["ego"].rgb.shape != other.views["ego"].rgb.shape or not np.array_equal(
        take.views["ego"].rgb, other.views["ego"].rgb
    )


def test_the_demo_stays_as_it_is(take: Take) -> None:
    """The random draws and the frames of the eight actions, by value: stored weights and results rely on them."""
    assert [(part.action, part.first, part.end) for part in take.segments] == SEGMENTS
    for view, wanted in LOOKS.items():
        frames = take.views[view]  # type: ignore[index]
        weights = np.cos(np.arange(frames.rgb.size) % 1009).reshape(frames.rgb.shape)
        looks = [frames.rgb.mean(), (frames.rgb * weights).mean(), frames.depth.mean(dtype=float)]
        assert np.allclose(looks, wanted, rtol=0, atol=1e-4)


def test_a_person_can_do_all_twelve(tmp_path: Path) -> None:
    table = read_clip_table(
        write_dataset(tmp_path / "data", clips=36, size=32, actions=ALL_ACTIONS, extras=False, workers=1)
    )
    assert missing_files(table) == []
    assert table.splits == {"train": 24, "val": 0, "test": 12}
    assert sorted(table.classes) == sorted(ALL_ACTIONS)
    for split, each in (("train", 2), ("test", 1)):
        assert set(np.bincount([c.label for c in table.clips if c.split == split])) == {each}
    assert len((tmp_path / "data" / "mapping.txt").read_text().splitlines()) == 13
    assert not {"depth", "poses_3d"} & {path.name for path in (tmp_path / "data").iterdir()}
    with pytest.raises(UsageError, match="at least 36"):
        write_dataset(tmp_path, clips=35, actions=ALL_ACTIONS)


def test_too_few_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 24"):
        write_dataset(tmp_path, clips=8)


def test_data_only_writes_data_and_a_picture_sheet(tmp_path: Path) -> None:
    arguments = ["demo", "--out", str(tmp_path / "demo"), "--clips", "24", "--size", "64", "--data-only"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["data", "sheet.png"]
    with Image.open(tmp_path / "demo" / "sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20
    again = CliRunner().invoke(cli.app, [*arguments, "--seed", "1"])
    assert again.exit_code == 2
    assert "choose another --out" in again.output
