"""The released code's own small run, `train_run_stage1`, laid out in its folders: in at each stage, and out again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore
from uniego.models import TimeSformer
from uniego.pipeline.config import CheckpointConfig, OptimizerConfig, ProxiesConfig, ScheduleConfig, TrainConfig
from uniego.pipeline.rundir import Run
from uniego.pipeline.signals import StopFlag
from uniego.stages.batches import Batch
from uniego.stages.loop import Loop, Plan
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import load_bank, load_targets, row_keys

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "train_run_stage1.safetensors")
META = json.loads((DATA / "train_run_stage1.json").read_text())
TINY = load_file(DATA / "model_tiny.safetensors")
FINAL = {key.removeprefix("state_after_epoch2/"): value for key, value in GOLDEN.items() if "epoch2/" in key}
FEATURES = torch.cat([GOLDEN[f"in/{i}/exo_skl"] for i in range(5)])  # [20, 256]
LABELS = torch.cat([GOLDEN[f"in/{i}/y"] for i in range(5)]).tolist()
ZERO = [4 * i + 1 for i in range(5)]  # clips whose feature is zeros: none, for the released code
SIZES = {"image_size": 32, "patch_size": 8, "num_frames": 4, "width": 48, "depth": 3, "heads": 4}


def good(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return " ".join(str(result.output).split())


def network(state: dict[str, Tensor]) -> TimeSformer:
    model = TimeSformer(**SIZES, num_classes=7, projections={"exo_skl": 256}, drop_path=0.0)
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """The golden's 20 clips, seven classes; their videos are stand-ins."""
    folder = tmp_path_factory.mktemp("golden")
    video = make_video(folder / "one.mp4").read_bytes()
    path = folder / "clips.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", "split", "label", "ego_path", "exo_path"])
        for number, label in enumerate(LABELS):
            for view in ("ego", "exo"):
                (folder / view).mkdir(exist_ok=True)
                (folder / view / f"take{number:02d}.{view}.mp4").write_bytes(video)
            names = [f"{view}/take{number:02d}.{view}.mp4" for view in ("ego", "exo")]
            writer.writerow([f"clip{number:02d}", "train", f"class {label}", *names])
        for number in range(7):  # the test split has all classes
            (folder / "ego" / f"test{number}.mp4").write_bytes(video)
            writer.writerow([f"test{number}", "test", f"class {number}", f"ego/test{number}.mp4", ""])
    return path


@pytest.fixture
def run(tmp_path: Path, table: Path) -> Run:
    """A run of the golden's network over its clips, with a cache that rounds nothing."""
    folder = tmp_path / "run"
    good("init", folder, "--data", table, "--preset", "tiny")
    path = folder / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["teachers"] = {"exo_skl": raw["teachers"]["exo_skl"] | {"view": "exo"}}
    raw["student"] |= SIZES
    raw["cache"] |= {"dtype": "float32", "rows_per_shard": 6}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return Run.open(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the released code would have left: features, a trained proxy, its tokens and scores."""
    root = tmp_path_factory.mktemp("released")
    proxy = root / "stage1" / "exo_skl"
    for folder in (root / "features/exo_skl", proxy / "tokens_training/tokens", proxy / "tokens_training/scores_pred"):
        folder.mkdir(parents=True)
    (proxy / "checkpoints").mkdir()
    state = {f"model.{name}": tensor for name, tensor in FINAL.items()}
    for epoch in (0, 2):  # the last is the proxy
        content = {"epoch": epoch, "model_state": state, "optimizer_state": {}, "cfg": ""}
        torch.save(content, proxy / "checkpoints" / f"checkpoint_epoch_{epoch + 1:05d}.pyth")
        state = {name: tensor.clone() for name, tensor in state.items()}
    model = network(FINAL)
    with torch.inference_mode():
        parts = [model(GOLDEN[f"in/{i}/x"]) for i in range(5)]
    for number, feature in enumerate(FEATURES.numpy()):
        out = parts[number // 4]
        np.save(root / "features/exo_skl" / f"take{number:02d}.exo.npy", feature)
        # The released code cuts the ego video's name at the first dot here.
        np.save(proxy / "tokens_training/tokens" / f"take{number:02d}.npy", out.token[number % 4].numpy())
        np.save(proxy / "tokens_training/scores_pred" / f"take{number:02d}.npy", out.logits[number % 4].numpy())
    return root


def stream(epoch: int, step: int) -> Iterator[Batch]:
    for _ in range(epoch, 3):
        for i in range(2 * step, 4):
            yield Batch.of(range(4 * i, 4 * i + 4), GOLDEN[f"in/{i}/x"])
        step = 0


def test_features_in_and_the_released_proxy_comes_out(run: Run, folders: Path, tmp_path: Path) -> None:
    """Imported features, as training gets them, bring the released run's weights; and they leave as they came."""
    words = ["release", "import", "features", folders / "features", "--run", run.root]
    told = good(*words, "--min-coverage", 0)
    assert f"exo_skl: 15 of {len(run.table().clips)} clips imported (5 failed, 7 without its input)" in told
    clips, index = run.table().split("train"), ClipIndex.open(run.cache_root)
    rows = index.rows(row_keys(run, clips))
    targets = load_targets(FeatureStore.open(run.cache_root / "exo_skl", index), rows, SIZES["num_frames"])
    present = torch.ones(20, dtype=torch.bool)
    present[ZERO] = False
    assert torch.equal(targets.present, present)
    assert torch.equal(targets.values[present], FEATURES[present])
    assert [clip.label for clip in clips] == LABELS

    values = META["config"]
    train = TrainConfig(
        epochs=3,
        global_batch=8,
        micro_batch=4,
        optimizer=OptimizerConfig(lr=values["BASE_LR"]),
        schedule=ScheduleConfig(steps=[0, 1, 2], factors=[1, 0.1, 0.01]),
    )
    begun = {k.removeprefix("state_stage1/"): v for k, v in TINY.items() if k.startswith("state_stage1/")}
    begun["head.weight"] = begun["head.weight"] * 0.5
    base = Supervised(network(begun), clips, seed=0, device=torch.device("cpu"))
    task = ProxyTask("golden", "exo_skl", ProxiesConfig(train=train), base, targets)
    plan = Plan(3, 2, 2, 8, CheckpointConfig(), torch.device("cpu"), log_every=1)
    Loop(task, plan, tmp_path / "loop", StopFlag()).run(stream)
    for name, tensor in task.tensors().items():
        torch.testing.assert_close(tensor, FINAL[name], rtol=1e-4, atol=1e-5, msg=name)

    good("release", "export", "features", tmp_path / "back", "--run", run.root)
    left = {path.stem: np.load(path) for path in (tmp_path / "back/exo_skl").iterdir()}
    wanted = {f"take{number:02d}.exo": FEATURES[number].numpy()[None] for number in range(20) if number not in ZERO}
    assert left.keys() == wanted.keys()  # what is missing has no file
    assert all(np.array_equal(value, wanted[name]) for name, value in left.items())


def test_zeros_as_values(run: Run, folders: Path, tmp_path: Path) -> None:
    words = ["release", "import", "features", folders / "features", "--run", run.root, "--zeros", "values"]
    assert f"20 of {len(run.table().clips)} clips imported (0 failed" in good(*words)
    told = good("release", "export", "features", tmp_path / "back", "--run", run.root)
    assert "5 features are all zeros" in told
    for number, feature in enumerate(FEATURES.numpy()):
        assert np.array_equal(np.load(tmp_path / f"back/exo_skl/take{number:02d}.exo.npy"), feature[None])


def test_the_proxy_and_its_outputs(run: Run, folders: Path, tmp_path: Path) -> None:
    told = good("release", "import", "proxies", folders / "stage1", "--run", run.root)
    assert "outputs of 20 of 20 train clips" in told
    assert "epoch 2" in told
    stored = load_file(run.proxy_folder("exo_skl").path / "model/model.safetensors")
    assert stored.keys() == FINAL.keys()
    assert all(torch.equal(tensor, FINAL[name]) for name, tensor in stored.items())
    clips, index = run.table().split("train"), ClipIndex.open(run.cache_root)
    store = FeatureStore.open(run.cache_root / run.proxy_folder("exo_skl").results["outputs"], index)
    bank = load_bank([store], index.rows(row_keys(run, clips)))
    model = network(FINAL)
    with torch.inference_mode():
        for i in range(5):
            out = model(GOLDEN[f"in/{i}/x"])
            assert torch.equal(bank.tokens[4 * i : 4 * i + 4, 0], out.token)
            assert torch.equal(bank.logits[4 * i : 4 * i + 4, 0], out.logits)
    assert bank.present.all()

    good("release", "export", "proxies", tmp_path / "back", "--run", run.root, "--names", "stem")
    mine = torch.load(tmp_path / "back/exo_skl/checkpoints/checkpoint_epoch_00003.pyth", weights_only=True)
    assert mine["epoch"] == 2
    assert all(torch.equal(tensor, FINAL[name.removeprefix("model.")]) for name, tensor in mine["model_state"].items())
    for part in ("tokens", "scores_pred"):
        for number in range(20):
            ours = tmp_path / f"back/exo_skl/tokens_training/{part}/take{number:02d}.ego.npy"
            theirs = folders / f"stage1/exo_skl/tokens_training/{part}/take{number:02d}.npy"
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_proxy_as_the_start_of_the_student(run: Run, folders: Path, tmp_path: Path) -> None:
    """A stage-1 checkpoint has a projection to its teacher's width; the start of the student leaves it out."""
    checkpoint = folders / "stage1/exo_skl/checkpoints/checkpoint_epoch_00003.pyth"
    assert "its projection is left out" in good("release", "import", "merged", checkpoint, "--run", run.root)
    good("release", "export", "merged", tmp_path / "merged.pyth", "--run", run.root)
    content: dict[str, Any] = torch.load(tmp_path / "merged.pyth", weights_only=True)["model_state"]
    wanted = {f"model.{name}": tensor for name, tensor in FINAL.items() if not name.startswith("proj_layer")}
    assert content.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in content.items())
