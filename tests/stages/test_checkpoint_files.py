"""`uniego checkpoint import` and `export`, on a checkpoint in the released layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import uniego
from typer.testing import CliRunner
from uniego import cli
from uniego.models import read_release_checkpoint

CHECKPOINT = Path(__file__).parents[1] / "data" / "official_layout_tiny.pyth"


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    result = call("checkpoint", "import", CHECKPOINT, "--out", tmp_path / "net", "--heads", 4)
    assert result.exit_code == 0, result.output
    assert "epoch 14, 71 tensors; width 48, depth 3, image_size 32" in result.output
    return tmp_path / "net"


def test_an_imported_checkpoint_encodes(imported: Path, tmp_path: Path, make_video: Callable[..., Path]) -> None:
    encoder = uniego.load(imported)
    assert (encoder.reader.policy, encoder.reader.rate, encoder.reader.single_short_side) == ("window", 32, 37)
    assert encoder.protocol == (1, 3)
    video = make_video(tmp_path / "ego.mp4")
    assert encoder.encode(video).shape == (48,)
    assert list(encoder.classify(video)) != []
    state, _ = read_release_checkpoint(CHECKPOINT)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.model.state_dict().items())


def test_the_way_back(imported: Path, tmp_path: Path) -> None:
    assert call("checkpoint", "export", imported, "--out", tmp_path / "back.pyth").exit_code == 0
    state, _ = read_release_checkpoint(tmp_path / "back.pyth")
    original, _ = read_release_checkpoint(CHECKPOINT)
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], original[name]) for name in state)
    assert call("checkpoint", "export", imported, "--out", tmp_path / "back.pyth").exit_code == 2
    again = ["checkpoint", "import", tmp_path / "back.pyth", "--heads", 4, "--out", tmp_path / "again"]
    assert call(*again, "--like", imported).exit_code == 0


def test_differing_keys_are_named_and_nothing_is_written(imported: Path, tmp_path: Path) -> None:
    content = dict(torch.load(CHECKPOINT, weights_only=True))
    state = dict(content["model_state"])
    out = ["--out", tmp_path / "x", "--heads", "4"]
    changes: tuple[tuple[dict[str, Any], list[object], str], ...] = (
        ({"model.norm.weight": None}, [], "missing: norm.weight"),
        ({"model.norm.scale": torch.ones(48)}, [], "unknown: norm.scale"),
        ({"model.head.bias": torch.ones(6)}, [], "head.bias [6] instead of [7]"),
        ({"model.head.bias": torch.full((7,), torch.nan)}, [], "not finite numbers: head.bias"),
        (
            {"model.head.weight": torch.ones(6, 48), "model.head.bias": torch.ones(6)},
            ["--like", imported],
            "other shapes: head.bias [6] instead of [7], head.weight [6, 48] instead of [7, 48]",
        ),
        (
            {"model.proj_layer.weight": None, "model.proj_layer.bias": None},
            ["--like", CHECKPOINT],
            "missing: proj_layer.bias, proj_layer.weight",
        ),
    )
    for change, options, told in changes:
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        torch.save({**content, "model_state": changed}, tmp_path / "changed.pyth")
        result = call("checkpoint", "import", tmp_path / "changed.pyth", *out, *options)
        assert (result.exit_code, told in result.output) == (1, True), result.output
    assert not (tmp_path / "x").exists()


def test_heads_and_classes_are_stated(tmp_path: Path) -> None:
    words = ["checkpoint", "import", CHECKPOINT, "--out", tmp_path / "x"]
    result = call(*words)
    assert (result.exit_code, "--heads N" in result.output) == (2, True)
    assert call(*words, "--heads", 5).exit_code == 2  # 48 is no multiple
    assert call(*words, "--heads", 4, "--crops", 2).exit_code == 2
    names = [f"class {i}" for i in range(7)]
    for file, text, code in (
        ("few.txt", "\n".join(names[:6]), 2),
        ("broken.json", "[", 2),
        ("no-list.json", json.dumps({"a": 1}), 2),
        ("good.json", json.dumps(names), 0),
    ):
        (tmp_path / file).write_text(text)
        result = call(*words, "--heads", 4, "--classes", tmp_path / file)
        assert result.exit_code == code, result.output
    assert uniego.load(tmp_path / "x").classes == tuple(names)
    assert call(*words, "--heads", 4).exit_code == 2  # something is there now
