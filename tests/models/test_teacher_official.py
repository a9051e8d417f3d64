"""Official files of DINOv2 and Depth Anything against outputs of their own code (Apache-2.0, random weights)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from uniego.errors import ConfigError, WeightsError
from uniego.models.teachers import Teacher, TeacherConfig, build_teacher
from uniego.models.teachers.depth import depth_maps, depth_picture, load_depth_network
from uniego.models.teachers.networks import image_feature
from uniego.models.teachers.official import read_depth_anything, read_dinov2

DATA = Path(__file__).parents[1] / "data" / "teachers"
DINO = ["dinov2_tiny", "dinov2_reg_tiny"]
DEPTH = "depth_anything_tiny"
HEADS = {"num_attention_heads": 2}  # of 16 channels; official files have 64


def golden(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def official_state(name: str) -> dict[str, Tensor]:
    return {key.removeprefix("state/"): value for key, value in golden(name).items() if key.startswith("state/")}


def official_file(folder: Path, name: str, **changes: Tensor | None) -> TeacherConfig:
    """The golden's weights as an official `.pth`, and the configuration that reads it."""
    state: dict[str, Any] = {**official_state(name), **changes}
    torch.save({key: value for key, value in state.items() if value is not None}, folder / f"{name}.pth")
    network = "depth_anything" if name == DEPTH else "dinov2"
    return TeacherConfig(network=network, weights=f"file:{folder / name}.pth", image_size=70, architecture=HEADS)


def frames(height: int = 50, width: int = 64) -> Tensor:
    values = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def features(teacher: Teacher) -> Tensor:
    return teacher.features([teacher.prepare(frames())])


@torch.no_grad()
def feature(teacher: Teacher, output: str, images: Tensor, layers: tuple[int, ...] = ()) -> Tensor:
    module = teacher.module.to(images.dtype)
    return image_feature(teacher.config.network, output, module, images, layers)


@pytest.mark.parametrize("name", DINO)
@pytest.mark.parametrize("case", ["square", "wide", "up"])
def test_dinov2_equals_the_official_code(tmp_path: Path, name: str, case: str) -> None:
    """Without registers, transformers resizes positions a little differently, so the grid of the table alone is equal.

    The table of these weights has 5 x 5 entries, where that shows far more than in the official 37 x 37.
    """
    exact = case == "square" or name == "dinov2_reg_tiny"
    teacher, stored = build_teacher("ego_dino", official_file(tmp_path, name)), golden(name)
    for dtype, short in ((torch.float32, "f32"), (torch.float64, "f64")):
        images = stored[f"{case}/input"].to(dtype)
        close = (1e-4 if dtype == torch.float32 else 1e-8) if exact else 0.25
        wanted = {"cls": stored[f"{case}/{short}/cls"], "patch_mean": stored[f"{case}/{short}/patches"].mean(dim=1)}
        for output, expected in wanted.items():
            torch.testing.assert_close(feature(teacher, output, images), expected, rtol=close, atol=close)


@pytest.mark.parametrize("case", ["square", "wide"])
def test_depth_anything_equals_the_official_code(tmp_path: Path, case: str) -> None:
    """Its encoder's maps, in the way of V1 (the last four blocks) and of V2 (chosen blocks).

    "wide" is another grid than the table's: see DINOv2 above, whose network this is.
    """
    teacher, stored = build_teacher("exo_depth", official_file(tmp_path, DEPTH)), golden(DEPTH)
    assert not any("neck" in name or "head" in name for name in teacher.module.state_dict())
    for dtype, short, exact in ((torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-8)):
        images, close = stored[f"{case}/input"].to(dtype), exact if case == "square" else 0.25
        for prefix, layers in (("", (2, 3, 4, 5)), ("list_0_2_3_5/", (0, 2, 3, 5))):
            maps = [stored[f"{case}/{short}/{prefix}map{index}"] for index in range(4)]
            cls = torch.cat([tokens[:, 0] for tokens in maps], dim=1)
            mean = torch.cat([tokens[:, 1:].mean(dim=1) for tokens in maps], dim=1)
            torch.testing.assert_close(feature(teacher, "cls", images, layers), cls, rtol=close, atol=close)
            torch.testing.assert_close(feature(teacher, "patch_mean", images, layers), mean, rtol=close, atol=close)
        torch.testing.assert_close(feature(teacher, "cls", images), maps[-1][:, 0], rtol=close, atol=close)


@pytest.mark.parametrize("name", [*DINO, DEPTH])
def test_a_file_and_a_folder_are_the_same_teacher(tmp_path: Path, name: str) -> None:
    """The same weights have one fingerprint and one feature, wherever they come from."""
    config = official_file(tmp_path, name)
    key = "exo_depth" if name == DEPTH else "exo_dino"
    first = build_teacher(key, config)
    whole: Any = load_depth_network(key, config) if name == DEPTH else first.module
    whole.save_pretrained(tmp_path / "folder")
    second = build_teacher(
        key, TeacherConfig(network=config.network, weights=f"dir:{tmp_path / 'folder'}", image_size=70)
    )
    assert second.fingerprint() == first.fingerprint()
    assert torch.equal(features(second), features(first))


def test_layers_stand_side_by_side(tmp_path: Path) -> None:
    config = official_file(tmp_path, DEPTH)
    one, last, two = (
        build_teacher("exo_depth", config.model_copy(update={"layers": layers, "dim": dim}))
        for layers, dim in (([1], 32), ([-1], 32), ([1, -1], 64))
    )
    assert two.dim == 64
    torch.testing.assert_close(features(two), torch.cat([features(one), features(last)], dim=2))
    assert two.fingerprint()["layers"] == [1, 5]
    assert last.fingerprint() == build_teacher("exo_depth", config).fingerprint()
    for layers in ([6], [-7], [1, -5]):
        with pytest.raises(ConfigError, match="blocks 0 to 5"):
            build_teacher("exo_depth", config.model_copy(update={"layers": layers}))


def test_giant_networks_have_gated_layers(tmp_path: Path) -> None:
    """The names and widths of the largest DINOv2 (SwiGLU), read back by transformers' own."""
    import transformers

    settings = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, use_swiglu_ffn=True, image_size=28
    )
    model = transformers.Dinov2Model(settings).eval()
    model.save_pretrained(tmp_path / "hub")
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    inner = hub["encoder.layer.0.mlp.weights_out.weight"].shape[1]
    at = "encoder.layer.0."
    state = {
        "cls_token": hub["embeddings.cls_token"],
        "pos_embed": hub["embeddings.position_embeddings"],
        "patch_embed.proj.weight": hub["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": hub["embeddings.patch_embeddings.projection.bias"],
        "blocks.0.ls1.gamma": hub[f"{at}layer_scale1.lambda1"],
        "blocks.0.ls2.gamma": hub[f"{at}layer_scale2.lambda1"],
    }
    for part in ("weight", "bias"):
        three = [hub[f"{at}attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
        state |= {
            f"norm.{part}": hub[f"layernorm.{part}"],
            f"blocks.0.norm1.{part}": hub[f"{at}norm1.{part}"],
            f"blocks.0.norm2.{part}": hub[f"{at}norm2.{part}"],
            f"blocks.0.attn.qkv.{part}": torch.cat(three),
            f"blocks.0.attn.proj.{part}": hub[f"{at}attention.output.dense.{part}"],
            f"blocks.0.mlp.w12.{part}": hub[f"{at}mlp.weights_in.{part}"],
            f"blocks.0.mlp.w3.{part}": hub[f"{at}mlp.weights_out.{part}"],
        }
    torch.save(state, tmp_path / "giant.pth")
    weights = read_dinov2(tmp_path / "giant.pth")
    assert weights.settings["use_swiglu_ffn"]
    assert state["blocks.0.mlp.w12.weight"].shape == (2 * inner, 64)
    assert all(torch.equal(value, hub[name]) for name, value in weights.state.items())
    config = TeacherConfig(network="dinov2", weights=f"file:{tmp_path / 'giant.pth'}", image_size=28)
    with torch.no_grad():
        clip = (teacher := build_teacher("ego_dino", config)).prepare(frames())
        expected = model(teacher._preprocess.normalise(clip)).pooler_output  # type: ignore[attr-defined]
    torch.testing.assert_close(teacher.features([clip])[0], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks.1.norm2.bias": None}, r"missing: blocks\.1\.norm2\.bias"),
        ({"blocks.1.norm2.bias": torch.zeros(5)}, r"blocks\.1\.norm2\.bias \[5\] instead of \[32\]"),
        ({"surplus": torch.zeros(1)}, "unknown: surplus"),
        ({"blocks.2.norm1.bias": torch.zeros(32)}, r"missing: blocks\.2\.norm1\.weight"),
        ({"blocks.9999999.norm1.bias": torch.zeros(32)}, "unknown: blocks.9999999"),
        ({"pos_embed": torch.zeros(1, 25, 32)}, r"pos_embed \[1, 25, 32\] instead of \[1, 17, 32\]"),
        ({"pos_embed": None}, "save_pretrained is named as dir:"),
        ({"blocks.0.attn.qkv.weight": torch.full((96, 32), torch.nan)}, "NaN or infinity in encoder"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_names(
    tmp_path: Path, changes: dict[str, Tensor | None], says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        build_teacher("ego_dino", official_file(tmp_path, "dinov2_tiny", **changes))


def test_heads_and_widths_are_checked(tmp_path: Path) -> None:
    config = official_file(tmp_path, "dinov2_tiny")
    with pytest.raises(WeightsError, match="heads cannot be told from width 32; set architecture"):
        build_teacher("ego_dino", config.model_copy(update={"architecture": {}}))
    with pytest.raises(ConfigError, match="num_attention_heads 5 does not divide"):
        build_teacher("ego_dino", config.model_copy(update={"architecture": {"num_attention_heads": 5}}))
    with pytest.raises(WeightsError, match="width 32, dim says 1024"):
        build_teacher("ego_dino", config.model_copy(update={"dim": 1024}))
    with pytest.raises(WeightsError, match=r"none of its entries starts with 'pretrained\.'"):
        build_teacher("exo_depth", config.model_copy(update={"network": "depth_anything"}))


class Harm:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("network", ["dinov2", "depth_anything", "timesformer", "stgcn"])
def test_no_file_runs_code(tmp_path: Path, network: Any) -> None:
    torch.save({"a": Harm(tmp_path / "harmed")}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: cannot be read"):
        build_teacher("exo_x", TeacherConfig(network=network, weights=f"file:{tmp_path / 'bad.pth'}"))
    assert not (tmp_path / "harmed").exists()


# --- depth pictures ----------------------------------------------------------------------------------------------


def test_depth_equals_the_official_code(tmp_path: Path) -> None:
    network, stored = load_depth_network("exo_depth", official_file(tmp_path, DEPTH)), golden(DEPTH)
    with torch.no_grad():
        for case, far in (("square", 1e-4), ("wide", 0.1)):  # of the mean; for "wide" see DINOv2 above
            depth, expected = network(stored[f"{case}/input"]).predicted_depth, stored[f"{case}/f32/depth"]
            assert depth.shape == expected.shape
            assert (depth - expected).abs().max() < far * expected.mean()


def test_depth_pictures(tmp_path: Path) -> None:
    config = official_file(tmp_path, DEPTH)
    network = load_depth_network("exo_depth", config)
    depth = depth_maps(network, frames(40, 60)[:2], size=70)
    assert (depth.shape, depth.dtype) == ((2, 42, 70), torch.float32)
    picture = depth_picture(depth)
    assert (picture.shape, picture.dtype) == ((2, 42, 70, 3), torch.uint8)
    flat, brightness = depth.flatten(1), picture.float().sum(dim=3).flatten(1)
    assert (brightness.gather(1, flat.argmax(1, True)) > brightness.gather(1, flat.argmin(1, True)) + 300).all()
    assert not depth_picture(torch.ones(1, 2, 2)).diff(dim=1).any()
    network.config.depth_estimation_type = "metric"  # what is far has the greater number
    assert torch.allclose(depth_maps(network, frames(40, 60)[:2], size=70), 1 / depth.clamp_min(0.05))
    other = load_depth_network("exo_depth", config, blocks=(0, 2, 3, 5))
    assert not torch.equal(depth_maps(other, frames(40, 60)[:2], size=70), depth)
    with pytest.raises(ConfigError, match="four blocks of 0 to 5"):
        load_depth_network("exo_depth", config, blocks=(1, 2, 3, 6))
    with pytest.raises(ConfigError, match="need network depth_anything"):
        load_depth_network("ego_dino", official_file(tmp_path, "dinov2_tiny"))


def test_an_encoder_with_registers_keeps_them(tmp_path: Path) -> None:
    """No published Depth Anything has any; they are not lost on the way."""
    plain = build_teacher("exo_depth", official_file(tmp_path, DEPTH))
    registers = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    teacher = build_teacher("exo_depth", official_file(tmp_path, DEPTH, **{"pretrained.register_tokens": registers}))
    assert teacher.fingerprint()["architecture"]["num_register_tokens"] == 4
    assert teacher.weights_hash != plain.weights_hash
    assert not torch.allclose(features(teacher), features(plain))


def test_depth_needs_the_head(tmp_path: Path) -> None:
    official_file(tmp_path, DEPTH, **{"depth_head.scratch.layer1_rn.weight": None})
    with pytest.raises(WeightsError, match=r"lacks what transformers calls 'neck\.convs\.0\.weight'"):
        read_depth_anything(tmp_path / f"{DEPTH}.pth", 2)
