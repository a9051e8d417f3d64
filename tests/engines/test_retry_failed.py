"""`--retry-failed`: failed clips are tried again, and nothing else changes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def features(run: Path) -> tuple[np.ndarray, np.ndarray]:
    store = FeatureStore.open(run / "cache" / "ego_colour", ClipIndex.open(run / "cache"))
    return store.read(np.arange(12), "features")


def failed(run: Path) -> list[str]:
    with (run / "extract" / "failures.csv").open(newline="", encoding="utf-8") as handle:
        return [row["clip_id"] for row in csv.DictReader(handle)]


SHARE = ["--task-index", 1, "--num-tasks", 2]


@pytest.mark.parametrize(
    "engine",
    [[], *(pytest.param(e, marks=pytest.mark.slow) for e in (SHARE, ["--workers", 2], ["--engine", "dask"]))],
)
def test_a_failed_clip_is_tried_again_and_its_neighbours_keep_their_bytes(
    engine: list[Any],
    colours: Callable[..., Path],
    black: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunks: Any,
    start: Any,
) -> None:
    run = colours("run", bad=2, black=black)  # a clip of shard 1
    result = call("extract-teachers", "--run", run, "--min-coverage", 0.9)
    assert (result.exit_code, "at least 90.0 %" in result.output) == (0, True)
    assert failed(run) == ["r00clip02"]
    before, values = chunks(run), features(run)
    assert "nothing to do" in call("extract-teachers", "--run", run, "--min-coverage", 0.9).output
    assert chunks(run) == before
    result = call("extract-teachers", "--run", run, "--retry-failed")  # nothing has changed: it fails again
    assert (result.exit_code, "--retry-failed" in result.output) == (3, True)
    assert (chunks(run), failed(run)) == (before, ["r00clip02"])
    cure = tmp_path / "cure"
    cure.touch()
    process = start("extract-teachers", "--run", run, "--retry-failed", *engine, UNIEGO_TEST_CURE=str(cure))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "1 of 12 clips in 1 shard" in out
    assert failed(run) == []
    now, present = features(run)
    assert present.all()
    assert (np.delete(now, 2, axis=0) == np.delete(values[0], 2, axis=0)).all()
    changed = {name for name, data in chunks(run).items() if before[name] != data}
    assert changed == {f"cache/ego_colour/features.zarr/{name}" for name in ("features/c.1.0.0", "status/c.1")}
    assert call("verify", "--run", run, "--full").exit_code == 0
