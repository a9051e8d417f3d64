"""The interface all teachers share, over the nine tiny ones: shapes, names, hashes, repeatability."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from uniego.errors import ConfigError, UsageError, WeightsError
from uniego.models.teachers import (
    TEACHER_VIEWS,
    TEACHERS,
    Teacher,
    TeacherConfig,
    build_teacher,
    default_teachers,
    parse_source,
    tiny_teachers,
)
from uniego.pipeline.poses import Pose

KEYS = list(TEACHERS)
TINY = tiny_teachers()


def make_frames(seed: int = 0, height: int = 60, width: int = 80, count: int = 8) -> Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def make_pose(seed: int = 0, frames: int = 40) -> Pose:
    rng = np.random.default_rng(seed)
    points = np.ones((1, frames, 17, 3), np.float32)
    points[..., 0], points[..., 1] = rng.uniform(10, 70, points.shape[:-1]), rng.uniform(10, 50, points.shape[:-1])
    return Pose(points, (60, 80), "pose")


def prepare(teacher: Teacher, seed: int = 0, **sizes: int) -> Tensor:
    frames = None if teacher.reads == "skeleton" else make_frames(seed, **sizes)
    return teacher.prepare(frames, make_pose(seed) if teacher.needs_pose else None)


@pytest.fixture(scope="module")
def teachers() -> dict[str, Teacher]:
    return {key: build_teacher(key, config) for key, config in TINY.items()}


def test_the_nine_are_the_papers() -> None:
    widths = {key: facts.dim for key, facts in TEACHERS.items()}
    assert widths == {
        "exo_rgb": 768,
        "exo_skl": 256,
        "exo_skego": 512,
        "exo_siglip": 1152,
        "ego_siglip": 1152,
        "exo_depth": 1024,
        "ego_depth": 1024,
        "exo_dino": 1024,
        "ego_dino": 1024,
    }
    assert {key: key[:3] for key in KEYS} == TEACHER_VIEWS
    defaults = default_teachers()
    assert list(defaults) == list(TINY) == KEYS
    assert [key for key in KEYS if defaults[key].weights is None] == ["exo_rgb", "exo_skl"]
    assert all(defaults[key].network == TINY[key].network == TEACHERS[key].network for key in KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_contract(teachers: dict[str, Teacher], key: str) -> None:
    teacher = teachers[key]
    clips = [prepare(teacher, seed) for seed in range(3)]
    features = teacher.features(clips)
    assert features.shape == (3, teacher.rows, teacher.dim)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])
    assert teacher.view == key[:3]
    assert teacher.is_random
    assert teacher.rows == (8 if teacher.reads == "frames" else 1)
    assert teacher.needs_pose == (key in {"exo_skl", "exo_skego"})
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert not teacher.module.training
    torch.testing.assert_close(teacher.features(torch.stack(clips)), features)


@pytest.mark.parametrize("key", KEYS)
def test_a_clip_does_not_see_its_batch(teachers: dict[str, Teacher], key: str) -> None:
    teacher = teachers[key]
    sizes = [{}, {"height": 80, "width": 60}, {"height": 50, "width": 70}]
    clips = [prepare(teacher, seed, **size) for seed, size in enumerate(sizes)]
    alone = torch.cat([teacher.features([clip]) for clip in clips])
    torch.testing.assert_close(teacher.features(clips), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.features(clips[::-1]).flip(0), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_two_builds_are_the_same_teacher(teachers: dict[str, Teacher], key: str) -> None:
    first, second = teachers[key], build_teacher(key, TINY[key])
    assert first.fingerprint() == second.fingerprint()
    clip = prepare(first)
    assert torch.equal(clip, prepare(second))
    assert torch.equal(first.features([clip]), second.features([clip]))
    reseeded = build_teacher(key, TINY[key].model_copy(update={"weights": "random:99"}))
    assert reseeded.weights_hash != first.weights_hash


@pytest.mark.parametrize("key", KEYS)
def test_global_random_state_is_left_alone(key: str) -> None:
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    teacher = build_teacher(key, TINY[key])
    teacher.features([prepare(teacher)])
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("key", KEYS)
def test_fingerprint_is_json_and_names_what_counts(teachers: dict[str, Teacher], key: str) -> None:
    teacher = teachers[key]
    fingerprint = teacher.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["weights"] == teacher.weights_hash
    assert len(teacher.weights_hash) == 32
    assert fingerprint["random"] is True
    assert fingerprint["dim"] == teacher.dim
    assert json.loads(json.dumps(teacher.describe()))["source"] == TINY[key].weights


def test_the_reconstruction_says_so(teachers: dict[str, Teacher]) -> None:
    assert "reconstruction" in teachers["exo_skego"].describe()["note"]
    assert teachers["exo_skego"].fingerprint()["preprocessing"]["crop"]["of"] == "forearms"
    assert "crop" not in teachers["exo_dino"].fingerprint()["preprocessing"]


def test_inputs_are_checked(teachers: dict[str, Teacher]) -> None:
    dino, skl, skego = teachers["ego_dino"], teachers["exo_skl"], teachers["exo_skego"]
    with pytest.raises(UsageError, match="needs 8 frames, got 7"):
        dino.prepare(make_frames(count=7))
    with pytest.raises(UsageError, match="got none"):
        dino.prepare()
    with pytest.raises(UsageError, match="uint8"):
        dino.prepare(make_frames().float())
    with pytest.raises(UsageError, match="skeleton"):
        skl.prepare()
    with pytest.raises(UsageError, match="skeleton"):
        skego.prepare(make_frames())


def test_features_of_another_shape_are_refused(teachers: dict[str, Teacher]) -> None:
    with pytest.raises(UsageError, match=r"\[2, 8, 32\] expected, got \[2, 8, 33\]"):
        teachers["ego_dino"].check(torch.zeros(2, 8, 33))
    assert teachers["ego_dino"].features([]).shape == (0, 8, 32)


def test_views_and_keys() -> None:
    config = TINY["ego_dino"]
    assert build_teacher("ego_mine", config).view == "ego"
    assert build_teacher("mine", config.model_copy(update={"view": "exo"})).view == "exo"
    with pytest.raises(ConfigError, match="set its view"):
        build_teacher("mine", config)
    with pytest.raises(ConfigError, match="its name says ego, its view says exo"):
        build_teacher("ego_mine", config.model_copy(update={"view": "exo"}))


@pytest.mark.parametrize("key", ["exo_rgb", "exo_skl"])
def test_weights_not_set_are_asked_for(key: str) -> None:
    with pytest.raises(WeightsError, match=rf"set teachers\.{key}\.weights, for example file:"):
        build_teacher(key, default_teachers()[key])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet"}, "network"),
        ({"network": "clip", "colour": "red"}, "colour"),
        ({"network": "clip", "frames": "8"}, "frames"),
        ({"network": "clip", "frames": 0}, "frames"),
        ({"network": "clip", "weights": "openai/clip"}, "expected hub:"),
        ({"network": "clip", "weights": "hub:a/b/c"}, "expected hub:"),
        ({"network": "clip", "weights": "hub:a/b@"}, "expected hub:"),
        ({"network": "clip", "weights": "random:x", "allow_random": True}, "whole number"),
        ({"network": "clip", "weights": "random:1"}, "allow_random"),
        ({"network": "clip", "weights": "dir:x", "architecture": {"depth": 2}}, "architecture"),
        ({"network": "clip", "weights": "file:x.pth"}, "clip loads from hub:<id> or dir:<folder>"),
        ({"network": "stgcn", "weights": "dir:x"}, "file:<checkpoint>"),
        ({"network": "siglip", "weights": "file:x.npz"}, "siglip loads from hub:<id> or dir:<folder>"),
        (
            {"network": "dinov2", "weights": "file:x", "architecture": {"patch_size": 2}},
            "only num_attention_heads can be set",
        ),
        ({"network": "siglip", "layers": [0]}, "layers is for dinov2, depth_anything"),
        ({"network": "dinov2", "layers": []}, "layers"),
        ({"network": "dinov2", "dim": 0}, "dim"),
        ({"network": "clip", "modality": "b"}, "modality is for network stgcn"),
        ({"network": "stgcn", "graph": "coco", "edges": [[1, 0]]}, "give one of them"),
        ({"network": "stgcn", "edges": [[1, 0], [2, 3]]}, "without a parent: 0, 3"),
        ({"network": "stgcn", "edges": [[1, 2], [2, 1], [3, 0]]}, "no tree"),
        ({"network": "stgcn", "edges": [[1, 0, 2]]}, "a bone is a pair"),
        ({"network": "stgcn", "edges": []}, "a bone is a pair"),
        ({"network": "siglip", "feature": "cls"}, "siglip has pooled, patch_mean"),
        ({"network": "siglip", "graph": "coco"}, "graph is for network stgcn"),
        ({"network": "stgcn", "crop": "hands"}, "crop is for"),
        ({"network": "stgcn", "image_size": 224}, "skeletons"),
    ],
)
def test_configurations_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherConfig(**fields)


def test_every_field_is_described() -> None:
    assert all(field.description for field in TeacherConfig.model_fields.values())


def test_sources_read_back_as_written() -> None:
    for text in ("hub:a/b", "hub:gpt2", "hub:a/b@v1.0", "dir:/x y/z", "file:C:/a.pth", "random:17"):
        assert str(parse_source(text)) == text
    assert parse_source("hub:a/b@v1.0").revision == "v1.0"
    assert parse_source("random:017").seed == 17
