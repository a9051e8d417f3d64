"""ST-GCN, ST-GCN++ and their graphs against numbers computed with the PYSKL code (Apache-2.0)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import UsageError, WeightsError
from uniego.models.graphs import GRAPHS, adjacency, graph_of
from uniego.models.stgcn import STGCN, read_pyskl_checkpoint

DATA = Path(__file__).parents[1] / "data" / "teachers"


@pytest.fixture(scope="module", params=["stgcn", "stgcnpp"])
def golden(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return load_file(DATA / f"{request.param}_tiny.safetensors")


def state_of(golden: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    prefix = f"{layout}/state/"
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


@pytest.mark.parametrize("layout", list(GRAPHS))
def test_graphs_equal_pyskl(layout: str) -> None:
    stored = np.load(DATA / "adjacency.npz")
    graph = GRAPHS[layout]
    assert graph.centre == int(stored[f"{layout}/center"])
    assert sorted(graph.bones) == sorted(map(tuple, stored[f"{layout}/inward"].tolist()))
    np.testing.assert_array_equal(adjacency(layout, "stgcn_spatial"), stored[f"{layout}/stgcn_spatial"])
    np.testing.assert_array_equal(adjacency(layout, "spatial"), stored[f"{layout}/spatial"])
    assert graph_of(graph.joints) == layout


def test_unknown_graph_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"coco, openpose"):
        adjacency("kinect")
    with pytest.raises(UsageError, match="spatial"):
        adjacency("coco", "random")  # type: ignore[arg-type]
    assert graph_of(99) is None


@pytest.mark.parametrize("layout", ["coco", "nturgbd"])
@pytest.mark.parametrize("length", ["t13", "t20"])
def test_outputs_equal_pyskl(golden: dict[str, Tensor], layout: str, length: str) -> None:
    model = STGCN.from_state(state_of(golden, layout)).eval()
    poses, at = golden[f"{layout}/{length}/input"], f"{layout}/{length}"
    with torch.no_grad():
        single, double = model(poses), model.double()(poses.double())
    for name in ("feature", "map"):
        expected = golden[f"{at}/f32/{name}"]
        torch.testing.assert_close(getattr(single, name), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.logits, golden[f"{at}/f32/scores"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(double.feature, golden[f"{at}/f64/feature"], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(double.logits, golden[f"{at}/f64/scores"], rtol=1e-8, atol=1e-8)


def test_a_fresh_network_has_the_names_of_a_stored_one(golden: dict[str, Tensor]) -> None:
    state = state_of(golden, "coco")
    stored = STGCN.from_state(state)
    fresh = STGCN("coco", widths=stored.widths, classes=6, variant=stored.variant)
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    assert stored.strides == fresh.strides == (1, 1, 1, 1, 2, 1, 1, 2, 1, 1)
    torch.testing.assert_close(fresh.state_dict()["backbone.gcn.0.gcn.A"].double(), start_graph(fresh))


def start_graph(model: STGCN) -> Tensor:
    graph = adjacency("coco", "spatial" if model.variant == "stgcn++" else "stgcn_spatial")
    return torch.from_numpy(graph.astype(np.float32)).double()


def test_sizes_of_the_published_networks() -> None:
    plain, plus = STGCN(), STGCN(variant="stgcn++")
    assert len([name for name in plain.state_dict() if name.startswith("backbone.")]) == 179
    assert len([name for name in plus.state_dict() if name.startswith("backbone.")]) == 690
    with torch.no_grad():
        out = plain.eval()(torch.zeros(1, 2, 100, 17, 3))
    assert out.feature.shape == (1, 256)
    assert out.map.shape == (1, 2, 256, 25, 17)


def test_norm_over_persons_is_inferred() -> None:
    model = STGCN(widths=(8, 16), classes=3, norm_persons=2).eval()
    again = STGCN.from_state(model.state_dict()).eval()
    poses = torch.randn(2, 2, 10, 17, 3, generator=torch.Generator().manual_seed(1))
    assert again.backbone.data_bn.num_features == 2 * 17 * 3
    with torch.no_grad():
        torch.testing.assert_close(again(poses).feature, model(poses).feature)


def test_seed_decides_the_weights_and_nothing_else() -> None:
    before = torch.get_rng_state()
    first, second, other = (STGCN(widths=(8, 16), classes=3, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.get_rng_state(), before)
    name = "backbone.gcn.0.gcn.conv.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def as_mmcv(state: dict[str, Tensor]) -> dict[str, object]:
    return {"meta": {"epoch": 3}, "state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("wrap", [dict, as_mmcv])
def test_checkpoint_files_in_both_forms(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    model = STGCN(widths=(8, 16), classes=3)
    torch.save(wrap(model.state_dict()), tmp_path / "j.pth")
    again = STGCN.from_state(read_pyskl_checkpoint(tmp_path / "j.pth"))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_refusals_name_file_and_keys(tmp_path: Path) -> None:
    state = STGCN(widths=(8, 16), classes=3).state_dict()
    with pytest.raises(WeightsError, match="no such file"):
        read_pyskl_checkpoint(tmp_path / "absent.pth")
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth"):
        read_pyskl_checkpoint(tmp_path / "odd.pth")
    torch.save({"epoch": 3}, tmp_path / "plain.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_pyskl_checkpoint(tmp_path / "plain.pth")
    lacking = {name: value for name, value in state.items() if name != "backbone.gcn.1.gcn.bn.bias"}
    with pytest.raises(WeightsError, match=r"backbone\.gcn\.1\.gcn\.bn\.bias"):
        STGCN.from_state(lacking)
    with pytest.raises(WeightsError, match="surplus"):
        STGCN.from_state({**state, "surplus": torch.zeros(1)})
    with pytest.raises(WeightsError):
        STGCN.from_state({})
