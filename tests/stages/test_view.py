"""Where targets live changes nothing but where they live."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache.view import Part
from uniego.pipeline.config import ComputeConfig
from uniego.pipeline.files import hash_file
from uniego.pipeline.rundir import Run
from uniego.stages.batches import Batch
from uniego.stages.distill import distill
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.train_proxies import train_proxies
from uniego.stages.view import choose_place, free_memory, open_view, take

TEACHERS = ("ego_dino", "exo_skl")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    folder = tmp_path_factory.mktemp("view") / "run"
    arguments = ["init", str(folder), "--data", str(clip_table), "--preset", "tiny"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in TEACHERS}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    extract_teachers(Run.open(folder))
    return folder


def test_training_from_a_file_gives_the_same_weights(
    tmp_path: Path, extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {}
    for place, override in (("in memory", []), ("mapped from", ["compute.memory_gb=1e-9"])):
        run = Run.open(Path(shutil.copytree(extracted, tmp_path / place)), override)
        capsys.readouterr()
        train_proxies(run)
        distill(run)
        told = capsys.readouterr().err
        assert len(re.findall(rf"\d (bytes|kB|MB), {place}", told)) == len(TEACHERS) + 1, told
        assert not list(run.root.rglob("view"))
        weights[place] = [
            hash_file(run.root / name / "model" / "model.safetensors")
            for name in (*(f"proxies/{key}" for key in TEACHERS), "distill/student")
        ]
    assert weights["in memory"] == weights["mapped from"]


def test_the_place_is_chosen_by_size() -> None:
    config = ComputeConfig(device="cpu", memory_gb=1e-6)
    assert choose_place(1000, config) == ("memory", 1000)
    assert choose_place(1001, config) == ("mapped", 1000)
    place, budget = choose_place(10, ComputeConfig(device="cpu"))
    assert place == "memory"
    assert 0 < budget <= psutil.virtual_memory().total / 2
    assert free_memory() <= psutil.virtual_memory().total


def test_a_gpu_takes_what_fits_there_whatever_memory_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU has is asked of a stand-in: the choice needs none."""
    monkeypatch.setattr("uniego.stages.view.resolve_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 9000))
    config = ComputeConfig(device="cpu", memory_gb=1e-7)
    assert choose_place(1000, config) == ("device", 100)
    assert choose_place(1001, config) == ("mapped", 100)
    assert choose_place(1001, ComputeConfig(device="cpu", memory_gb=1.0))[0] == "memory"


def test_rows_are_taken_wherever_the_tensor_lives(tmp_path: Path) -> None:
    parts = {"values": Part((6, 2), "float32")}
    wanted = np.arange(12, dtype=np.float32).reshape(6, 2)

    def fill(out: dict[str, np.ndarray]) -> None:
        out["values"][:] = wanted

    batch = Batch.of([4, 0, 4], torch.zeros(3, 1))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for memory in (1e-9, 1.0):
            config = ComputeConfig(device=device, memory_gb=memory)
            tensor = open_view("targets", tmp_path / device, "key", parts, fill, config)["values"]
            taken = take(tensor, batch.to(torch.device(device)))
            assert taken.device.type == device
            np.testing.assert_array_equal(taken.cpu().numpy(), wanted[[4, 0, 4]])
            columns = torch.tensor([[1, 1], [0, 1], [1, 0]])
            taken = take(tensor, batch.to(torch.device(device)), columns)
            assert taken.device.type == device
            np.testing.assert_array_equal(taken.cpu().numpy(), [[9, 9], [0, 1], [9, 8]])
