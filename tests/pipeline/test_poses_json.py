"""Skeletons in data sets' own JSON: Ego-Exo4D's body poses and Assembly101's hands, in small imitations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from uniego.pipeline.poses import PoseError, read_pose
from uniego.pipeline.poses_json import ASSEMBLY101_FPS, COCO, EGOEXO4D_HOLD, EGOEXO4D_IMAGE


def body(shift: float, leave_out: str = "") -> dict[str, Any]:
    return {
        name: {"x": 100.0 * place + shift, "y": 50.0 + shift, "placement": "manual" if place % 2 else "auto"}
        for place, name in enumerate(COCO)
        if name != leave_out
    }


def take(frames: dict[int, float], leave_out: str = "") -> dict[str, Any]:
    """Ego-Exo4D: frame number as text -> one entry per annotator; cam02 is mirrored, aria01 sees nobody."""
    return {
        str(frame): [
            {
                "metadata": {"take_uid": "u"},
                "annotation2D": {"cam01": body(shift, leave_out), "cam02": body(-shift), "aria01": {}},
                "annotation3D": {"nose": {"x": 1.0, "y": 2.0, "z": 3.0, "num_views_for_3d": 4}},
            },
            {"annotation2D": {"cam01": body(999.0)}},
        ]
        for frame, shift in frames.items()
    }


def hands(count: int) -> list[dict[str, Any]]:
    """Assembly101: both hands in every frame; hand 1 is lost in every third, hand 0 never."""
    return [
        {
            "landmarks": {str(hand): [[n + j, 2.0 * hand, -1.0 * j] for j in range(21)] for hand in (0, 1)},
            "tracking_confidence": {"0": 1.0, "1": 0.0 if n % 3 == 0 else 0.5},
        }
        for n in range(count)
    ]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_body_in_the_picture_of_a_camera(tmp_path: Path) -> None:
    path = write(tmp_path / "take.json", take({30: 1.0, 33: 2.0}, leave_out="left-ankle"))
    pose = read_pose(path, clip_id="c", video_stem="cam01", start_s=1.0, end_s=1.2, fps=60.0, image_size=(448, 796))
    assert pose.keypoints.shape == (1, 6, 17, 3)
    assert pose.image_size == EGOEXO4D_IMAGE  # of the full-size video, whatever the size of the one at hand
    np.testing.assert_array_equal(pose.keypoints[0, :, 3, 0], [301, 301, 302, 302, 302, 302])  # the nearest frame
    np.testing.assert_array_equal(pose.keypoints[0, 0, 3], [301, 51, 1])
    assert not pose.keypoints[0, :, COCO.index("left-ankle")].any()
    other = read_pose(path, clip_id="c", video_stem="cam02", start_s=1.0, end_s=1.2)
    assert other.keypoints[0, 0, 3, 0] == 299
    assert other.keypoints[0, 0, COCO.index("left-ankle"), 2] == 1


def test_an_annotation_stands_in_for_half_a_second(tmp_path: Path) -> None:
    path = write(tmp_path / "take.json", take({60: 0.0, 300: 0.0}))
    seen = read_pose(path, clip_id="c", video_stem="cam01").keypoints[0].any(axis=(1, 2))
    expected = np.zeros(300 + EGOEXO4D_HOLD + 1, bool)
    expected[60 - EGOEXO4D_HOLD : 61 + EGOEXO4D_HOLD] = expected[300 - EGOEXO4D_HOLD :] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ("stem", "start", "end", "reason", "match"),
    [
        ("cam03", None, None, "missing", "cam01, cam02"),
        ("aria01", None, None, "missing", "cam01, cam02"),
        (None, None, None, "missing", "cam01, cam02"),
        ("cam01", 3.0, 4.0, "missing", "nobody is annotated"),
        ("cam01", 10.0, 12.0, "truncated", "316 frames"),
    ],
)
def test_clips_that_a_take_does_not_cover(
    tmp_path: Path, stem: str | None, start: float | None, end: float | None, reason: str, match: str
) -> None:
    path = write(tmp_path / "take.json", take({60: 0.0, 300: 0.0}))
    with pytest.raises(PoseError, match=match) as caught:
        read_pose(path, clip_id="c", video_stem=stem, start_s=start, end_s=end)
    assert caught.value.reason == reason


def test_hands_are_cut_at_their_own_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "recording.json", hands(90))
    pose = read_pose(path, clip_id="c", video_stem="C10118_rgb", start_s=0.5, end_s=1.0, fps=30.0)
    assert pose.keypoints.shape == (2, round(0.5 * ASSEMBLY101_FPS), 21, 3)
    assert pose.image_size is None
    np.testing.assert_array_equal(pose.keypoints[0, 0, 4], [34, 0, -4])
    np.testing.assert_array_equal(pose.keypoints[1, 1, 4], [35, 2, -4])
    assert not pose.keypoints[1, 0].any()  # frame 30: tracking lost
    assert read_pose(path, clip_id="c").keypoints.shape[1] == 90


def test_hands_that_end_before_the_clip_are_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "recording.json", hands(60))
    with pytest.raises(PoseError) as caught:
        read_pose(path, clip_id="c", start_s=0.0, end_s=2.0)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "content",
    [
        3,
        [],
        [3],
        [{"landmarks": {"2": [[0, 0, 0]] * 21}}],
        [{"landmarks": {"0": [[0, 0, 0]] * 20}}],
        {"first": [{"annotation2D": {"cam01": {"nose": {"x": 1, "y": 2}}}}]},
        {"-4": [{"annotation2D": {"cam01": {"nose": {"x": 1, "y": 2}}}}]},
        {"4": [{"annotation2D": {"cam01": {"nose": {"x": 1}}}}]},
        {"4": 5},
    ],
)
def test_other_json_is_unreadable(tmp_path: Path, content: Any) -> None:
    with pytest.raises(PoseError) as caught:
        read_pose(write(tmp_path / "c.json", content), clip_id="c", video_stem="cam01")
    assert caught.value.reason == "unreadable"


def test_files_cut_short_or_missing(tmp_path: Path) -> None:
    text = json.dumps(take({30: 1.0}))
    for keep in (0, 40, len(text) - 1):
        (tmp_path / "c.json").write_text(text[:keep])
        with pytest.raises(PoseError) as caught:
            read_pose(tmp_path / "c.json", clip_id="c", video_stem="cam01")
        assert caught.value.reason == "truncated"
    (tmp_path / "c.json").write_text("no { JSON }")
    with pytest.raises(PoseError) as caught:
        read_pose(tmp_path / "c.json", clip_id="c", video_stem="cam01")
    assert caught.value.reason == "unreadable"
    with pytest.raises(PoseError) as caught:
        read_pose(tmp_path / "none.json", clip_id="c")
    assert caught.value.reason == "missing"


def test_a_take_without_body_poses_says_so(tmp_path: Path) -> None:
    only_3d = {"4": [{"annotation3D": {"nose": {"x": 1.0, "y": 2.0, "z": 3.0}}}], "5": []}
    with pytest.raises(PoseError, match="the file has none") as caught:
        read_pose(write(tmp_path / "c.json", only_3d), clip_id="c", video_stem="cam01")
    assert caught.value.reason == "missing"


def test_what_is_not_finite_was_not_found(tmp_path: Path) -> None:
    frames = hands(3)
    frames[1]["landmarks"]["0"][5][2] = float("nan")
    keypoints = read_pose(write(tmp_path / "c.json", frames), clip_id="c").keypoints
    assert np.isfinite(keypoints).all()
    assert not keypoints[0, 1, 5].any()
