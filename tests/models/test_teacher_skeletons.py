"""exo_skl: a released checkpoint of PYSKL, joint layouts of one's own, bones and motion, hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import ConfigError, WeightsError
from uniego.models.graphs import GRAPHS, adjacency, bone_ends, graph_from_edges, named_by
from uniego.models.stgcn import STGCN, read_pyskl_checkpoint
from uniego.models.teachers import TeacherConfig, build_teacher
from uniego.models.teachers.skeletons import centred_3d, modality_of
from uniego.pipeline.poses import Pose

DATA = Path(__file__).parents[1] / "data" / "teachers"
# A hand in the order of Assembly101: tips 0-4, wrist 5, then the joints of each finger.
HAND = [[0, 7], [7, 6], [6, 5], [1, 10], [10, 9], [9, 8], [8, 5], [2, 13], [13, 12], [12, 11], [11, 5], [3, 16]]
HAND += [[16, 15], [15, 14], [14, 5], [4, 19], [19, 18], [18, 17], [17, 5], [20, 8]]


def config(path: Path, **fields: Any) -> TeacherConfig:
    return TeacherConfig(network="stgcn", weights=f"file:{path}", **{"pose_frames": 10, **fields})


def pose(persons: int, joints: int, frames: int = 30) -> Pose:
    """Points (x, y, z) or, in -1..1, (x, y, score)."""
    points = np.random.default_rng(0).uniform(0.1, 1.0, (persons, frames, joints, 3)).astype(np.float32)
    return Pose(points, None, "pose")


def test_the_released_hand_gestures_equal_pyskl() -> None:
    """PYSKL's own trained ST-GCN++: six stages, one stride, two channels; everything is read off the file."""
    stored = load_file(DATA / "hagrid_io.safetensors")
    model = STGCN.from_state(read_pyskl_checkpoint(DATA / "hagrid.pth")).eval()
    assert (model.variant, model.joints, model.channels, model.classes) == ("stgcn++", 21, 2, 40)
    with torch.no_grad():
        for dtype, short, close in ((torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-8)):
            out = model.to(dtype)(stored["random/input"].to(dtype))
            torch.testing.assert_close(out.feature, stored[f"random/{short}/feature"], rtol=close, atol=close)
            torch.testing.assert_close(out.logits, stored[f"random/{short}/scores"], rtol=close, atol=close)
    teacher = build_teacher("exo_skl", config(DATA / "hagrid.pth", dim=128))
    assert teacher.fingerprint()["architecture"]["graph"] == "handmp"
    assert teacher.features([teacher.prepare(pose=pose(1, 21))]).shape == (1, 1, 128)


@pytest.mark.parametrize("layout", list(GRAPHS))
@pytest.mark.parametrize("variant", ["stgcn", "stgcn++"])
def test_every_layout_is_told_from_its_file(tmp_path: Path, layout: str, variant: Any) -> None:
    model = STGCN(layout, widths=(8, 16), classes=3, variant=variant)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "j.pth")
    teacher = build_teacher("exo_skl", config(tmp_path / "j.pth"))
    architecture = teacher.fingerprint()["architecture"]
    assert (architecture["graph"], architecture["variant"], architecture["widths"]) == (layout, variant, [8, 16])
    assert teacher.preprocessing()["normalisation"] == ("3d" if layout == "nturgb+d" else "2d")


def test_edges_of_the_named_layouts_are_the_layouts() -> None:
    for graph in GRAPHS.values():
        again = graph_from_edges([list(bone) for bone in graph.bones])
        assert again == graph
        assert named_by(adjacency(again), "stgcn_spatial") is not None
    assert named_by(adjacency(graph_from_edges(HAND)), "stgcn_spatial") is None


def test_two_hands_with_joints_in_their_own_order(tmp_path: Path) -> None:
    graph = graph_from_edges(HAND)
    assert (graph.joints, graph.centre) == (21, 5)
    torch.save(STGCN(graph, widths=(8, 16), classes=3).state_dict(), tmp_path / "hands.pth")
    settings = config(tmp_path / "hands.pth", edges=HAND, pose_dims=3, modality="b")
    teacher = build_teacher("exo_skl", settings)
    clip = teacher.prepare(pose=pose(2, 21))
    assert clip.shape == (2, 10, 21, 3)
    assert not clip[:, :, 5].any()  # the wrist has no bone
    assert teacher.fingerprint()["architecture"]["graph"] == HAND
    assert teacher.fingerprint()["preprocessing"]["modality"] == "b"
    plain = build_teacher("exo_skl", config(tmp_path / "hands.pth"))  # joints (x, y, score) need neither
    assert plain.fingerprint()["architecture"]["graph"] is None
    assert plain.weights_hash == teacher.weights_hash
    with pytest.raises(ConfigError, match="pose_dims 3 needs the centre of its 21 joints; set edges"):
        build_teacher("exo_skl", config(tmp_path / "hands.pth", pose_dims=3))
    with pytest.raises(ConfigError, match="modality b needs the bones of its 21 joints; set edges"):
        build_teacher("exo_skl", config(tmp_path / "hands.pth", modality="b"))
    with pytest.raises(ConfigError, match="trained on another graph of 21 joints than graph handmp"):
        build_teacher("exo_skl", config(tmp_path / "hands.pth", graph="handmp"))
    with pytest.raises(ConfigError, match="edges has 3 joints"):
        build_teacher("exo_skl", config(tmp_path / "hands.pth", edges=[[1, 0], [2, 0]]))
    tried = TeacherConfig(network="stgcn", weights="random:1", edges=HAND, allow_random=True)
    assert build_teacher("exo_skl", tried).dim == 256


def test_what_does_not_fit_is_refused_with_names(tmp_path: Path) -> None:
    state: dict[str, Tensor] = STGCN(widths=(8, 16), classes=3).state_dict()
    name = "backbone.gcn.1.gcn.bn.bias"
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({key: value for key, value in state.items() if key != name}, r"gcn\.1\.gcn\.bn\.bias"),
        ({**state, name: torch.zeros(3)}, r"gcn\.1\.gcn\.bn\.bias"),
        ({**state, "surplus": torch.zeros(1)}, "surplus"),
        ({**state, name: torch.full((16,), torch.inf)}, rf"NaN or infinity in {name}"),
    ]
    for number, (changed, says) in enumerate(cases):
        torch.save(changed, tmp_path / f"{number}.pth")
        with pytest.raises(WeightsError, match=says):
            build_teacher("exo_skl", config(tmp_path / f"{number}.pth"))
    torch.save(state, tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match="width 16, dim says 256"):
        build_teacher("exo_skl", config(tmp_path / "whole.pth", dim=256))


def test_bones_and_motion() -> None:
    points = np.array([[[[1, 2, 0.5], [4, 8, 1.0]], [[2, 4, 0.7], [4, 9, 0.6]]]], np.float32)  # [1, 2, 2, 3]
    bones = modality_of(points, "b", [0, 0], scored=True)
    np.testing.assert_allclose(bones[0, 0], [[0, 0, 0.5], [3, 6, 0.75]])
    motion = modality_of(points, "jm", [], scored=True)
    np.testing.assert_allclose(motion[0], [[[1, 2, 0.6], [0, 1, 0.8]], [[0, 0, 0], [0, 0, 0]]], rtol=1e-6)
    both = modality_of(points, "bm", [0, 0], scored=True)
    np.testing.assert_allclose(both[0, 0], [[0, 0, 0.6], [-1, -1, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(modality_of(points, "b", [0, 0], scored=False)[0, 0, 1], [3, 6, 0.5])
    assert modality_of(points, "j", [], scored=True) is points


def test_bones_end_where_pyskl_ends_them() -> None:
    assert bone_ends(GRAPHS["coco"], "coco") == [0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 0, 0, 11, 12, 13, 14]
    assert bone_ends(GRAPHS["openpose"], "openpose") == [0, 0, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15]
    ntu = [1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 20, 22, 7, 24, 11]
    assert bone_ends(GRAPHS["nturgb+d"], "nturgb+d") == ntu
    assert bone_ends(graph_from_edges([[1, 0], [2, 1]])) == [0, 0, 1]


def test_hands_start_at_the_origin() -> None:
    points = pose(2, 3, 4).keypoints.copy()
    points[:, 0] = 0  # nobody in the first frame
    points[0, 1] = 0  # the second hand is seen first
    out = centred_3d(points, 1)
    np.testing.assert_array_equal(out[1, 1, 1], 0)
    np.testing.assert_allclose(out[0, 2], points[0, 2] - points[1, 1, 1], rtol=1e-6)
    assert not out[:, 0].any()
    assert not centred_3d(np.zeros_like(points), 1).any()
