"""Frame teachers: saved folders, keys that do not fit, features, hashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from uniego.errors import ConfigError, WeightsError
from uniego.models.teachers import Teacher, TeacherConfig, build_teacher, tiny_teachers
from uniego.models.teachers import weights as weights_module
from uniego.models.teachers.weights import state_hash

TINY = tiny_teachers()
KEYS = {"dinov2": "ego_dino", "siglip": "ego_siglip", "clip": "exo_clip"}
VIT = {"num_hidden_layers": 2, "num_attention_heads": 2}


def tiny(network: str) -> TeacherConfig:
    config = next(config for config in TINY.values() if config.network == network)
    return config.model_copy(update={"crop": None})


def frames(seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (8, 50, 64, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def features(teacher: Teacher) -> Tensor:
    return teacher.features([teacher.prepare(frames())])


def saved(folder: Path, network: str) -> tuple[Teacher, TeacherConfig]:
    """A tiny random teacher, and the configuration that reads it back from a folder."""
    teacher = build_teacher(KEYS[network], tiny(network))
    save: Any = teacher.module
    save.save_pretrained(folder)
    image_size = 28 if network == "dinov2" else None
    return teacher, TeacherConfig(network=network, weights=f"dir:{folder}", image_size=image_size)


@pytest.mark.parametrize("network", list(KEYS))
def test_a_saved_folder_gives_the_same_teacher(tmp_path: Path, network: str) -> None:
    first, config = saved(tmp_path, network)
    second = build_teacher(KEYS[network], config)
    assert not second.is_random
    assert second.weights_hash == first.weights_hash
    assert second.fingerprint() == {**first.fingerprint(), "random": False}
    assert torch.equal(features(first), features(second))


def test_depth_anything_uses_the_encoder_alone(tmp_path: Path) -> None:
    import transformers

    encoder = transformers.Dinov2Config(
        hidden_size=40, mlp_ratio=2, image_size=28, out_indices=[1, 2], reshape_hidden_states=False, **VIT
    )
    settings = transformers.DepthAnythingConfig(
        backbone_config=encoder,
        neck_hidden_sizes=[4, 4],
        reassemble_factors=[1, 0.5],
        fusion_hidden_size=8,
        reassemble_hidden_size=40,
        head_hidden_size=4,
    )
    model = transformers.DepthAnythingForDepthEstimation(settings).eval()
    model.save_pretrained(tmp_path)
    config = TeacherConfig(network="depth_anything", weights=f"dir:{tmp_path}", image_size=28)
    teacher = build_teacher("exo_depth", config)
    clip = teacher.prepare(frames())
    assert clip.shape == (8, 3, 28, 42)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = model.backbone((clip.float() / 255 - mean) / std).feature_maps[-1]
    torch.testing.assert_close(teacher.features([clip])[0], tokens[:, 1:].mean(dim=1))
    cls = build_teacher("exo_depth", config.model_copy(update={"feature": "cls"}))
    torch.testing.assert_close(cls.features([clip])[0], tokens[:, 0])
    assert cls.weights_hash == teacher.weights_hash
    assert cls.fingerprint() != teacher.fingerprint()


def test_registers_are_not_patches(tmp_path: Path) -> None:
    import transformers

    settings = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, mlp_ratio=2, image_size=28, num_register_tokens=4, patch_size=14, **VIT
    )
    model = transformers.Dinov2WithRegistersModel(settings).eval()
    model.save_pretrained(tmp_path)
    config = TeacherConfig(network="dinov2", weights=f"dir:{tmp_path}", image_size=28, feature="patch_mean", frames=8)
    teacher = build_teacher("ego_dino", config)
    clip = teacher.prepare(frames())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        tokens = model((clip.float() / 255 - mean) / std).last_hidden_state
    assert tokens.shape[1] == 1 + 4 + 4
    torch.testing.assert_close(teacher.features([clip])[0], tokens[:, 5:].mean(dim=1))


def test_image_towers_load_from_whole_models(tmp_path: Path) -> None:
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 16, **VIT}
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50, **VIT}
    settings = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    transformers.CLIPModel(settings).save_pretrained(tmp_path / "clip")
    settings = transformers.SiglipConfig(text_config=text, vision_config=vision)
    transformers.SiglipModel(settings).save_pretrained(tmp_path / "siglip")
    for network, dim in (("clip", 24), ("siglip", 32)):
        teacher = build_teacher("exo_x", TeacherConfig(network=network, weights=f"dir:{tmp_path / network}"))
        assert features(teacher).shape == (1, 8, dim)


@pytest.mark.parametrize(("size", "patches"), [(384, 729), (224, 256)])
def test_siglips_of_both_sizes(tmp_path: Path, size: int, patches: int) -> None:
    """The published sides with patches of 14; both outputs are those of the plain network. SigLIP 2 loads alike."""
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": size, "patch_size": 14, **VIT}
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config={**VIT}))
    model.save_pretrained(tmp_path)
    tower = transformers.SiglipVisionModel.from_pretrained(tmp_path).eval()
    for output in ("pooled", "patch_mean"):
        config = TeacherConfig(network="siglip", weights=f"dir:{tmp_path}", frames=8, feature=output)
        teacher = build_teacher("ego_siglip", config)
        clip = teacher.prepare(frames())
        assert clip.shape == (8, 3, size, size)
        with torch.no_grad():
            out = tower(clip[:1].float() / 127.5 - 1)
        assert out.last_hidden_state.shape[1] == patches
        expected = out.pooler_output if output == "pooled" else out.last_hidden_state.mean(dim=1)
        torch.testing.assert_close(teacher.features([clip])[0, :1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Siglip2Config", "Siglip2VisionConfig"])
def test_siglips_of_variable_resolution_are_refused(tmp_path: Path, kind: str) -> None:
    import transformers

    getattr(transformers, kind)().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"NaFlex.*take one of a fixed resolution, .*siglip2-so400m-patch14-384"):
        build_teacher("ego_siglip", TeacherConfig(network="siglip", weights=f"dir:{tmp_path}"))


@pytest.mark.parametrize("network", ["siglip", "clip"])
def test_trained_sizes_need_not_be_whole_patches(network: str) -> None:
    """As SigLIP's 384 with patches of 14; there the features are those of the plain network."""
    config = tiny(network)
    changed = config.model_copy(update={"architecture": {**config.architecture, "patch_size": 14}})
    teacher = build_teacher("ego_x", changed)
    clip = teacher.prepare(frames())
    assert clip.shape == (8, 3, 32, 32)
    mean, std = teacher.preprocessing()["mean"], teacher.preprocessing()["std"]
    images = (clip.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        out = teacher.module(images)
    expected = out.pooler_output if network == "siglip" else out.image_embeds
    torch.testing.assert_close(teacher.features([clip])[0], expected)


def test_transformers_is_imported_for_frame_teachers_alone() -> None:
    program = (
        "import sys, uniego.models.teachers as t\n"
        "nine = t.tiny_teachers()\n"
        "t.build_teacher('exo_rgb', nine['exo_rgb']), t.build_teacher('exo_skl', nine['exo_skl'])\n"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_weights_that_do_not_fit_are_refused_with_names(tmp_path: Path) -> None:
    _, config = saved(tmp_path, "dinov2")
    state = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.1.norm2.bias"
    lacking = {key: value for key, value in state.items() if key != name}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing: encoder\.layer\.1\.norm2\.bias"):
        build_teacher("ego_dino", config)
    save_file({**state, name: torch.zeros(5)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"wrong shape: encoder\.layer\.1\.norm2\.bias \(5,\) for \(32,\)"):
        build_teacher("ego_dino", config)


def test_a_network_shallower_than_its_weights_is_refused(tmp_path: Path) -> None:
    _, config = saved(tmp_path, "siglip")
    edit(tmp_path, num_hidden_layers=1)
    with pytest.raises(WeightsError, match=r"beyond its depth: encoder\.layers\.1"):
        build_teacher("ego_siglip", config)


def test_the_wrong_kind_of_network_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "clip")
    with pytest.raises(WeightsError, match="is a 'clip_vision_model'; network dinov2 takes dinov2"):
        build_teacher("ego_dino", TeacherConfig(network="dinov2", weights=f"dir:{tmp_path}"))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json"):
        build_teacher("ego_dino", TeacherConfig(network="dinov2", weights=f"dir:{tmp_path}"))
    _, config = saved(tmp_path, "dinov2")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_teacher("ego_dino", config)


def test_hub_ids_out_of_reach_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = TeacherConfig(network="dinov2", weights="hub:nobody/nothing@v1")
    with pytest.raises(WeightsError, match=r"hf download nobody/nothing --revision v1 .*weights: dir:"):
        build_teacher("ego_dino", config)


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(weights_module.importlib, "import_module", broken)
    monkeypatch.setattr(weights_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(WeightsError, match="uninstall torchvision"):
        build_teacher("ego_dino", tiny("dinov2"))


@pytest.mark.parametrize("architecture", [{"depht": 2}, {"hidden_size": "wide"}])
def test_architectures_that_cannot_be_built(architecture: dict[str, Any]) -> None:
    config = tiny("dinov2")
    changed = config.model_copy(update={"architecture": {**config.architecture, **architecture}})
    with pytest.raises(ConfigError, match="architecture"):
        build_teacher("ego_dino", changed)


def test_image_sizes_are_whole_patches() -> None:
    with pytest.raises(ConfigError, match="no multiple of the patch"):
        build_teacher("ego_dino", tiny("dinov2").model_copy(update={"image_size": 30}))


@pytest.mark.parametrize("network", ["dinov2", "siglip", "clip", "depth_anything"])
def test_other_image_sizes_are_interpolated(network: str) -> None:
    patch = tiny(network).architecture["patch_size"]
    teacher = build_teacher("ego_x", tiny(network).model_copy(update={"image_size": 4 * patch}))
    assert features(teacher).isfinite().all()


def test_hash_depends_on_content_alone() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.int64)}
    first = state_hash(state)
    assert first == state_hash({"b": state["b"], "a": state["a"].t().contiguous().t()})
    assert first == "73a4e32a8df52615e83f0ba0fa2aa996"  # names must not change with a new version
    flipped = state["a"].clone()
    flipped.view(torch.uint8)[0, 0] ^= 1
    others = [
        {**state, "a": flipped},
        {**state, "a": state["a"].view(3, 2)},
        {**state, "a": state["a"].double()},
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"]},
        {**state, "empty": torch.zeros(0)},
    ]
    assert len({first, *map(state_hash, others)}) == 7
