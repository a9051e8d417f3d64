"""The rendered world agrees with itself: joints, cameras, depth, pixels, seeds."""

from __future__ import annotations

import numpy as np
import pytest
from uniego.demo.body import JOINT_RADIUS
from uniego.demo.world import ACTIONS, PARTS, VIEWS, Frames, Scene, View, render, sample_scene, sample_subject
from uniego.errors import UsageError

TIMES = np.linspace(0.1, 1.5, 6)
SIZE = 96


def scene(seed: int, action: str) -> Scene:
    rng = np.random.default_rng(seed)
    return sample_scene(rng, action, sample_subject(rng))


@pytest.fixture(scope="module", params=list(enumerate(ACTIONS)), ids=lambda p: p[1])
def performance(request: pytest.FixtureRequest) -> tuple[Scene, dict[View, Frames]]:
    made = scene(*request.param)
    return made, {view: render(made, TIMES, view, SIZE) for view in VIEWS}


def project(frames: Frames, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [T, N, 2] and depths [T, N] of world points [T, N, 3], by the matrices alone."""
    homogeneous = np.concatenate((points, np.ones((*points.shape[:-1], 1))), axis=-1)
    camera = np.einsum("tij,tnj->tni", frames.extrinsics, homogeneous)
    pixels = np.einsum("ij,tnj->tni", frames.intrinsics, camera)
    return pixels[..., :2] / pixels[..., 2:], camera[..., 2]


def test_joints_project_into_both_cameras(performance: tuple[Scene, dict[View, Frames]]) -> None:
    _, views = performance
    assert np.array_equal(views["ego"].joints_3d, views["exo"].joints_3d)
    for frames in views.values():
        pixels, depth = project(frames, frames.joints_3d)
        ahead = depth > 0.1
        assert np.abs(pixels - frames.joints_2d[..., :2])[ahead].max() < 0.05


def test_depth_at_seen_joints_is_the_joints_within_its_limb(performance: tuple[Scene, dict[View, Frames]]) -> None:
    made, views = performance
    radius = JOINT_RADIUS * made.subject.figure.scale
    for frames in views.values():
        _, z = project(frames, frames.joints_3d)
        for t, j in np.argwhere(frames.joints_2d[..., 2] > 0):
            x, y = np.rint(frames.joints_2d[t, j, :2]).astype(int)
            assert abs(frames.depth[t, min(y, SIZE - 1), min(x, SIZE - 1)] - z[t, j]) < radius[j] + 0.03


def test_the_object_is_where_it_is_said_to_be(performance: tuple[Scene, dict[View, Frames]]) -> None:
    """Pixels of the object lie about its projected centre; what is drawn nearer than the room is nearer."""
    _, views = performance
    for frames in views.values():
        pixels, z = project(frames, frames.object_3d[:, None])
        for t in range(len(TIMES)):
            rows, columns = np.nonzero(frames.parts[t] == PARTS.index("object"))
            if len(rows) > 20 and frames.object_2d[t, 2] > 0:
                middle = np.array([columns.mean(), rows.mean()])
                extent = max(np.ptp(columns), np.ptp(rows)) + 1
                assert np.linalg.norm(middle - pixels[t, 0]) < extent
                assert abs(np.median(frames.depth[t][rows, columns]) - z[t, 0]) < 0.2


def test_the_outer_camera_sees_the_hands_more_often() -> None:
    seen: dict[View, list[float]] = {view: [] for view in VIEWS}
    for seed in range(16):
        made = scene(seed, ACTIONS[seed % 8])
        for view in VIEWS:
            seen[view].append(float(render(made, TIMES, view, 48).object_2d[:, 2].mean()))
    assert np.mean(seen["exo"]) > np.mean(seen["ego"])
    assert min(seen["ego"]) < 0.5  # some clips miss what matters


def test_one_seed_gives_the_same_bytes_and_two_differ() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    one, again, other = (render(scene(seed, "push"), TIMES, "ego", 64).rgb for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]


def test_a_frame_does_not_depend_on_its_companions() -> None:
    made = scene(3, "screw")
    many, alone = render(made, TIMES, "exo", 64), render(made, TIMES[2:3], "exo", 64)
    assert np.array_equal(many.rgb[2], alone.rgb[0])
    assert np.array_equal(many.depth[2], alone.depth[0])


def test_opposite_actions_go_opposite_ways() -> None:
    """Towards the camera's axis for the table: pushing moves the object away from the person, pulling back."""

    def way(action: str) -> np.ndarray:
        ways = []
        for seed in range(6):
            made = scene(seed, action)
            points = render(made, np.array([0.0, made.duration]), "exo", 32).object_3d
            ways.append(points[1] - points[0])
        return np.mean(ways, axis=0)

    for one, other in (("push", "pull"), ("pick up", "put down")):
        assert np.dot(way(one), way(other)) < 0


def test_what_cannot_be_rendered_is_refused() -> None:
    made = scene(0, "push")
    for arguments in ((TIMES, "top", 64), (TIMES, "ego", 8), ([], "ego", 64)):
        with pytest.raises(UsageError):
            render(made, *arguments)  # type: ignore[arg-type]
