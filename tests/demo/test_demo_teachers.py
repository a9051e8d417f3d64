"""The shipped teachers: all nine load, are small, licensed, named for good, and recognise people they never saw."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from uniego import demo
from uniego.demo.dataset import FPS, noisy_joints
from uniego.demo.preset import demo_config
from uniego.demo.probes import own_accuracy
from uniego.demo.teachers import demo_teachers
from uniego.demo.world import ACTIONS, ALL_ACTIONS, render, sample_scene, sample_subject
from uniego.errors import ConfigError, UsageError, WeightsError
from uniego.models import TimeSformer, load_image_weights
from uniego.models.teachers import TEACHERS, Teacher, TeacherConfig, build_teacher, parse_source
from uniego.pipeline.poses import Pose

SEED, SUBJECTS, SIDE = 20260623, 4, 96
WEIGHTS = Path(demo.__file__).parent / "weights"


@pytest.fixture(scope="module")
def teachers() -> dict[str, Teacher]:
    return {key: build_teacher(key, config) for key, config in demo_teachers().items()}


@pytest.fixture(scope="module")
def clips() -> list[tuple[npt.NDArray[np.uint8], Pose, int]]:
    """Eight frames and a noisy skeleton of the outer view, and the label."""
    made = []
    for subject in range(SUBJECTS):
        rng = np.random.default_rng((SEED, subject))
        person = sample_subject(rng)
        for label, action in enumerate(ALL_ACTIONS):
            scene = sample_scene(rng, action, person)
            counts = (8, round(scene.duration * FPS))
            seconds = [(np.arange(count) + 0.5) / count * scene.duration for count in counts]
            frames = render(scene, seconds[0], "exo", SIDE).rgb
            joints = render(scene, seconds[1], "exo", 32).joints_2d.copy()
            joints[..., :2] = (joints[..., :2] + 0.5) * (SIDE / 32) - 0.5
            made.append((frames, Pose(noisy_joints(joints, rng, SIDE)[None], (SIDE, SIDE)), label))
    return made


def test_the_nine_load_and_none_is_random(teachers: dict[str, Teacher]) -> None:
    assert list(teachers) == list(TEACHERS)
    for key, teacher in teachers.items():
        assert not teacher.is_random
        assert teacher.view == TEACHERS[key].view
        assert teacher.config.network == TEACHERS[key].network
        described = teacher.describe()
        assert described["licence"] == "Apache-2.0"
        assert described["source"] == f"demo:{teacher.config.network}"
    assert teachers["ego_dino"].weights_hash == teachers["exo_dino"].weights_hash
    assert len({teacher.weights_hash for teacher in teachers.values()}) == 6


def test_weights_are_small_and_their_quality_is_told() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 10_000_000
    quality = json.loads((WEIGHTS / "quality.json").read_text(encoding="utf-8"))
    text = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert set(quality) == set(TEACHERS)
    assert "Licence: Apache-2.0" in text
    assert all(f"`{key}`" in text for key in TEACHERS)


def test_every_teacher_gives_finite_features_that_differ(
    teachers: dict[str, Teacher], clips: list[tuple[npt.NDArray[np.uint8], Pose, int]]
) -> None:
    for teacher in teachers.values():
        prepared = [teacher.prepare(torch.from_numpy(frames), pose) for frames, pose, _ in (clips[0], clips[2])]
        first, second = teacher.features(prepared)
        assert torch.isfinite(first).all()
        assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(
    ("key", "actions", "floor"),
    [
        ("exo_rgb", ACTIONS, 0.65),
        ("exo_skl", ACTIONS, 0.9),
        ("exo_rgb", ALL_ACTIONS, 0.7),
        ("exo_skl", ALL_ACTIONS, 0.85),
    ],
)
def test_trained_by_labels_it_recognises_new_people(
    key: str,
    actions: tuple[str, ...],
    floor: float,
    clips: list[tuple[npt.NDArray[np.uint8], Pose, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the network names them, and as `own_accuracy` says with classes in another order."""
    config = demo_teachers(len(actions))[key]
    teacher, seen = build_teacher(key, config), [clip for clip in clips if clip[2] < len(actions)]
    head = teacher.module.get_submodule("head" if key == "exo_rgb" else "cls_head.fc_cls")
    prepared = [teacher.prepare(torch.from_numpy(frames) if teacher.frames else None, pose) for frames, pose, _ in seen]
    with torch.inference_mode():
        features = teacher.features(prepared)[:, 0]
        named = head(features).argmax(1)
    right = float(np.mean([int(name) == label for name, (_, _, label) in zip(named, seen, strict=True)]))
    assert right >= floor  # chance: 1 / 8 or 1 / 12
    classes = sorted(actions)
    labels = torch.tensor([classes.index(actions[label]) for _, _, label in seen])
    monkeypatch.setattr("uniego.demo.probes._features", lambda *_: (features, labels))
    table = SimpleNamespace(classes=classes)
    run = SimpleNamespace(config=SimpleNamespace(teachers={key: config}), table=lambda: table)
    assert own_accuracy(run, key) == pytest.approx(100 * right)  # type: ignore[arg-type]
    table.classes = [*classes, "juggle"]
    assert own_accuracy(run, key) is None  # type: ignore[arg-type]


def test_teachers_of_twelve_differ_in_two_networks() -> None:
    eight, twelve = demo_teachers(), demo_teachers(12)
    changed = {key: twelve[key].weights for key in eight if eight[key] != twelve[key]}
    assert changed == {"exo_rgb": "demo:timesformer12", "exo_skl": "demo:stgcn12"}
    with pytest.raises(UsageError, match="8, 12"):
        demo_teachers(10)


def test_student_and_proxies_start_from_a_network_that_names_no_action() -> None:
    state = load_file(WEIGHTS / "start" / "model.safetensors")
    assert not any(name.startswith("head.") for name in state)
    shape = demo_config().student
    model = TimeSformer(
        shape.image_size, shape.patch_size, shape.num_frames, shape.width, shape.depth, shape.heads, num_classes=8
    )
    report = load_image_weights(model, state)
    assert report.unchanged == ["head.weight", "head.bias"]
    assert report.resized == report.ignored == []


def test_shipped_weights_are_named_without_a_place() -> None:
    source = parse_source("demo:siglip")
    assert (str(source), source.kind) == ("demo:siglip", "dir")
    assert parse_source("demo:stgcn").kind == "file"
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301
    for wrong in ("demo:resnet", "demo:../weights", "demo:"):
        with pytest.raises(ConfigError, match="demo:<network>"):
            parse_source(wrong)


def test_shipped_weights_of_another_network_are_refused() -> None:
    with pytest.raises(WeightsError, match="siglip"):
        build_teacher("ego_dino", TeacherConfig(network="dinov2", weights="demo:siglip", image_size=48))


def test_timesformer_from_safetensors(tmp_path: Path) -> None:
    model = TimeSformer(16, 8, 2, width=24, depth=1, heads=3, num_classes=4, seed=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"heads": "3"})
    config = TeacherConfig(network="timesformer", weights=f"file:{tmp_path / 'model.safetensors'}", frames=2)
    teacher = build_teacher("exo_rgb", config)
    assert teacher.architecture()["heads"] == 3
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    clip = teacher.prepare(frames)
    video = ((clip.float() / 255 - 0.45) / 0.225).transpose(0, 1)[None]
    with torch.inference_mode():
        torch.testing.assert_close(teacher.features([clip])[:, 0], model.eval()(video).token)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        build_teacher("exo_rgb", config)
