"""Skeleton files: forms, lookup, cutting, and everything that is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.errors import UsageError
from uniego.pipeline.poses import Pose, PoseError, read_pose


def annotation(name: str, frames: int = 30, persons: int = 1, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(name) + frames)
    points = rng.uniform(0, 100, (persons, frames, 17, 2)).astype(np.float16)
    return {
        "frame_dir": name,
        "total_frames": frames,
        "img_shape": (240, 320),
        "original_shape": (240, 320),
        "label": 3,
        "keypoint": points,
        "keypoint_score": rng.uniform(0, 1, (persons, frames, 17)).astype(np.float16),
        **changes,
    }


def write(path: Path, content: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("as_dict", [False, True])
def test_pickle_forms(tmp_path: Path, protocol: int, as_dict: bool) -> None:
    notes = [annotation("clip_a", persons=2), annotation("clip_b")]
    content = {"split": {"train": ["clip_a"]}, "annotations": notes} if as_dict else notes
    path = write(tmp_path / "poses.pkl", content, protocol)
    pose = read_pose(path, clip_id="clip_a")
    assert pose.keypoints.dtype == np.float32
    assert pose.keypoints.shape == (2, 30, 17, 3)
    assert pose.image_size == (240, 320)
    np.testing.assert_array_equal(pose.keypoints[..., :2], notes[0]["keypoint"].astype(np.float32))
    np.testing.assert_array_equal(pose.keypoints[..., 2], notes[0]["keypoint_score"].astype(np.float32))


def test_numpy_scalars_and_old_module_names(tmp_path: Path) -> None:
    note = annotation("clip", label=np.int64(3), img_shape=(np.int64(240), np.int32(320)), seen={1, 2})
    data = pickle.dumps([note], protocol=0).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in data
    path = tmp_path / "poses.pkl"
    path.write_bytes(data)
    assert read_pose(path, clip_id="clip").image_size == (240, 320)


def test_three_dimensions_have_no_score(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(2, 9, 25, 3)).astype(np.float32)
    path = write(tmp_path / "ntu.pkl", [{"frame_dir": "c", "total_frames": 9, "keypoint": points}])
    pose = read_pose(path, clip_id="c")
    np.testing.assert_array_equal(pose.keypoints, points)
    assert pose.image_size is None


def test_clip_is_cut_out_of_its_video(tmp_path: Path) -> None:
    note = annotation("video", frames=100)
    path = write(tmp_path / "poses.pkl", [note])
    pose = read_pose(path, clip_id="c", video_stem="video", start_s=1.02, end_s=2.98, fps=25.0)
    expected = note["keypoint"][0, 26:74, :, 0].astype(np.float32)
    np.testing.assert_array_equal(pose.keypoints[0, :, :, 0], expected)
    assert read_pose(path, clip_id="c", video_stem="video").keypoints.shape[1] == 100
    assert read_pose(path, clip_id="c", video_stem="video", end_s=2.0, fps=25.0).keypoints.shape[1] == 50
    with pytest.raises(PoseError, match="at the frame rate of its video, which is not known") as caught:
        read_pose(path, clip_id="c", video_stem="video", end_s=2.0)
    assert caught.value.reason == "unreadable"


def test_a_clip_of_its_own_goes_before_its_video(tmp_path: Path) -> None:
    path = write(tmp_path / "poses.pkl", [annotation("video", frames=100), annotation("c", frames=10)])
    pose = read_pose(path, clip_id="c", video_stem="video", start_s=1.0, end_s=2.0, fps=25.0)
    assert pose.keypoints.shape[1] == 10


def test_an_annotation_that_ends_early_is_truncated(tmp_path: Path) -> None:
    notes = [annotation("video", frames=100), annotation("short", total_frames=60)]
    path = write(tmp_path / "poses.pkl", notes)
    nearly = read_pose(path, clip_id="c", video_stem="video", start_s=2.0, end_s=4.1, fps=25.0)
    assert nearly.keypoints.shape[1] == 50
    for start, end in ((2.0, 6.0), (4.0, 4.5), (9.0, 10.0)):
        with pytest.raises(PoseError) as caught:
            read_pose(path, clip_id="c", video_stem="video", start_s=start, end_s=end, fps=25.0)
        assert caught.value.reason == "truncated"
    with pytest.raises(PoseError, match="30 of its 60"):
        read_pose(path, clip_id="short")


@pytest.mark.parametrize(("shape", "expected"), [((9, 17, 2), (1, 9, 17, 3)), ((2, 9, 17, 3), (2, 9, 17, 3))])
def test_npy_files(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    points = np.ones(shape)
    points[..., :2] = 5
    np.save(tmp_path / "c.npy", points)
    pose = read_pose(tmp_path / "c.npy", clip_id="c", image_size=(4, 6))
    assert pose.keypoints.shape == expected
    assert pose.keypoints.dtype == np.float32
    assert (pose.keypoints[..., -1] == 1).all()
    assert pose.image_size == (4, 6)
    assert read_pose(tmp_path / "c.npy", clip_id="c").image_size is None
    np.save(tmp_path / "normalised.npy", points / 5)
    assert read_pose(tmp_path / "normalised.npy", clip_id="c", image_size=(4, 6)).image_size is None


def test_what_is_not_finite_was_not_found(tmp_path: Path) -> None:
    points = np.ones((5, 17, 2))
    points[2, 3, 0], points[4, 1, 1] = np.nan, np.inf
    np.save(tmp_path / "c.npy", points)
    keypoints = read_pose(tmp_path / "c.npy", clip_id="c").keypoints
    assert (keypoints[0, 2, 3] == 0).all()
    assert (keypoints[0, 4, 1] == 0).all()
    assert keypoints.sum() == (5 * 17 - 2) * 3


@pytest.mark.parametrize("name", ["c.npy", "c.pkl"])
def test_missing_files_and_annotations(tmp_path: Path, name: str) -> None:
    with pytest.raises(PoseError) as caught:
        read_pose(tmp_path / name, clip_id="c")
    assert (caught.value.reason, caught.value.path) == ("missing", str(tmp_path / name))
    path = write(tmp_path / "poses.pkl", [annotation("other")])
    with pytest.raises(PoseError, match="'c' or 'v'") as caught:
        read_pose(path, clip_id="c", video_stem="v")
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("keep", [0, 20, 90, 200])
def test_cut_files_are_truncated(tmp_path: Path, keep: int) -> None:
    np.save(tmp_path / "c.npy", np.ones((9, 17, 2)))
    write(tmp_path / "c.pkl", [annotation("c")])
    for name in ("c.npy", "c.pkl"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(PoseError) as caught:
            read_pose(path, clip_id="c")
        assert caught.value.reason == "truncated"
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        17,
        {"split": {}},
        [17],
        [{"keypoint": np.ones((1, 9, 17, 2))}],
        [annotation("c"), annotation("c")],
        [{"frame_dir": "c"}],
        [annotation("c", keypoint=np.ones((9, 17)))],
        [annotation("c", keypoint=np.ones((1, 0, 17, 2)))],
        [annotation("c", keypoint="text")],
        [annotation("c", keypoint_score=np.ones((1, 9, 17)))],
        [annotation("c", img_shape=(0, 320))],
        [annotation("c", img_shape="wide")],
    ],
)
def test_odd_contents_are_unreadable(tmp_path: Path, content: Any) -> None:
    with pytest.raises(PoseError) as caught:
        read_pose(write(tmp_path / "c.pkl", content), clip_id="c")
    assert caught.value.reason == "unreadable"


def test_damaged_and_foreign_files_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "c.npy").write_bytes(b"no array " * 30)
    (tmp_path / "c.pkl").write_bytes(b"no pickle " * 30)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array([[["a"] * 2] * 3] * 3))
    for name in ("c.npy", "c.pkl", "objects.npy", "text.npy"):
        with pytest.raises(PoseError) as caught:
            read_pose(tmp_path / name, clip_id="c")
        assert caught.value.reason in {"unreadable", "truncated"}
    with pytest.raises(UsageError, match=r"\.npy, \.pkl"):
        read_pose(tmp_path / "c.csv", clip_id="c")


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickles_with_code_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "poses.pkl", [annotation("c", label=Harmful(tmp_path / "ran"))])
    with pytest.raises(UsageError, match=r"poses\.pkl.*mkdir"):
        read_pose(path, clip_id="c")
    assert not (tmp_path / "ran").exists()
    inside = np.array([Harmful(tmp_path / "ran")], dtype=object)
    with pytest.raises(UsageError, match="mkdir"):
        read_pose(write(tmp_path / "inside.pkl", [annotation("c", label=inside)]), clip_id="c")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_parsed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uniego.pipeline import poses_pickle as poses

    parsed: list[Path] = []
    load = poses._load_pickle
    monkeypatch.setattr(poses, "_load_pickle", lambda path: parsed.append(path) or load(path))
    path = write(tmp_path / "poses.pkl", [annotation("a"), annotation("b")])
    for name in ("a", "b", "a"):
        read_pose(path, clip_id=name)
    assert len(parsed) == 1
    write(path, [annotation("c", frames=40)])
    assert read_pose(path, clip_id="c").keypoints.shape[1] == 40
    assert len(parsed) == 2


def test_errors_survive_a_trip_between_processes() -> None:
    error = PoseError("missing", "a/b.pkl", "no such file")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.reason, again.path, str(again)) == ("missing", "a/b.pkl", "a/b.pkl: no such file")
    assert Pose(np.zeros((1, 1, 17, 3), np.float32), None).path == ""
