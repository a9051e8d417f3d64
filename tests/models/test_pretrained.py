"""Starting from image weights: stored results of the reference implementation, and Hugging Face's ViT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from uniego.errors import WeightsError
from uniego.models import TimeSformer, load_image_weights, read_image_weights

DATA = Path(__file__).parents[1] / "data"
TIMES = ("blocks.0.temporal_fc.weight", "blocks.0.temporal_fc.bias")


def tiny(**changes: object) -> TimeSformer:
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "width": 48, "depth": 1, "heads": 4}
    return TimeSformer(**{**sizes, "num_classes": 7, "projections": {"exo_skl": 256}, **changes})


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(DATA / "pretrained_init.safetensors")


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in golden.items() if name.startswith(prefix)}


def with_head(state: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(classes, 48, generator=generator)
    return {**state, "head.weight": weight, "head.bias": torch.randn(classes, generator=generator)}


def snapshot(model: TimeSformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("case", "classes"), [("same_pos_other_classes", 9), ("same_classes", 7), ("pos36", 9), ("pos36", 7)]
)
def test_equals_the_reference(golden: dict[str, Tensor], case: str, classes: int) -> None:
    """Except for positions of another resolution, where the reference scrambles rows."""
    source, wanted = with_head(part(golden, f"{case}/in/"), classes), part(golden, f"{case}/out/")
    model = tiny()
    before = snapshot(model)
    report = load_image_weights(model, source)
    after = model.state_dict()

    unchanged = json.loads((DATA / "pretrained_init.json").read_text())[case]["unchanged"]
    expected = [name for name in unchanged if not name.startswith(("blocks.1", "blocks.2", "head."))]
    expected += ["head.weight", "head.bias"] if classes != 7 else []
    assert sorted(json.loads(json.dumps(report.as_dict()))["unchanged"]) == sorted(expected)
    assert sorted([*report.loaded, *report.unchanged]) == sorted(after)
    assert report.ignored == (["head.bias", "head.weight"] if classes != 7 else [])
    assert report.source == "vit"
    assert report.resized == (["pos_embed"] if case == "pos36" else [])
    for name in report.unchanged:
        assert torch.equal(after[name], before[name]), name
    differing = {name for name in wanted if name not in expected and not torch.equal(after[name], wanted[name])}
    assert differing == ({"pos_embed"} if case == "pos36" else set())
    if classes == 7:
        assert torch.equal(after["head.weight"], source["head.weight"])
    assert not any(after[name].any() for name in TIMES)


def test_positions_are_resized_in_two_dimensions(golden: dict[str, Tensor]) -> None:
    source = part(golden, "pos36/in/")
    model = tiny()
    load_image_weights(model, source)
    table = source["pos_embed"][0, 1:].reshape(6, 6, 48)
    rows = torch.tensor([0, 1, 3, 4])  # floor(i * 6 / 4)
    assert torch.equal(model.pos_embed[0, 1:].reshape(4, 4, 48), table[rows][:, rows])
    assert torch.equal(model.pos_embed[0, 0], source["pos_embed"][0, 0])


def test_flattened_patch_weights_and_half_precision(golden: dict[str, Tensor]) -> None:
    source = part(golden, "same_classes/in/")
    flat = {**source, "patch_embed.proj.weight": source["patch_embed.proj.weight"].flatten(1)}
    model = tiny()
    load_image_weights(model, flat)
    assert torch.equal(model.patch_embed.proj.weight, source["patch_embed.proj.weight"])
    load_image_weights(model, {name: tensor.half() for name, tensor in source.items()})
    assert model.cls_token.dtype == torch.float32
    assert torch.equal(model.cls_token, source["cls_token"].half().float())


def test_a_timesformer_with_other_frames(golden: dict[str, Tensor]) -> None:
    donor = tiny(num_frames=8, image_size=48, seed=9, projections={"ego_dino": 256})
    state = {**snapshot(donor), "time_embed": golden["time_embed_8to4/in"]}
    model = tiny()
    before = snapshot(model)
    report = load_image_weights(model, state)
    assert report.source == "timesformer"
    assert report.resized == ["pos_embed", "time_embed"]
    assert sorted(report.unchanged) == report.ignored == ["proj_layer.bias", "proj_layer.weight"]
    assert torch.equal(model.time_embed, golden["time_embed_8to4/out"])
    for name in ("head.weight", "blocks.0.temporal_attn.qkv.weight", "blocks.0.temporal_fc.weight"):
        assert torch.equal(model.state_dict()[name], state[name])
    assert torch.equal(model.proj_layer.weight, before["proj_layer.weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra": torch.zeros(1)}, "unknown: extra"),
        (
            {"blocks.1.norm1.bias": torch.zeros(48)},
            r"unknown: blocks\.1\.norm1\.bias, blocks\.1\.temporal_norm1",
        ),
        ({"blocks.0.norm2.bias": None}, r"missing: blocks\.0\.norm2\.bias"),
        (
            {"blocks.0.attn.qkv.bias": None},
            r"missing: blocks\.0\.temporal_attn\.qkv\.bias|blocks\.0\.attn\.qkv\.bias",
        ),
        ({"head.bias": None}, r"missing: head\.bias"),
        ({"norm.weight": torch.zeros(47)}, r"norm\.weight \[47\] instead of \[48\]"),
        ({"head.weight": torch.zeros(7, 47)}, r"head\.weight \[7, 47\]"),
        ({"pos_embed": torch.zeros(1, 18, 48)}, "no square grid"),
        ({"pos_embed": torch.zeros(1, 37, 47)}, r"pos_embed \[1, 17, 47\]"),
        ({"pos_embed": torch.zeros(48)}, r"pos_embed \[48\]"),
        ({"patch_embed.proj.weight": torch.zeros(48, 191)}, r"patch_embed\.proj\.weight \[48, 191\]"),
        ({"blocks.0.temporal_fc.weight": torch.zeros(47, 48)}, r"temporal_fc\.weight \[47, 48\]"),
    ],
)
def test_refuses_and_changes_nothing(golden: dict[str, Tensor], change: dict[str, Tensor | None], says: str) -> None:
    source = {**with_head(part(golden, "same_classes/in/"), 7), **change}
    model = tiny()
    before = snapshot(model)
    with pytest.raises(WeightsError, match=says):
        load_image_weights(model, {name: tensor for name, tensor in source.items() if tensor is not None})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_timesformer_state_must_be_whole() -> None:
    state = snapshot(tiny())
    del state["blocks.0.temporal_fc.bias"]
    with pytest.raises(WeightsError, match=r"missing: blocks\.0\.temporal_fc\.bias"):
        load_image_weights(tiny(), state)


def hugging_face(classes: int | None = None) -> ViTModel | ViTForImageClassification:
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        initializer_range=0.3,
        num_labels=classes or 2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = ViTModel(config) if classes is None else ViTForImageClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_hugging_face_names_of_both_kinds(tmp_path: Path) -> None:
    """Module names (in memory) and names in a saved folder; one frame gives the image network's answer."""
    source = hugging_face(7)
    source.save_pretrained(tmp_path)
    frames = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = source(frames).logits
        token = source.vit(frames).last_hidden_state[:, 0]
    for state in (source.state_dict(), read_image_weights(tmp_path)):
        model = tiny(depth=2, projections=None).eval()
        report = load_image_weights(model, state)
        assert report.source == "vit-huggingface"
        assert report.ignored == []
        with torch.no_grad():
            out = model(frames[:, :, None])
        torch.testing.assert_close(out.logits, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.token, token, atol=1e-4, rtol=1e-4)


def test_hugging_face_base_model_has_a_pooler() -> None:
    source = hugging_face()
    model = tiny(depth=2).eval()
    report = load_image_weights(model, source.state_dict())
    assert report.ignored == ["pooler.dense.bias", "pooler.dense.weight"]
    assert {"head.weight", "head.bias", "time_embed"} < set(report.unchanged)
    frames = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = source(frames).last_hidden_state[:, 0]
        got = model(frames[:, :, None].expand(-1, -1, 4, -1, -1)).token
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    state = source.state_dict()
    gone = next(name for name in state if "layers.1." in name or "layer.1." in name)
    with pytest.raises(WeightsError, match="missing"):
        load_image_weights(model, {name: tensor for name, tensor in state.items() if name != gone})


def test_reads_files_of_every_kind(golden: dict[str, Tensor], tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in part(golden, "same_classes/in/").items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": {f"model.{name}": t for name, t in state.items()}, "epoch": 3}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pth", "c.pt"):
        read = read_image_weights(tmp_path / name)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)
    released = read_image_weights(str(DATA / "official_layout_tiny.pyth"))
    assert load_image_weights(tiny(depth=3), released).source == "timesformer"


def test_refuses_files_that_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"not so")
    (tmp_path / "b.pth").write_bytes(b"not so")
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    (tmp_path / "empty").mkdir()
    for name in ("a.safetensors", "b.pth", "c.pth", "empty", "none.safetensors", "none.pth"):
        with pytest.raises(WeightsError, match=name):
            read_image_weights(tmp_path / name)
