"""The nine at their true widths: one layer each through the whole of stage 1, and full size on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from uniego.cache import RowStatus
from uniego.models import TimeSformer
from uniego.models.release import parameter_shapes
from uniego.models.stgcn import STGCN
from uniego.models.teachers import TEACHERS, TeacherConfig
from uniego.models.teachers.hub_timesformer import convert_names
from uniego.pipeline.config import RunConfig
from uniego.pipeline.rundir import Run
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.targets import open_index, open_teacher, row_keys

FRAMES = 2


def official_names(encoder: Any) -> dict[str, Tensor]:
    """A Dinov2Model's weights under the names of the official files."""
    state = dict(encoder.state_dict())
    new: dict[str, Tensor] = {}
    pairs = [
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.", ""),
        ("layernorm", "norm"),
        ("encoder.layer", "blocks"),
        ("attention.o_proj", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ]
    for name, value in state.items():
        if ".attention.q_proj." in name:
            three = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            name, value = name.replace("attention.q_proj", "attn.qkv"), torch.cat(three)
        elif ".attention.k_proj." in name or ".attention.v_proj." in name:
            continue
        for theirs, official in pairs:
            name = name.replace(theirs, official)
        new[name] = value
    return new


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sources of one-layer networks with random weights, as people download them: folders and official files."""
    import transformers as t

    folder = tmp_path_factory.mktemp("weights")
    one: dict[str, Any] = {"num_hidden_layers": 1}
    siglip = t.SiglipVisionConfig(hidden_size=1152, intermediate_size=288, image_size=28, patch_size=14, **one)
    siglip.num_attention_heads = 16
    dino = t.Dinov2Config(hidden_size=1024, num_attention_heads=16, mlp_ratio=1, image_size=28, **one)
    clip = t.CLIPVisionConfig(hidden_size=768, intermediate_size=192, image_size=32, patch_size=16, **one)
    clip.num_attention_heads, clip.projection_dim = 12, 512
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t.SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
        encoder = t.Dinov2Model(dino)
        encoder.save_pretrained(folder / "dinov2")
        t.CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip")
    official = official_names(encoder)
    torch.save(official, folder / "dinov2.pth")
    torch.save({f"pretrained.{name}": value for name, value in official.items()}, folder / "depth.pth")
    video = TimeSformer(32, 16, 8, 768, 1, 12, 4, drop_path=0.0).state_dict()
    state = {f"model.{name}": value for name, value in video.items()}
    torch.save({"epoch": 1, "cfg": "", "model_state": state}, folder / "k400.pyth")
    torch.save(STGCN(widths=(64, 128, 256), classes=4).state_dict(), folder / "j.pth")
    return {
        "siglip": f"dir:{folder / 'siglip'}",
        "dinov2": f"dir:{folder / 'dinov2'}",
        "dinov2.pth": f"file:{folder / 'dinov2.pth'}",
        "depth_anything": f"file:{folder / 'depth.pth'}",
        "clip": f"dir:{folder / 'clip'}",
        "timesformer": f"file:{folder / 'k400.pyth'}",
        "stgcn": f"file:{folder / 'j.pth'}",
    }


def test_all_nine_through_stage_one(tmp_path: Path, clip_table: Path, weights: dict[str, str]) -> None:
    teachers = {
        key: TeacherConfig(
            network=facts.network,
            weights=weights["dinov2.pth" if key == "exo_dino" else facts.network],
            frames=FRAMES,
            feature=facts.feature,
            dim=facts.dim,
            image_size=28 if facts.network in ("dinov2", "depth_anything") else None,
            crop="hands" if key == "exo_skego" else None,
            pose_frames=20,
        )
        for key, facts in TEACHERS.items()
    }
    config = RunConfig.model_validate({"data": {"table": str(clip_table)}, "teachers": teachers})
    run = Run.create(tmp_path / "run", config)
    extract_teachers(run)
    rows = open_index(run).rows(row_keys(run, run.table().clips))
    for key, facts in TEACHERS.items():
        store = open_teacher(run, open_index(run), key)
        values, present = store.read(rows, "features")
        per_frame = teachers[key].network in ("dinov2", "siglip", "depth_anything", "clip")
        assert values.shape == (12, FRAMES if per_frame else 1, facts.dim), key
        wanted = {"exo_skl": {2, 3, 7}, "exo_skego": {2, 3, 7}}.get(key, {3} if key.startswith("exo") else set())
        assert set(np.flatnonzero(~present).tolist()) == wanted, key
        assert set(store.status(rows)[~present].tolist()) <= {int(RowStatus.ABSENT)}, key
        assert np.isfinite(values[present]).all(), key
        assert values[present].std(axis=0).max() > 0, key
    stored = [
        open_teacher(run, open_index(run), key).fingerprint["teacher"]["weights"] for key in ("ego_dino", "exo_dino")
    ]
    assert stored[0] == stored[1]  # the folder and the official file hold the same weights


# --- full size, without values ------------------------------------------------------------------------------------


def count(module: nn.Module) -> float:
    """Millions of parameters."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def meta(kind: str, settings: Any) -> Any:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, kind)(settings).eval()


def test_siglip_at_full_size() -> None:
    import transformers

    sizes = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
    for side, tokens in ((384, 729), (224, 256)):
        model = meta("SiglipVisionModel", transformers.SiglipVisionConfig(image_size=side, patch_size=14, **sizes))
        out = model(torch.empty(1, 3, side, side, device="meta"), interpolate_pos_encoding=True)
        assert (tuple(out.last_hidden_state.shape), tuple(out.pooler_output.shape)) == ((1, tokens, 1152), (1, 1152))
        assert side != 384 or count(model) == pytest.approx(428.2, abs=0.05)


LARGE: dict[str, int] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}


def test_dinov2_at_full_size() -> None:
    import transformers

    images = torch.empty(1, 3, 224, 224, device="meta")
    model = meta("Dinov2Model", transformers.Dinov2Config(**LARGE))
    assert model(images).last_hidden_state.shape == (1, 257, 1024)
    assert count(model) == pytest.approx(304.4, abs=0.05)
    settings = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, patch_size=14, **LARGE)
    assert meta("Dinov2WithRegistersModel", settings)(images).last_hidden_state.shape == (1, 261, 1024)


def test_depth_anything_at_full_size() -> None:
    import transformers

    encoder = transformers.Dinov2Config(**LARGE, out_indices=[21, 22, 23, 24], reshape_hidden_states=False)
    settings = transformers.DepthAnythingConfig(
        backbone_config=encoder,
        reassemble_hidden_size=1024,
        neck_hidden_sizes=[256, 512, 1024, 1024],
        fusion_hidden_size=256,
    )
    model = meta("DepthAnythingForDepthEstimation", settings)
    maps = model.backbone(torch.empty(1, 3, 224, 224, device="meta")).feature_maps
    assert [tuple(tokens.shape) for tokens in maps] == [(1, 257, 1024)] * 4
    assert count(model) == pytest.approx(335.3, abs=0.05)


def test_timesformer_at_full_size() -> None:
    import transformers

    theirs = meta("TimesformerModel", transformers.TimesformerConfig())
    out = theirs(torch.empty(1, 8, 3, 224, 224, device="meta")).last_hidden_state
    assert out.shape == (1, 1569, 768)
    assert count(theirs) == pytest.approx(121.3, abs=0.05)
    ours = parameter_shapes(12, {}, 768, 16, 196, 8, 400)
    converted = {name: tuple(value.shape) for name, value in convert_names(theirs.state_dict()).items()}
    assert converted == {name: shape for name, shape in ours.items() if not name.startswith("head.")}


@pytest.mark.parametrize(("variant", "millions"), [("stgcn", 3.07), ("stgcn++", 1.38)])
def test_stgcn_at_full_size(variant: Any, millions: float) -> None:
    model = STGCN(variant=variant).to("meta")
    assert model(torch.empty(1, 2, 100, 17, 3, device="meta")).feature.shape == (1, 256)
    assert sum(value.numel() for value in model.backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.03)
