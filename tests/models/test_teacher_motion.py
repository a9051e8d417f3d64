"""Teachers of clips and skeletons, and the hand crop that a skeleton guides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from uniego.errors import ConfigError, WeightsError
from uniego.models import TimeSformer
from uniego.models.stgcn import STGCN
from uniego.models.teachers import TeacherConfig, build_teacher, tiny_teachers
from uniego.models.teachers.hands import hand_squares
from uniego.models.teachers.skeletons import normalise_2d, normalise_3d, pad_persons, sample_frames
from uniego.pipeline.poses import Pose, PoseError

TINY = tiny_teachers()


def random_frames(count: int = 8) -> Tensor:
    values = np.random.default_rng(0).integers(0, 256, (count, 40, 60, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def pose_at(x: float, y: float, frames: int = 40, size: tuple[int, int] | None = (200, 300)) -> Pose:
    """A person whose joints all lie in a box of 40 x 40 pixels, the forearms in one of 20 x 20, about (x, y)."""
    points = np.zeros((1, frames, 17, 3), np.float32)
    points[..., :2], points[..., 2] = (x, y), 0.9
    points[:, :, 0, :2] += 20
    points[:, :, 1, :2] -= 20
    points[:, :, 7, :2] += 10
    points[:, :, 10, :2] -= 10
    return Pose(points, size, "pose")


# --- TimeSformer -------------------------------------------------------------------------------------------------


def release_file(path: Path) -> TimeSformer:
    model = TimeSformer(32, 16, 8, 64, 2, 1, 5, drop_path=0.0, seed=3).eval()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 4, "model_state": state, "optimizer_state": {}, "cfg": ""}, path)
    return model


def test_released_timesformer_gives_its_cls_token(tmp_path: Path) -> None:
    model = release_file(tmp_path / "t.pyth")
    config = TeacherConfig(network="timesformer", weights=f"file:{tmp_path / 't.pyth'}")
    teacher = build_teacher("exo_rgb", config)
    clip = teacher.prepare(random_frames())
    assert clip.shape == (8, 3, 32, 32)
    video = ((clip.float() / 255 - 0.45) / 0.225).transpose(0, 1)[None]
    with torch.no_grad():
        expected = model(video).token
    torch.testing.assert_close(teacher.features([clip])[0], expected)
    assert (teacher.dim, teacher.rows, teacher.is_random) == (64, 1, False)


def test_classifier_and_projections_are_not_part_of_the_teacher(tmp_path: Path) -> None:
    model = release_file(tmp_path / "a.pyth")
    stored = torch.load(tmp_path / "a.pyth", weights_only=True)
    stored["model_state"]["model.head.weight"] = torch.ones(9, 64)
    stored["model_state"]["model.head.bias"] = torch.ones(9)
    torch.save(stored, tmp_path / "b.pyth")
    hashes = {
        name: build_teacher(
            "exo_rgb", TeacherConfig(network="timesformer", weights=f"file:{tmp_path / name}")
        ).weights_hash
        for name in ("a.pyth", "b.pyth")
    }
    assert len(set(hashes.values())) == 1
    assert model.geometry["num_classes"] == 5


def test_timesformer_files_that_are_none(tmp_path: Path) -> None:
    config = TeacherConfig(network="timesformer", weights=f"file:{tmp_path / 'absent.pyth'}")
    with pytest.raises(WeightsError, match=r"absent\.pyth"):
        build_teacher("exo_rgb", config)
    for architecture, message in (({"layers": 2}, "layers"), ({"heads": 5}, "architecture")):
        changed = {**TINY["exo_rgb"].architecture, **architecture}
        with pytest.raises(ConfigError, match=message):
            build_teacher("exo_rgb", TINY["exo_rgb"].model_copy(update={"architecture": changed}))


# --- ST-GCN ------------------------------------------------------------------------------------------------------


def test_stgcn_checkpoint_gives_its_pooled_feature(tmp_path: Path) -> None:
    model = STGCN(widths=(8, 16), classes=3, variant="stgcn++", seed=5).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "j.pth")
    config = TeacherConfig(network="stgcn", weights=f"file:{tmp_path / 'j.pth'}", pose_frames=20)
    teacher = build_teacher("exo_skl", config)
    clip = teacher.prepare(pose=pose_at(100, 100))
    assert clip.shape == (2, 20, 17, 3)
    with torch.no_grad():
        expected = model(clip[None]).feature
    torch.testing.assert_close(teacher.features([clip])[0], expected)
    assert teacher.fingerprint()["architecture"]["graph"] == "coco"
    with pytest.raises(ConfigError, match=r"openpose has 18 joints, .* 17"):
        build_teacher("exo_skl", config.model_copy(update={"graph": "openpose"}))
    with pytest.raises(PoseError, match="wants 17 joints, the skeleton has 25"):
        teacher.prepare(pose=Pose(np.zeros((1, 9, 25, 3), np.float32), None, "pose"))


@pytest.mark.parametrize(
    "architecture", [{"width": 8}, {"base_width": 2}, {"variant": "gcn"}, {"stages": 0}, {"inflate": 3}]
)
def test_stgcn_architectures_that_cannot_be_built(architecture: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="architecture"):
        build_teacher("exo_skl", TINY["exo_skl"].model_copy(update={"architecture": architecture}))


def test_pixels_become_fractions_about_the_centre() -> None:
    points = np.array([[[[0, 0, 0.5], [300, 200, 0.02], [150, 100, 1.0], [7, 7, 0.01]]]], np.float32)
    expected = [[-1, -1, 0.5], [1, 1, 0.02], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(normalise_2d(Pose(points, (200, 300)))[0, 0], expected, atol=1e-6)
    assert points[0, 0, 3, 0] == 7
    ready = np.array([[[[-1, 0.5, 0.5]]]], np.float32)
    np.testing.assert_array_equal(normalise_2d(Pose(ready, None)), ready)
    with pytest.raises(PoseError, match="pixels, but no image size"):
        normalise_2d(Pose(points, None))
    with pytest.raises(PoseError, match="no score"):
        normalise_2d(Pose(np.full((1, 1, 17, 3), -2, np.float32), (200, 300)))


def test_kinect_skeletons_stand_upright_at_the_origin() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, 12, 25, 3)).astype(np.float32)
    points[0, :5] = 0  # the second person is seen in more frames
    points[1, 3] = 0
    out = normalise_3d(points)
    assert out.shape == (2, 11, 25, 3)
    np.testing.assert_allclose(out[0, 0, 1], 0, atol=1e-6)
    shoulders = out[0, 0, 8] - out[0, 0, 4]
    np.testing.assert_allclose(shoulders[1:], 0, atol=1e-5)
    assert shoulders[0] > 0
    kept = np.delete(points[1], 3, axis=0)
    distances = np.linalg.norm(kept[:, :, None] - kept[:, None], axis=-1)
    np.testing.assert_allclose(np.linalg.norm(out[0][:, :, None] - out[0][:, None], axis=-1), distances, atol=1e-4)
    assert not out[1, :4].any()
    assert not normalise_3d(np.zeros((1, 4, 25, 3), np.float32)).any()


def test_the_spine_is_upright_when_shoulders_are_level() -> None:
    points = np.zeros((1, 1, 25, 3), np.float32)
    points[0, 0, :, 0] = np.linspace(0, 1, 25)
    points[0, 0, 0], points[0, 0, 1] = (1, 1, 1), (1, 3, 1)
    points[0, 0, 4], points[0, 0, 8] = (0, 2, 1), (2, 2, 1)
    out = normalise_3d(points)[0, 0]
    np.testing.assert_allclose(out[0], [0, 0, -2], atol=1e-6)
    np.testing.assert_allclose(out[8] - out[4], [2, 0, 0], atol=1e-6)


def test_persons_and_frames_are_brought_to_number() -> None:
    points = np.arange(3 * 7 * 2 * 3, dtype=np.float32).reshape(3, 7, 2, 3)
    np.testing.assert_array_equal(pad_persons(points), points[:2])
    assert not pad_persons(points[:1])[1].any()
    np.testing.assert_array_equal(sample_frames(points, 3), points[:, [1, 3, 5]])
    np.testing.assert_array_equal(sample_frames(points, 10), points[:, [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]])
    np.testing.assert_array_equal(sample_frames(points, 7), points)


# --- hands -------------------------------------------------------------------------------------------------------


def test_the_square_lies_about_the_forearms() -> None:
    for top, left, side in hand_squares(pose_at(150, 100), 8, 200, 300):
        assert side == 40  # 0.2 of the short side: more than 1.6 x 20
        assert (top, left) == (80, 130)


def test_the_square_scales_with_the_frames_and_stays_inside() -> None:
    assert set(hand_squares(pose_at(150, 100), 8, 400, 600)) == {(160, 260, 80)}
    assert set(hand_squares(pose_at(2, 199), 8, 200, 300)) == {(160, 0, 40)}
    assert set(hand_squares(pose_at(150, 100, size=None), 8, 200, 300)) == {(80, 130, 40)}
    wide = pose_at(150, 100)
    wide.keypoints[:, :, 9, 0] = 299
    assert {side for _, _, side in hand_squares(wide, 8, 200, 300)} == {200}


def test_without_forearms_the_person_is_taken() -> None:
    pose = pose_at(150, 100)
    pose.keypoints[:, :, 7:11, 2] = 0.1
    assert set(hand_squares(pose, 4, 200, 300)) == {(68, 118, 64)}  # 1.6 x 40


def test_gaps_are_bridged_and_jumps_smoothed() -> None:
    pose = pose_at(50, 100, frames=80)
    pose.keypoints[:, 40:, :, 0] += 100
    pose.keypoints[:, 30:50, :, 2] = 0.0
    lefts = [left for _, left, _ in hand_squares(pose, 80, 200, 300)]
    assert lefts[0] == 30
    assert lefts[-1] == 130
    assert lefts == sorted(lefts)
    assert max(np.diff(lefts)) <= 6


def test_the_clearest_person_is_followed() -> None:
    one, other = pose_at(50, 100), pose_at(250, 100)
    other.keypoints[..., 2] = 0.5
    both = Pose(np.concatenate([other.keypoints, one.keypoints]), (200, 300), "pose")
    assert hand_squares(both, 3, 200, 300) == hand_squares(one, 3, 200, 300)


def test_skeletons_that_show_no_hands() -> None:
    with pytest.raises(PoseError) as caught:
        hand_squares(Pose(np.zeros((1, 9, 17, 3), np.float32), None, "p"), 8, 200, 300)
    assert caught.value.reason == "missing"
    with pytest.raises(PoseError, match="17 COCO joints, the skeleton has 18"):
        hand_squares(Pose(np.zeros((1, 9, 18, 3), np.float32), (200, 300), "p"), 8, 200, 300)
    with pytest.raises(PoseError, match="normalised"):
        hand_squares(Pose(np.ones((1, 9, 17, 3), np.float32), None, "p"), 8, 200, 300)


def test_the_crop_sees_nothing_but_the_square() -> None:
    teacher = build_teacher("exo_skego", TINY["exo_skego"])
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 200, 300, 3), dtype=np.uint8))
    blank = torch.zeros_like(frames)
    blank[:, 80:120, 130:170] = frames[:, 80:120, 130:170]
    pose = pose_at(150, 100)
    assert torch.equal(teacher.prepare(frames, pose), teacher.prepare(blank, pose))
    assert not torch.equal(teacher.prepare(frames, pose), teacher.prepare(frames, pose_at(120, 100)))
