"""Released checkpoints, and geometry told from a state dict."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from uniego.errors import UniegoError, WeightsError
from uniego.models import TimeSformer, geometry_from_state, read_release_checkpoint
from uniego.models.release import parameter_shapes

CHECKPOINT = Path(__file__).parents[1] / "data" / "official_layout_tiny.pyth"


def stored() -> dict[str, Any]:
    return dict(torch.load(CHECKPOINT, weights_only=True))


def saved(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_reads_a_released_checkpoint() -> None:
    state, metadata = read_release_checkpoint(CHECKPOINT)
    original = stored()
    assert metadata["epoch"] == 14
    assert metadata["config"] == original["cfg"]
    assert len(state) == 71
    for name, tensor in state.items():
        assert torch.equal(tensor, original["model_state"][f"model.{name}"])
    geometry = geometry_from_state(state, heads=4, projection="exo_skl")
    assert geometry == {
        "image_size": 32,
        "patch_size": 8,
        "num_frames": 4,
        "width": 48,
        "depth": 3,
        "heads": 4,
        "num_classes": 7,
        "projections": {"exo_skl": 256},
        "drop_path": 0.1,
    }
    model = TimeSformer(**geometry).eval()
    model.load_state_dict(state)
    assert model(torch.zeros(1, 3, 4, 32, 32)).projected["exo_skl"].shape == (1, 256)


def test_reads_the_older_file_format_and_does_without_an_optimiser(tmp_path: Path) -> None:
    content = stored()
    del content["optimizer_state"]
    path = saved(tmp_path / "old.pyth", content, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert read_release_checkpoint(str(path))[1]["epoch"] == 14


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pyth", stored())
    state, _ = read_release_checkpoint(path)
    before = state["head.weight"].clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(state["head.weight"], before)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda c: c.pop("cfg"), "has no cfg"),
        (lambda c: (c.pop("epoch"), c.pop("model_state")), "has no epoch, model_state"),
        (lambda c: c.update(epoch="14"), "whole number"),
        (lambda c: c.update(model_state=[1]), "model_state: is a list"),
        (lambda c: c.update(model_state={}), "must start with"),
        (lambda c: c["model_state"].update(odd=torch.zeros(1)), "odd"),
        (lambda c: c["model_state"].update({"model.odd": torch.zeros(1)}), "unknown: odd"),
        (lambda c: c["model_state"].update({"model.head.bias": "text"}), "model.head.bias"),
        (
            lambda c: c["model_state"].pop("model.blocks.1.temporal_fc.bias"),
            "missing: blocks.1.temporal_fc.bias",
        ),
        (lambda c: c["model_state"].pop("model.proj_layer.bias"), "missing: proj_layer.bias"),
        (lambda c: c["model_state"].update({"model.blocks.99999999.a": torch.zeros(1)}), "block 99999999"),
    ],
)
def test_refuses_another_layout(tmp_path: Path, damage: Any, says: str) -> None:
    content = stored()
    content["model_state"] = dict(content["model_state"])
    damage(content)
    with pytest.raises(WeightsError, match=says) as caught:
        read_release_checkpoint(saved(tmp_path / "odd.pyth", content))
    assert "odd.pyth" in str(caught.value)
    assert isinstance(caught.value, UniegoError)


class Harm:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_runs_no_code_from_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "bad.pyth", {"epoch": 1, "cfg": "", "model_state": Harm(tmp_path / "harmed")})
    with pytest.raises(WeightsError, match=r"bad\.pyth: cannot be read"):
        read_release_checkpoint(path)
    (tmp_path / "plain.pyth").write_bytes(pickle.dumps(Harm(tmp_path / "harmed"), protocol=2))
    with pytest.raises(WeightsError, match=r"plain\.pyth: cannot be read"):
        read_release_checkpoint(tmp_path / "plain.pyth")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.pyth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"other\.pyth"):
        read_release_checkpoint(path)
    with pytest.raises(WeightsError, match=r"none\.pyth: no such file"):
        read_release_checkpoint(tmp_path / "none.pyth")


def test_refuses_a_list(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds a list"):
        read_release_checkpoint(saved(tmp_path / "a.pyth", [1]))


def test_geometry_of_several_projections_and_default_heads() -> None:
    model = TimeSformer(32, 16, 2, 128, 1, 2, 5, {"exo_skl": 256, "ego_dino": 1024}, 0.2)
    assert geometry_from_state(model.state_dict(), drop_path=0.2) == model.geometry
    shapes = parameter_shapes(1, {"proj_layers.exo_skl": 256, "proj_layers.ego_dino": 1024}, 128, 16, 4, 2, 5)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    bare = TimeSformer(32, 16, 2, 64, 1, 1, 5)
    assert geometry_from_state(bare.state_dict()) == bare.geometry


def test_geometry_refuses_what_cannot_be() -> None:
    state, _ = read_release_checkpoint(CHECKPOINT)
    with pytest.raises(WeightsError, match="heads="):
        geometry_from_state(state)
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm1\.weight \[47\] instead of \[48\]"):
        geometry_from_state({**state, "blocks.1.norm1.weight": torch.zeros(47)}, heads=4)
    with pytest.raises(WeightsError, match="15 patches"):
        geometry_from_state({**state, "pos_embed": torch.zeros(1, 16, 48)}, heads=4)
    with pytest.raises(WeightsError, match=r"pos_embed \[48\] should have 3"):
        geometry_from_state({**state, "pos_embed": torch.zeros(48)}, heads=4)
