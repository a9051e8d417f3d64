"""exo_rgb from every source: the release's file, transformers' folders, files of our own; any number of frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from uniego.errors import ConfigError, WeightsError
from uniego.models import TimeSformer
from uniego.models.teachers import TeacherConfig, build_teacher
from uniego.models.teachers.hub_timesformer import convert_names

DATA = Path(__file__).parents[1] / "data" / "teachers"
RELEASE = DATA / "timesformer_release_tiny.pth"
GOLDEN = load_file(DATA / "timesformer_release_tiny.safetensors")


def released(**fields: Any) -> TeacherConfig:
    return TeacherConfig(network="timesformer", weights=f"file:{RELEASE}", architecture={"heads": 4}, **fields)


@pytest.mark.parametrize("case", ["t4", "t8", "t12", "t8_wide"])
def test_the_release_is_read_as_it_was_meant(case: str) -> None:
    model = build_teacher("exo_rgb", released()).module
    for dtype, short, close in ((torch.float32, "f32", 1e-4), (torch.float64, "f64", 1e-8)):
        with torch.no_grad():
            out = model.to(dtype)(GOLDEN[f"{case}/input"].to(dtype))
        torch.testing.assert_close(out.token, GOLDEN[f"{case}/{short}/cls"], rtol=close, atol=close)
        torch.testing.assert_close(out.logits, GOLDEN[f"{case}/{short}/logits"], rtol=close, atol=close)


def hugging_face(seed: int = 0, classifier: bool = False) -> Any:
    """A small network of transformers with weights in every part: theirs starts with temporal layers of zeros."""
    import transformers

    settings = transformers.TimesformerConfig(
        image_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    kind = transformers.TimesformerForVideoClassification if classifier else transformers.TimesformerModel
    model = kind(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def video(frames: int) -> Tensor:
    """[2, T, 3, 64, 64], as transformers takes it."""
    return torch.randn(2, frames, 3, 64, 64, generator=torch.Generator().manual_seed(frames))


def reconfigured(model: Any, frames: int) -> Any:
    """Theirs made right for another number of frames."""
    model.config.num_frames = frames
    table = model.embeddings.time_embeddings
    resized = F.interpolate(table.detach().transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)
    model.embeddings.time_embeddings = torch.nn.Parameter(resized)
    return model


@pytest.mark.parametrize("frames", [8, 4, 12, 16])
def test_our_network_equals_theirs_at_any_length(tmp_path: Path, frames: int) -> None:
    theirs = hugging_face()
    theirs.save_pretrained(tmp_path)
    teacher = build_teacher("exo_rgb", TeacherConfig(network="timesformer", weights=f"dir:{tmp_path}", frames=frames))
    with torch.no_grad():
        ours = teacher.module(video(frames).transpose(1, 2)).token
        if frames != 8:  # theirs says nothing and is wrong
            plain = theirs(video(frames)).last_hidden_state[:, 0]
            assert (plain - ours).abs().max() > 0.05
        expected = reconfigured(theirs, frames)(video(frames)).last_hidden_state[:, 0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_their_names_become_ours() -> None:
    ours = TimeSformer(64, 16, 8, 32, 2, 4, 7).state_dict()
    theirs = convert_names(hugging_face().state_dict())
    assert {name: value.shape for name, value in theirs.items()} == {
        name: value.shape for name, value in ours.items() if not name.startswith("head.")
    }


def test_a_whole_classifier_will_do(tmp_path: Path) -> None:
    classifier = hugging_face(classifier=True)
    classifier.save_pretrained(tmp_path / "a")
    classifier.timesformer.save_pretrained(tmp_path / "b")
    first, second = (
        build_teacher("exo_rgb", TeacherConfig(network="timesformer", weights=f"dir:{tmp_path / name}"))
        for name in "ab"
    )
    assert first.fingerprint() == second.fingerprint()
    state = {f"model.{name}": value for name, value in first.module.state_dict().items()}
    torch.save({"epoch": 1, "cfg": "", "model_state": state}, tmp_path / "c.pyth")
    third = TeacherConfig(
        network="timesformer", weights=f"file:{tmp_path / 'c.pyth'}", architecture={"heads": 4}, dim=32
    )
    assert build_teacher("exo_rgb", third).fingerprint() == first.fingerprint()


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"attention_type": "joint_space_time"}, "attention_type 'joint_space_time', not 'divided_space_time'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"num_hidden_layers": 3}, r"missing: encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"beyond its depth: encoder\.layer\.1"),
        ({"num_frames": 4}, r"wrong shape: embeddings\.time_embeddings \(1, 8, 32\) for \(1, 4, 32\)"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    hugging_face().save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(WeightsError, match=says):
        build_teacher("exo_rgb", TeacherConfig(network="timesformer", weights=f"dir:{tmp_path}"))


def test_another_network_heads_and_widths(tmp_path: Path) -> None:
    import transformers

    transformers.ViTConfig(hidden_size=32, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is a 'vit'; network timesformer takes timesformer"):
        build_teacher("exo_rgb", TeacherConfig(network="timesformer", weights=f"dir:{tmp_path}"))
    with pytest.raises(WeightsError, match=r"architecture: \{heads"):
        build_teacher("exo_rgb", TeacherConfig(network="timesformer", weights=f"file:{RELEASE}"))
    with pytest.raises(ConfigError, match="multiple of heads"):
        build_teacher("exo_rgb", released().model_copy(update={"architecture": {"heads": 5}}))
    with pytest.raises(WeightsError, match="width 32, dim says 768"):
        build_teacher("exo_rgb", released(dim=768))
