"""A finished run that the tests of the report share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from uniego.demo.dataset import write_dataset
from uniego.demo.preset import demo_config
from uniego.pipeline import files
from uniego.pipeline.rundir import Run
from uniego.stages.analyze_cka import analyze_cka
from uniego.stages.analyze_conflicts import analyze_conflicts
from uniego.stages.distill import distill
from uniego.stages.evaluate import evaluate
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.train_proxies import train_proxies

PAIRS = {"push": "slide", "pull": "slide", "pick up": "lift", "put down": "lift"} | {
    "screw": "turn", "unscrew": "turn", "tilt up": "tilt", "tilt down": "tilt",
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The smallest demo with a skeleton, a depth and an exo picture teacher, a step or two of each training, evaluated.
    Read only. It is made once, also where several processes test."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "report-run"
    with files.locked(folder / "lock"):
        if not (folder / "made").exists():
            _make(folder)
            (folder / "made").touch()
    return Run.open(folder / "run")


def _make(folder: Path) -> None:
    table = write_dataset(folder / "data", clips=24, size=48, workers=1)
    text = table.read_text(encoding="utf-8")
    for action, pair in PAIRS.items():  # so that a test clip has a partner of its class
        text = text.replace(f",{action},", f",{pair},")
    table.write_text(text, encoding="utf-8")
    config = demo_config()
    train = config.distill.train.model_copy(update={"epochs": 1})
    head = config.evaluate.segmentation.head.model_copy(update={"epochs": 4, "layers": 3, "refinement_layers": 3})
    cut = config.evaluate.segmentation.model_copy(update={"head": head, "stride": 4})
    (folder / "run").mkdir()
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"table": "../data/clips.csv"}),
            "teachers": {key: config.teachers[key] for key in ("exo_skl", "ego_depth")},
            "proxies": config.proxies.model_copy(update={"train": train}),
            "distill": config.distill.model_copy(update={"train": train}),
            "evaluate": config.evaluate.model_copy(update={"resamples": 40, "segmentation": cut, "crops": 1}),
            "compute": config.compute.model_copy(update={"workers": 0}),
        }
    )
    run = Run.create(folder / "run", config)
    extract_teachers(run)
    train_proxies(run)
    distill(run)
    evaluate(run)
    evaluate(run, model="proxy:exo_skl", tasks=["recognition"])
    analyze_cka(run)
    analyze_conflicts(run, 1)


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy that a test may change; the data are the same."""
    shutil.copytree(finished.root, tmp_path / "run")
    (tmp_path / "data").symlink_to(finished.root.parent / "data")
    return Run.open(tmp_path / "run")
