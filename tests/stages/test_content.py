"""What trainings are bound to: the values that they read, and nothing else; and `status`, which asks for it cheaply."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import FeatureStore
from uniego.errors import FingerprintMismatch, Stopped
from uniego.pipeline import rundir
from uniego.pipeline.rundir import Run, TaskFolder
from uniego.stages import proxy_training
from uniego.stages import train_proxies as stage
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.status import status
from uniego.stages.targets import open_index, open_teacher
from uniego.stages.view import content_hash

KEY = "ego_dino"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    folder = tmp_path_factory.mktemp("content") / "run"
    arguments = ["init", str(folder), "--data", str(clip_table), "--preset", "tiny"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {KEY: raw["teachers"][KEY]}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    extract_teachers(Run.open(folder))
    return folder


@pytest.fixture
def begun(tmp_path: Path, extracted: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose proxy was stopped after its first checkpoint."""
    run = Run.open(Path(shutil.copytree(extracted, tmp_path / "run")))

    def stop(_: Run, folder: Path, *__: object) -> None:
        (folder / "checkpoints" / "step-1").mkdir(parents=True)
        raise Stopped("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(proxy_training, "train_to_folder", stop)
        with pytest.raises(Stopped):
            stage.train_proxies(run)
    shutil.rmtree(run.proxy_folder(KEY).path / "checkpoints" / "step-1")
    (run.proxy_folder(KEY).path / "best.safetensors").touch()  # something is left of it
    return run


def rewrite(store: FeatureStore, factor: float) -> None:
    """Write the first shard anew, its values times a power of two."""
    rows = store.index.shard_rows(0)
    values, states, failures = store.read(rows, "features")[0], store.status(rows), store.failures()
    ids = {key.clip_id for key in store.index.keys(0)}
    store.redo(0)
    store.write_shard(0, {"features": values * np.float16(factor)}, states, [f for f in failures if f.clip_id in ids])


def test_a_training_continues_with_the_same_values_alone(begun: Run) -> None:
    store = open_teacher(begun, open_index(begun), KEY)
    rewrite(store, 2.0)
    with pytest.raises(FingerprintMismatch, match=f"features of {KEY} changed since the training began") as refused:
        stage.train_proxies(begun)
    assert refused.value.exit_code == 5
    rewrite(store, 0.5)
    record = begun.proxy_folder(KEY).record
    assert record is not None
    bound = record["content"]
    stage.train_proxies(begun)
    finished = begun.proxy_folder(KEY).record
    assert finished is not None
    assert (finished["state"], finished["content"]) == ("done", bound)
    rewrite(store, 1.0)
    assert status(begun)["stages"]["train-proxies"][KEY]["state"] == "done"


def test_overwrite_begins_with_other_values(begun: Run) -> None:
    rewrite(open_teacher(begun, open_index(begun), KEY), 2.0)
    stage.train_proxies(begun, overwrite=True)
    assert begun.proxy_folder(KEY).done


def test_what_kept_nothing_takes_other_values(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "task", "the task")
    for content in ("a", "b"):
        with folder.work({}):
            folder.bind("features", content)
    (folder.path / "model").mkdir()
    with folder.work({}), pytest.raises(FingerprintMismatch, match="features: stored 'b', wanted 'c'"):
        folder.bind("features", "c")


def test_the_hash_is_of_values_in_the_order_of_clips() -> None:
    values = torch.arange(12, dtype=torch.float32).reshape(6, 2)
    order = [3, 1, 0, 2, 5, 4]
    moved = values[order]
    known = content_hash({"values": values}, range(6))
    assert content_hash({"values": moved}, np.argsort(order).tolist()) == known
    assert content_hash({"values": moved}, range(6)) != known
    values[2, 1] = float(np.nextafter(np.float32(5), np.float32(6)))
    assert content_hash({"values": values}, range(6)) != known


def test_status_of_begun_proxies_reads_no_table(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.train_proxies(begun)
    monkeypatch.setattr(rundir, "read_clip_table", lambda *_, **__: pytest.fail("the table was read"))
    found = status(Run.open(begun.root))["stages"]
    assert found["train-proxies"][KEY]["state"] == "done"
    assert found["extract-teachers"][KEY]["done"] == 12
