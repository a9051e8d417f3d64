"""`uniego export`: the folder, its model card, ONNX; and the encoder that loads it."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniego
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import UsageError
from uniego.models import TimeSformer
from uniego.pipeline.rundir import Run
from uniego.pipeline.video import open_video
from uniego.stages import onnx_export
from uniego.stages.encoder import WEIGHTS
from uniego.stages.fingerprints import training_fingerprint
from uniego.stages.model_card import model_card
from uniego.stages.training import fresh_model, write_trained


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run with an evaluated student and a proxy, their weights random. Read only."""
    folder = tmp_path_factory.mktemp("export") / "run"
    good("init", folder, "--data", clip_table, "--preset", "tiny")
    opened = Run.open(folder)
    parts = ((opened.student_folder, opened.config.distill), (opened.proxy_folder("ego_dino"), opened.config.proxies))
    for seed, (task, section) in enumerate(parts):
        with task.work(training_fingerprint(opened, section, {})):
            model = fresh_model(opened, {"student": 8})
            torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
            write_trained(opened, task.path / "model", model, model.state_dict())
            task.finish({"weights": "random"})
    good("evaluate", "--run", folder)
    return folder


def test_the_folder_does_what_the_run_does(run: Path, tmp_path: Path, clip_table: Path) -> None:
    said = good("export", "--run", run, "--out", tmp_path / "out", "--set", "evaluate.views=2")
    assert "warning" not in said
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["README.md", "config.json", WEIGHTS]
    video = clip_table.parent / "ego/00.mp4"
    raw = yaml.safe_load((run / "run.yaml").read_text())
    ours = uniego.load(tmp_path / "elsewhere")
    assert (ours.protocol.views, ours.protocol.crops) == (2, raw["evaluate"]["crops"])
    good("export", "--run", run, "--out", tmp_path / "plain")
    assert torch.equal(uniego.load(tmp_path / "plain").encode(video), uniego.load(run).encode(video))
    good("encode", video, "--model", tmp_path / "plain", "--out", tmp_path / "e.npy", "--workers", 0)
    assert np.allclose(np.load(tmp_path / "e.npy")[0], uniego.load(run).encode(video).numpy(), atol=1e-6)


def test_the_model_card_tells_what_is_to_be_known(run: Path, tmp_path: Path) -> None:
    good("export", "--run", run, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "uniego"
    results = json.loads((run / "evaluate" / "student" / "record.json").read_text())["results"]
    for told in (
        f"top-1 {results['top1']:.1f} %",
        "8 train, 0 val, 4 test clips",
        "`lift`, `turn`",
        "| `exo_skl` | exo | stgcn |",
        "short side 32, three crops",
        "minus 0.45, divided by 0.225",
        "Selective Proxy Distillation",
    ):
        assert told in card, told
    assert str(run) not in card
    retrieval = results["tasks"]["retrieval"]["ego_to_ego"]
    assert f"mAP {retrieval['map']:.1f} %" in card
    assert "against all test clips, the query itself left out" in card
    good("export", "--run", run, "--out", tmp_path / "other", "--set", "evaluate.views=2")  # evaluated before that
    card = (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    measured = results["tasks"]["recognition"]["protocol"]
    assert f"{measured['views']} x {measured['crops']} views x crops, {results['clips']} clips" in card
    good("export", "--run", run, "--model", "proxy:ego_dino", "--out", tmp_path / "proxy")
    card = (tmp_path / "proxy" / "README.md").read_text(encoding="utf-8")
    assert "The proxy of the teacher `ego_dino`" in card
    assert "Not evaluated" in card
    assert "exo_skl" not in card


def test_refuses_and_leaves_nothing_half_made(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert call("export", "--run", run, "--out", tmp_path / "full").exit_code == 2
    assert call("export", "--run", run, "--out", tmp_path / "x", "--model", "proxy:nobody").exit_code == 2
    assert call("export", "--run", run, "--out", tmp_path / "x", "--model", "proxy:exo_skl").exit_code == 1
    with monkeypatch.context() as patch:
        patch.setattr("uniego.stages.model_export.model_card", lambda *_, **__: 1 / 0)
        assert isinstance(call("export", "--run", run, "--out", tmp_path / "x").exception, ZeroDivisionError)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    good("export", "--run", run, "--out", tmp_path / "empty")


def test_the_card_of_another_method_does_not_speak_of_the_runs(run: Path) -> None:
    opened = Run.open(run)
    config = {**read_config(opened), "classes": []}
    card = model_card(opened, "naive-imagenet", config, "")
    assert "method naive, init imagenet" in card
    assert "Selective Proxy Distillation" not in card
    card = model_card(opened, "ego-only", config, "")
    assert "without teachers" in card
    assert "| `exo_skl`" not in card
    assert "Merge of the proxies" not in card


def read_config(run: Run) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run.student_folder.path / "model" / "config.json").read_text())
    return config | {"protocol": {"views": 1, "crops": 1}}


def test_a_network_that_gives_no_numbers_is_not_written_as_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only the logits are none: of NaN and a number, Python's max takes whichever comes first."""

    class Session:
        def __init__(self, *_: object, **__: object) -> None: ...

        def run(self, _: object, values: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((len(values["video"]), 2), np.float32), np.full((len(values["video"]), 3), np.nan)]

    class Outputs(torch.nn.Module):
        def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(len(video), 2), torch.full((len(video), 3), torch.nan)

    onnxruntime = types.ModuleType("onnxruntime")
    onnxruntime.InferenceSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
    assert not onnx_export._difference(Outputs(), Path("x"), torch.zeros(1, 3)) <= onnx_export.TOLERANCE


@pytest.mark.slow
def test_onnx_gives_the_same_numbers_for_any_batch(run: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    import onnxruntime

    assert "differs from the network by at most" in good("export", "--run", run, "--out", tmp_path / "out", "--onnx")
    encoder = uniego.load(tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    geometry = encoder.model.geometry
    size = geometry["image_size"]
    for batch in (1, 2, 5):
        video = torch.randn(batch, 3, geometry["num_frames"], size, size)
        with torch.inference_mode():
            out = encoder.model(video)
        token, logits = session.run(["token", "logits"], {"video": video.numpy()})
        assert np.abs(token - out.token.numpy()).max() <= 1e-4
        assert np.abs(logits - out.logits.numpy()).max() <= 1e-4
    assert "`model.onnx`" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_onnx_without_its_packages_is_refused_with_advice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniego.stages.onnx_export._PACKAGES", ("no_such_package",))
    result = call("export", "--run", run, "--out", tmp_path / "out", "--onnx")
    assert result.exit_code == 2
    assert "--onnx needs no_such_package: pip install 'uniego[onnx]'" in result.output
    assert not (tmp_path / "out").exists()


def test_paths_lists_and_frames(run: Path, clip_table: Path, make_video: Callable[..., Path], tmp_path: Path) -> None:
    encoder = uniego.load(run)
    paths = [clip_table.parent / "ego" / name for name in ("00.mp4", "01.mp4")]
    one, both = encoder.encode(str(paths[0])), encoder.encode(paths)
    width = encoder.model.geometry["width"]
    assert (one.shape, both.shape, one.dtype) == ((width,), (2, width), torch.float32)
    assert torch.equal(both[0], one)
    assert encoder.encode([]).shape == (0, width)
    with open_video(paths[0]) as video:
        frames, fps = video.frames(range(video.info.frame_count)), video.info.fps
    assert torch.equal(encoder.encode(frames, fps=fps), one)
    assert torch.equal(encoder.encode([torch.from_numpy(frames), paths[1]], fps=fps), both)
    assert encoder.classify(frames, fps=fps) == encoder.classify(paths[0])


def test_what_is_no_video_is_refused(run: Path) -> None:
    encoder = uniego.load(run)
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    for wrong in (frames.astype(np.float32), frames[0], frames.transpose(0, 3, 1, 2), frames[:0]):
        with pytest.raises(UsageError, match=r"uint8 \[T, H, W, 3\]"):
            encoder.encode(wrong)
    for options in ({"start_s": 1.0}, {"fps": 0.0}):
        with pytest.raises(UsageError):
            encoder.encode(frames, **options)
    with pytest.raises(UsageError, match="list of videos"):
        encoder.encode([frames], end_s=1.0)


def test_folders_that_are_no_encoder_are_refused_in_words(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(run / "distill" / "student" / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    for text in ("{", "{}", json.dumps({**config, "geometry": {"width": 1}})):
        (folder / "config.json").write_text(text)
        with pytest.raises(uniego.errors.WeightsError, match="describes no encoder"):
            uniego.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(uniego.errors.WeightsError, match="does not fit"):
        uniego.load(folder)
    assert isinstance(load_file(run / "distill" / "student" / "model" / WEIGHTS), dict)
    assert isinstance(uniego.load(run).model, TimeSformer)


def test_an_encoder_of_the_hub_that_is_not_in_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(uniego.errors.WeightsError, match="hf download nobody/nothing --local-dir"):
        uniego.load("hub:nobody/nothing")
