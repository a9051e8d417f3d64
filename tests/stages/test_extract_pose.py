"""`uniego extract-pose`: on real videos where the networks and videos are there, its refusals everywhere."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import Stopped, UsageError, WeightsError
from uniego.models import blazepose
from uniego.models.blazepose import BlazePose, Region
from uniego.pipeline.poses import read_pose
from uniego.stages import extract_pose as stage

MISSING = [name for name in ("ai_edge_litert", "mediapipe") if importlib.util.find_spec(name) is None]
needs_networks = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (docs/poses.md)")
WALK = "intel_asl/walk.mkv"  # 89 frames, one person from the waist up
JUGGLE = "exo_misc/sam2_juggle.mp4"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["extract-pose", *[str(a) for a in arguments]])


def test_anchors_are_in_the_networks_order() -> None:
    anchors = blazepose._anchors()
    assert anchors.shape == (2254, 2)
    np.testing.assert_allclose(anchors[[0, 1, 2, 56]], np.array([(1, 1), (1, 1), (3, 1), (1, 3)]) / 56)
    np.testing.assert_allclose(
        anchors[[1568, 1960, 1965, 1966]], [(1 / 28,) * 2, *[(1 / 14,) * 2] * 2, (3 / 14, 1 / 14)]
    )


@pytest.mark.parametrize("up", [(0.0, -1.0), (1.0, 0.0), (-0.6, 0.8)])
def test_a_region_is_cut_upright_and_its_points_lead_back(up: tuple[float, float]) -> None:
    """A dot above the hips, in the direction of the head, lies in the middle of the square's upper half."""
    centre, direction = np.array([300.0, 200.0]), np.array(up)
    region = Region.around(centre, centre + 80 * direction)
    assert region is not None
    assert region.side == pytest.approx(200)
    picture = np.zeros((400, 600, 3), np.uint8)
    x, y = np.round(centre + 50 * direction).astype(int)
    picture[y - 4 : y + 5, x - 4 : x + 5] = 255
    seen = region.cut(Image.fromarray(picture), 256)[..., 0] > 0.5
    rows, columns = np.nonzero(seen)
    found = np.array([[columns.mean() + 0.5, rows.mean() + 0.5]], np.float32) / 256
    np.testing.assert_allclose(found, [[0.5, 0.25]], atol=0.01)
    np.testing.assert_allclose(region.to_picture(found), [centre + 50 * direction], atol=1.5)


def test_a_region_without_extent_is_none() -> None:
    assert Region.around(np.zeros(2), np.zeros(2)) is None
    assert Region.around(np.zeros(2), np.array([np.nan, 1.0])) is None


def test_videos_are_named_in_one_way(tmp_path: Path, clip_table: Path) -> None:
    out = tmp_path / "poses.pkl"
    for arguments in ([], ["a.mp4", "--data", clip_table], ["--run", tmp_path, "--data", clip_table]):
        result = call(*arguments, "--out", out)
        assert result.exit_code == 2
        assert "one way" in result.output
    assert "--root belongs to --data" in call("a.mp4", "--root", tmp_path, "--out", out).output
    assert "poses.pkl" in call("a.mp4", "--out", tmp_path / "poses.npy").output


def test_two_videos_of_one_stem_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one/cam01\.mp4 and .*two/cam01\.mkv.*one by one"):
        stage.extract_pose([tmp_path / "one/cam01.mp4", tmp_path / "two/cam01.mkv"], tmp_path / "p.pkl")


def test_missing_weights_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ai_edge_litert" in MISSING:
        with pytest.raises(WeightsError, match=r"uniego\[pose\].*--no-deps mediapipe==0\.10\.21"):
            BlazePose()
        return
    with pytest.raises(WeightsError, match=r"no such file.*--no-deps mediapipe==0\.10\.21"):
        BlazePose(tmp_path)
    for name in (blazepose.DETECTOR, blazepose.LANDMARKS):
        (tmp_path / name).write_bytes(b"no network")
    with pytest.raises(WeightsError, match=r"not a TensorFlow Lite network"):
        BlazePose(tmp_path)


def test_a_table_without_exo_videos_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("clip_id,split,label,ego_path\na,train,0,a.mp4\n")
    result = call("--data", table, "--out", tmp_path / "p.pkl")
    assert result.exit_code == 2
    assert "no row names an exo_path" in result.output


@needs_networks
@pytest.mark.media
def test_a_person_is_found_and_the_pickle_read_back(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "poses.pkl"
    result = call(media / WALK, "--out", out, "--overlay", tmp_path / "look")
    assert result.exit_code == 0, result.output
    assert "1 of 1 video, 89 frames; at least" in result.output
    pose = read_pose(out, clip_id="c", video_stem="walk", start_s=0.5, end_s=1.5, fps=30.0)
    assert pose.keypoints.shape == (1, 30, 17, 3)
    assert pose.image_size == (480, 640)
    whole = read_pose(out, clip_id="walk").keypoints[0]
    seen = whole[..., 2].any(axis=1)
    assert seen.mean() > 0.95
    nose, left_eye, right_eye, left, right = (whole[seen][:, joint] for joint in (0, 1, 2, 5, 6))
    assert (nose[:, 1] < left[:, 1]).all()  # the head is above the shoulders
    assert (left[:, 0] > right[:, 0] + 50).all()  # she faces the camera: her left is on the right
    assert (left_eye[:, 0] > right_eye[:, 0]).all()
    assert np.abs(np.diff(whole[:, 0, :2], axis=0)).max() < 60  # and is followed without jumps
    pictures = sorted((tmp_path / "look").iterdir())
    assert len(pictures) == stage.OVERLAYS
    assert pictures[0].name == "walk-000005.png"
    assert Image.open(pictures[0]).size == (640, 480)


@needs_networks
@pytest.mark.media
def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_bytes(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [media / WALK, media / "intel_asl/yes.mkv"]
    stage.extract_pose(videos, tmp_path / "whole.pkl")
    out = tmp_path / "poses.pkl"
    followed: list[str] = []
    follow = stage._Work._follow

    def stopped(work: Any, path: Path, *rest: Any) -> Any:
        if len(followed) == 1:
            raise Stopped("stopped on SIGTERM")
        followed.append(path.stem)
        return follow(work, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage._Work, "_follow", stopped)
        with pytest.raises(Stopped):
            stage.extract_pose(videos, out)
    assert not out.exists()
    assert [path.name for path in (tmp_path / "poses.pkl.parts").iterdir()] == ["walk.npz"]
    (tmp_path / "poses.pkl.parts" / "yes.npz").write_bytes(b"torn")
    stage.extract_pose(videos, out)
    assert out.read_bytes() == (tmp_path / "whole.pkl").read_bytes()
    before = out.stat().st_mtime_ns
    monkeypatch.setattr(stage._Work, "_follow", None)  # nothing is left to do
    stage.extract_pose(videos, out)
    assert out.stat().st_mtime_ns == before


@needs_networks
def test_empty_scenes_are_zeros_and_bad_videos_are_named(
    tmp_path: Path, make_video: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_video(tmp_path / "square.mp4", frames=9)
    bad = tmp_path / "text.mp4"
    bad.write_text("no video")
    result = call(good, bad, tmp_path / "none.mp4", "--out", tmp_path / "poses.pkl")
    assert result.exit_code == 1
    assert "2 of 3 videos cannot be read" in result.output
    assert "text.mp4" in result.output
    assert "nobody was found at all: square" in result.output
    content = pickle.loads((tmp_path / "poses.pkl").read_bytes())  # noqa: S301  (just written)
    (annotation,) = content["annotations"]
    assert annotation["frame_dir"] == "square"
    assert annotation["keypoint"].dtype == annotation["keypoint_score"].dtype == np.float16
    assert annotation["keypoint"].shape == (1, 9, 17, 2)
    assert not annotation["keypoint"].any()
    assert not annotation["keypoint_score"].any()
    assert annotation["img_shape"] == (48, 64)


@needs_networks
def test_a_changed_video_is_done_again(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video, out = tmp_path / "square.mp4", tmp_path / "poses.pkl"
    for frames in (9, 14):
        make_video(video, frames=frames)
        stage.extract_pose([video], out)
        assert read_pose(out, clip_id="square").keypoints.shape[1] == frames


@needs_networks
def test_a_damaged_part_is_done_again(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video, out = make_video(tmp_path / "square.mp4", frames=9), tmp_path / "poses.pkl"
    stage.extract_pose([video], out)
    written, part = out.read_bytes(), tmp_path / "poses.pkl.parts" / "square.npz"
    for damage in (part.read_bytes()[:1000], b"", b"no zip file"):
        part.write_bytes(damage)
        stage.extract_pose([video], out)
        assert out.read_bytes() == written


def test_a_folder_in_the_place_of_the_pickle_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "poses.pkl").mkdir()
    with pytest.raises(UsageError, match=r"poses\.pkl: is a folder"):
        stage.extract_pose([tmp_path / "a.mp4"], tmp_path / "poses.pkl")


@needs_networks
@pytest.mark.media
def test_chunks_are_all_frames_in_order(
    media: Path, make_video: Callable[..., Path], frame_number: Callable[..., int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(stage, "_CHUNK_FRAMES", 7)
    path = make_video(tmp_path / "v.mp4", frames=30)
    with stage.open_video(path) as video:
        chunks = list(stage._chunks(video))
    assert [len(chunk) for chunk in chunks] == [7, 7, 7, 7, 2]
    assert [frame_number(frame) for chunk in chunks for frame in chunk] == list(range(30))
    network = BlazePose()
    with stage.open_video(media / JUGGLE) as video:
        frames = video.frames([0, 1])
    first, second = (network.joints(frame) for frame in frames)  # the second by the region of the first
    network.forget()
    fresh = network.joints(frames[1])
    assert first is not None
    assert second is not None
    assert fresh is not None
    body = [5, 6, 11, 12]
    assert np.abs(second[body, :2] - fresh[body, :2]).max() < 25  # tracked or found anew, the trunk is the same
