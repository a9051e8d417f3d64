"""Counted operations against PyTorch's own counter, and against what the published networks are known to cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from uniego.models.stgcn import STGCN
from uniego.models.teachers import TeacherConfig, build_teacher, default_teachers, tiny_teachers
from uniego.models.teachers.costs import ViT, stgcn_flops, timesformer_flops, vit_flops
from uniego.models.teachers.geometry import geometry, read_shapes
from uniego.models.teachers.local import LocalWeights, local_weights
from uniego.models.timesformer import TimeSformer


def counted(call: Any) -> int:
    """What PyTorch counts; attention is made of plain products for it."""
    with (
        torch.inference_mode(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("key", ["ego_dino", "ego_siglip", "ego_depth", "exo_skego"])
def test_image_networks(key: str) -> None:
    config = tiny_teachers()[key].model_copy(update={"crop": None})
    teacher = build_teacher(key, config)
    shape = geometry(config, LocalWeights())
    assert shape.dim == teacher.dim
    assert shape.gflop is not None
    size = config.image_size or 32
    clip = torch.zeros((8, 3, size, size), dtype=torch.uint8)
    assert shape.gflop * 1e9 == pytest.approx(counted(lambda: teacher.features([clip])), rel=0.005)


@pytest.mark.parametrize("variant", ["stgcn", "stgcn++"])
def test_skeleton_networks(variant: Any) -> None:
    widths = (12, 12, 24, 24, 48)
    model = STGCN("coco", widths=widths, variant=variant, classes=4).eval()
    pytorch = counted(lambda: model.backbone(torch.zeros(1, 2, 30, 17, 3)))
    ours = stgcn_flops(widths, model.strides, 17, 3, 30, plus=variant == "stgcn++")
    assert ours == pytest.approx(pytorch, rel=1e-6)


def test_timesformer() -> None:
    model = TimeSformer(image_size=32, patch_size=8, num_frames=4, width=48, depth=2, heads=4, num_classes=5).eval()
    pytorch = counted(lambda: model.encode(torch.zeros(1, 3, 4, 32, 32)))
    assert timesformer_flops(48, 2, 8, 32, 4) == pytest.approx(pytorch, rel=1e-6)


def test_the_papers_networks_cost_what_is_known_of_them() -> None:
    large = ViT(width=1024, depth=24, mlp=4096, patch=14)
    assert vit_flops(large, 224, 224) / 1e9 == pytest.approx(162.0, abs=0.1)
    assert vit_flops(large, 518, 518) / 1e9 == pytest.approx(1013.7, abs=0.5)
    costs = {key: geometry(config, LocalWeights()) for key, config in default_teachers().items()}
    assert {key: shape.dim for key, shape in costs.items()} == {
        **{f"{view}_{name}": 1024 for view in ("ego", "exo") for name in ("dino", "depth")},
        **{"ego_siglip": 1152, "exo_siglip": 1152, "exo_rgb": 768, "exo_skl": 256, "exo_skego": 512},
    }
    assert costs["exo_rgb"].gflop == pytest.approx(391.7, abs=0.1)
    assert sum(shape.gflop or 0.0 for shape in costs.values()) == pytest.approx(30_200, rel=0.01)


@pytest.mark.parametrize("key", list(tiny_teachers()))
def test_widths_are_told_without_a_network(key: str) -> None:
    config = tiny_teachers()[key]
    assert geometry(config, LocalWeights()).dim == build_teacher(key, config).dim


def test_a_layout_of_ones_own_counts_its_joints() -> None:
    hands = {"edges": [[joint, 0] for joint in range(1, 21)], "weights": "random:0", "allow_random": True}
    costs = [geometry(TeacherConfig(network="stgcn", **fields), LocalWeights()).gflop for fields in (hands, {})]
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0] / costs[1] == pytest.approx(21 / 17, rel=0.01)


@pytest.mark.parametrize(("key", "network"), [("exo_rgb", "timesformer"), ("exo_skl", "stgcn"), ("ego_dino", "dinov2")])
def test_the_shipped_networks_are_measured_from_their_files(key: str, network: str) -> None:
    config = TeacherConfig(network=network, weights=f"demo:{network}")
    teacher, shape = build_teacher(key, config), geometry(config, local_weights(key, config))
    assert shape.dim == teacher.dim
    assert shape.gflop is not None
    assert shape.gflop > 0


def test_shapes_of_pickled_checkpoints(tmp_path: Path) -> None:
    state = {"model.cls_token": torch.zeros(1, 1, 6), "model.x": torch.zeros(2, 3)}
    for name, zipped in (("new", True), ("old", False)):
        torch.save({"epoch": 3, "model_state": state}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        shapes = {key: tuple(value.shape) for key, value in read_shapes(tmp_path / name).items()}
        assert shapes == {"model.cls_token": (1, 1, 6), "model.x": (2, 3)}


def test_what_cannot_be_read_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "j.pth").write_bytes(b"no checkpoint")
    config = TeacherConfig(network="stgcn", weights=f"file:{tmp_path / 'j.pth'}")
    assert geometry(config, local_weights("exo_skl", config)) == (None, None)
