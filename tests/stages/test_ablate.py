"""`uniego ablate`: cells that share proxies and merges, stops, failures, and the table."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import UsageError
from uniego.pipeline.rundir import Run
from uniego.stages.ablate import ablate
from uniego.stages.gc import find_garbage
from uniego.stages.status import status

GRID = """
name: small
seeds: [0, 1]
baseline: K1
arms:
  K1:
  K2: {distill.top_k: 2, distill.train.optimizer.lr: 0.001}
  ego-only: {model: ego-only}
"""
ALONE = """
name: alone
seeds: [3]
baseline: plain
arms:
  plain: {model: ego-only}
  runaway: {model: ego-only, distill.train.optimizer.lr: 1e300}
  lost: {teachers: [ego_dino], proxies.train.optimizer.lr: 1e300}
"""


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run of two teachers with their features, one epoch each, proxies of seed 0 trained. Read only."""
    run = tmp_path_factory.mktemp("ablate") / "run"
    good("init", run, "--data", clip_table, "--preset", "tiny")
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("exo_skl", "ego_dino")}
    raw["merge"]["epochs"] = 1
    for section in ("proxies", "distill"):
        raw[section]["train"]["epochs"] = 1
    raw["distill"]["train"]["checkpoint"]["every_steps"] = 1
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    good("extract-teachers", "--run", run)
    good("train-proxies", "--run", run)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, extracted: Path) -> Path:
    """The grid, carried out without a stop. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    run = Path(shutil.copytree(extracted, folder / "run"))
    report = json.loads(good("ablate", written(folder), "--run", run, "--json"))
    assert report["problems"] == {}
    return run


@pytest.fixture
def run(tmp_path: Path, extracted: Path) -> Path:
    return Path(shutil.copytree(extracted, tmp_path / "run"))


def written(folder: Path, text: str = GRID) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def rows(run: Path, grid: str = "small") -> dict[tuple[str, str], dict[str, str]]:
    with (run / "ablate" / grid / "results.csv").open(newline="", encoding="utf-8") as stream:
        return {(row["arm"], row["seed"]): row for row in csv.DictReader(stream)}


def weights(run: Path) -> dict[tuple[str, str], str]:
    return {cell: row["weights"] for cell, row in rows(run).items()}


def test_the_plan_counts_what_is_shared_once_and_writes_nothing(extracted: Path, tmp_path: Path) -> None:
    plan = json.loads(good("ablate", written(tmp_path), "--run", extracted, "--dry-run", "--json"))["plan"]
    assert plan["proxies"] == {"total": 4, "done": 2, "to_do": 2}  # those of seed 0 are the run's own
    assert plan["merges"] == {"total": 2, "done": 0, "to_do": 2}
    assert plan["cells"] == {"total": 6, "done": 0, "to_do": 6, "taken_over": 0}
    assert not (extracted / "ablate").exists()


def test_every_cell_has_its_row_and_shares_proxies_and_merges(finished: Path) -> None:
    folder, shared = finished / "ablate" / "small", finished / "ablate" / "shared"
    found = rows(finished)
    assert set(found) == {(arm, seed) for arm in ("K1", "K2", "ego-only") for seed in "01"}
    assert all(row["clips"] == "4" and row["state"] == "done" and float(row["seconds"]) > 0 for row in found.values())
    assert len(set(weights(finished).values())) == 6
    made = [path.parent.name.rpartition("-")[0] for path in sorted(shared.glob("proxies/*/record.json"))]
    assert made == ["ego_dino", "ego_dino", "exo_skl", "exo_skl"]
    assert len(list(shared.glob("merges/*/record.json"))) == 2
    for path in shared.glob("proxies/*/metrics.jsonl"):  # one epoch of one step: trained once
        assert path.read_text(encoding="utf-8").count('"loss"') == 1
    own = finished / "proxies" / "ego_dino" / "model" / "model.safetensors"
    assert any(path.samefile(own) for path in shared.glob("proxies/*/model/model.safetensors"))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "| K1 | 2 of 2 |" in table
    assert "| baseline |" in table


def test_a_cell_is_a_run_of_its_own(finished: Path) -> None:
    run, cell = Run.open(finished), Run.open(finished / "ablate" / "small" / "K2" / "seed-1")
    assert (cell.config.distill.top_k, cell.config.seed, cell.base) == (2, 1, finished)
    stages = status(cell)["stages"]
    assert {entry["state"] for entry in stages["train-proxies"].values()} == {"done"}
    assert stages["distill"] == {"merge": {"state": "done"}, "student": {"state": "done"}}
    assert stages["evaluate"]["student"]["state"] == "done"
    assert find_garbage([run]).stores == {}  # the outputs of shared proxies are needed
    moved = finished.rename(finished.with_name("moved"))
    try:
        assert "nothing to do" in call("distill", "--run", moved / "ablate" / "small" / "K2" / "seed-1").output
    finally:
        moved.rename(finished)
    with pytest.raises(UsageError, match="itself a cell"):
        ablate(cell, finished.parent / "grid.yaml")


def test_a_finished_grid_changes_nothing_and_is_told_again(finished: Path) -> None:
    folders = [finished / "ablate" / name for name in ("small", "shared")]
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*/*") if path.is_file()}
    printed = good("ablate", finished.parent / "grid.yaml", "--run", finished)
    assert "ego-only" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.fault
def test_killed_and_stopped_it_continues_to_the_same_networks(finished: Path, run: Path, tmp_path: Path) -> None:
    grid = written(tmp_path)
    cells, shared = run / "ablate" / "small", run / "ablate" / "shared"
    command = [sys.executable, "-m", "uniego", "ablate", str(grid), "--run", str(run)]
    ends = []
    for pattern, how in (("seed-0/distill/student/record.json", signal.SIGKILL), ("proxies/*/lock", signal.SIGTERM)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if [*cells.glob(f"*/{pattern}"), *shared.glob(pattern)]:
                process.send_signal(how)
                break
            time.sleep(0.01)
        ends.append(process.wait(timeout=60))
    assert ends == [-signal.SIGKILL, 75]
    good("ablate", grid, "--run", run)
    assert weights(run) == weights(finished)
    assert len(list(shared.glob("proxies/*/record.json"))) == 4


def _unlock_after(handle: IO[bytes], path: Path) -> None:
    """Let go of a lock when a file is there."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    fcntl.flock(handle, fcntl.LOCK_UN)


def test_a_failed_cell_stops_no_other_and_is_told_in_the_table(run: Path, tmp_path: Path) -> None:
    grid = written(tmp_path, ALONE)
    lock = run / "ablate" / "alone" / "plain" / "seed-3" / "ego-only" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("wb") as other:  # another process is at it for a while
        fcntl.flock(other, fcntl.LOCK_EX)
        later = run / "ablate" / "alone" / "runaway" / "seed-3" / "ego-only" / "record.json"
        release = threading.Thread(target=_unlock_after, args=(other, later))
        release.start()
        result = call("ablate", grid, "--run", run)
        release.join()
    assert result.exit_code == 1
    assert "another process" in result.output
    assert "runaway, seed 3 failed" in result.output
    assert "lost, seed 3: a proxy that it needs could not be trained" in result.output
    found = rows(run, "alone")
    assert [found[arm, "3"]["state"] for arm in ("plain", "runaway", "lost")] == ["done", "failed", "failed"]
    assert "finite" in found["runaway", "3"]["problem"]
    assert "a proxy that it needs" in found["lost", "3"]["problem"]
    assert found["runaway", "3"]["top1"] == ""
    table = (run / "ablate" / "alone" / "table.md").read_text(encoding="utf-8")
    assert "| runaway | 0 of 1 | failed | failed | failed | failed | 3 failed |" in table
    assert "| plain | 1 of 1 |" in table

    changed = written(tmp_path, ALONE.replace("plain: {", "plain: {merge.epochs: 3, distill.train.global_batch: 4, "))
    before = (run / "ablate" / "alone" / "plain" / "seed-3" / "run.yaml").read_bytes()
    result = call("ablate", changed, "--run", run, "--json")
    assert rows(run, "alone")["plain", "3"]["state"] == "refused"
    assert "distill.train.global_batch: stored 8, wanted 4" in result.output
    assert (run / "ablate" / "alone" / "plain" / "seed-3" / "run.yaml").read_bytes() == before
    only = written(tmp_path, changed.read_text(encoding="utf-8").partition("  runaway")[0])
    assert call("ablate", only, "--run", run).exit_code == 5
    mended = written(tmp_path, ALONE.partition("  lost")[0].replace("1e300", "0.01"))  # nothing of it was kept
    assert call("ablate", mended, "--run", run).exit_code == 0
    assert rows(run, "alone")["runaway", "3"]["state"] == "done"


def test_the_work_of_the_run_itself_is_taken_over(finished: Path, run: Path, tmp_path: Path) -> None:
    """And a cell's student is the very one that `uniego distill` trains with these settings and this seed."""
    good("distill", "--run", run)
    grid = written(tmp_path)
    said = call("ablate", grid, "--run", run, "--dry-run", "--json")
    plan = json.loads(said.stdout)["plan"]
    assert plan["merges"] == {"total": 2, "done": 1, "to_do": 1}
    assert plan["cells"] == {"total": 6, "done": 0, "to_do": 6, "taken_over": 1}
    assert not (run / "ablate").exists()
    only = written(tmp_path, "name: small\nseeds: [0]\narms: {K1: }\n")
    result = call("ablate", only, "--run", run)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "takes over what" in said
    assert all(name in said for name in ("proxy ego_dino", "proxy exo_skl", "the merge", "the student"))
    cell = run / "ablate" / "small" / "K1" / "seed-0"
    name = Path("distill/student/model/model.safetensors")
    assert (cell / name).samefile(run / name)
    assert weights(run)["K1", "0"] == weights(finished)["K1", "0"], "as if it had been trained there"


def test_tasks_share_the_cells(run: Path, tmp_path: Path) -> None:
    grid = written(tmp_path, ALONE.partition("  lost")[0].replace("1e300", "0.01"))
    assert "belong together" in call("ablate", grid, "--run", run, "--task-index", 0).output
    assert "task 2 of 2" in call("ablate", grid, "--run", run, "--task-index", 2, "--num-tasks", 2).output
    for task, states in enumerate((["done", "missing"], ["done", "done"])):
        good("ablate", grid, "--run", run, "--task-index", task, "--num-tasks", 2)
        assert [rows(run, "alone")[arm, "3"]["state"] for arm in ("plain", "runaway")] == states


@pytest.mark.slow
def test_several_pieces_at_a_time_give_the_same_networks(finished: Path, run: Path, tmp_path: Path) -> None:
    report = json.loads(good("ablate", written(tmp_path), "--run", run, "--jobs", "2", "--json"))
    assert report["problems"] == {}
    assert weights(run) == weights(finished)
    assert len(list((run / "ablate" / "shared" / "proxies").glob("*/record.json"))) == 4
    assert list((run / "ablate" / "small" / "logs").glob("worker-*.log"))
    command = [sys.executable, "-m", "uniego", "ablate", str(written(tmp_path, GRID.replace("small", "again")))]
    process = subprocess.Popen([*command, "--run", str(run), "--jobs", "2"], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(run.glob("ablate/again/*/*/*/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the whole group
    assert process.wait(timeout=120) == 75
    good("ablate", tmp_path / "grid.yaml", "--run", run, "--jobs", "2")
    assert {cell: row["weights"] for cell, row in rows(run, "again").items()} == weights(finished)
