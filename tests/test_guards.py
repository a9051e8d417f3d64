"""What stages refuse: half-made, stale or overwritten inputs, numbers that are not finite, files that changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import IntegrityError, UniegoError
from uniego.pipeline.config import RunConfig, SPDConfig
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run, TaskFolder
from uniego.stages import checkpoints, extract_teachers
from uniego.stages.spd import spd_loss
from uniego.stages.status import status


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    """A run with a frame teacher and a skeleton teacher; every train clip of the first has a feature."""
    folder = tmp_path / "run"
    good("init", folder, "--data", clip_table, "--preset", "tiny")
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_skl")}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


class _AfterOne:
    """A stop flag that is raised at the second look."""

    def __init__(self) -> None:
        self.looks = 0

    def __enter__(self) -> _AfterOne:
        return self

    def __exit__(self, *_: object) -> None: ...

    def check(self) -> None:
        from uniego.errors import Stopped

        self.looks += 1
        if self.looks > 6:
            raise Stopped("stopped on SIGTERM; run the same command again")


def test_a_half_extracted_cache_is_not_trained_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--set", "cache.rows_per_shard=4"]
    with monkeypatch.context() as patch:
        patch.setattr(extract_teachers, "StopFlag", _AfterOne)
        assert call("extract-teachers", "--run", run, *small).exit_code == 75
    result = call("train-proxies", "--run", run, *small)
    assert result.exit_code == 1
    assert "train clips have not been through ego_dino yet" in result.output
    assert status(Run.open(run))["stages"]["extract-teachers"]["ego_dino"]["state"] == "partial"


def test_one_teacher_can_go_ahead_of_the_others(run: Path) -> None:
    good("extract-teachers", "--run", run, "--teacher", "ego_dino")
    assert "left: exo_skl" in good("train-proxies", "--run", run, "--teacher", "ego_dino")
    result = call("distill", "--run", run)
    assert result.exit_code == 1
    assert "uniego extract-teachers --teacher exo_skl" in result.output


def test_a_proxy_that_fails_does_not_stop_the_others(run: Path) -> None:
    good("extract-teachers", "--run", run)
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    first, second = raw["teachers"]
    opened = Run.open(run)
    with opened.proxy_folder(first).work({"any": "thing"}):
        result = call("train-proxies", "--run", run)
    assert result.exit_code == 1
    assert f"proxy {first} failed: another process is working on" in result.output
    assert opened.proxy_folder(second).done
    report = call("train-proxies", "--run", run, "--set", "proxies.feature_weight=2")
    assert report.exit_code == 5
    assert f"proxy {second} failed" in report.output


def test_a_named_teacher_without_features_is_an_error(run: Path, clip_table: Path) -> None:
    table = clip_table.with_name("bare.csv")
    lines = clip_table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line.rsplit(",", 1)[0] + "," for line in lines[1:])]) + "\n")
    good("extract-teachers", "--run", run, "--set", f"data.table={table}")
    result = call("train-proxies", "--run", run, "--teacher", "exo_skl", "--set", f"data.table={table}")
    assert result.exit_code == 1
    assert "no train clip has a feature of exo_skl" in result.output
    report = status(Run.open(run, [f"data.table={table}"]))["stages"]
    assert report["extract-teachers"]["exo_skl"]["state"] == "no input"
    assert report["train-proxies"]["exo_skl"]["state"] == "left out"


def test_distill_refuses_proxies_made_under_other_settings(run: Path) -> None:
    for stage in ("extract-teachers", "train-proxies"):
        good(stage, "--run", run)
    result = call("distill", "--run", run, "--set", "sampling.policy=window")
    assert result.exit_code == 5
    assert "sampling.policy: stored 'fit', wanted 'window'" in result.output
    result = call("distill", "--run", run, "--set", "evaluate.single_short_side=40")
    assert result.exit_code == 1
    assert "uniego train-proxies" in result.output
    good("train-proxies", "--run", run, "--set", "evaluate.single_short_side=40")  # exports only
    good("distill", "--run", run, "--set", "evaluate.single_short_side=40")


def test_status_calls_an_old_evaluation_stale(run: Path) -> None:
    for stage in ("extract-teachers", "train-proxies", "distill", "evaluate"):
        good(stage, "--run", run)
    good("distill", "--run", run, "--overwrite", "--set", "distill.train.optimizer.lr=0.01")
    assert status(Run.open(run))["stages"]["evaluate"]["student"]["state"] == "stale"
    good("evaluate", "--run", run)
    assert status(Run.open(run))["stages"]["evaluate"]["student"]["state"] == "done"


def test_an_overwrite_that_was_cut_short_leaves_nothing_to_adopt(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "task", "the task")
    with folder.work({"lr": 1}):
        (folder.path / "model").mkdir()
        folder.finish({})
    (folder.path / "record.json").unlink()  # what a kill inside --overwrite leaves
    with folder.work({"lr": 2}) as needed:
        assert needed
        assert not (folder.path / "model").exists()


def test_work_that_kept_nothing_may_change_its_settings(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "task", "the task")
    with pytest.raises(ValueError, match="too small"), folder.work({"lr": 1}):
        raise ValueError("too small")
    assert folder.record is not None
    assert folder.record["state"] == "failed"
    with folder.work({"lr": 2}) as needed:
        assert needed


def test_temporary_files_of_a_killed_process_are_swept_when_work_goes_on(tmp_path: Path) -> None:
    folder = TaskFolder(tmp_path / "task", "the task")
    with folder.work({"lr": 1}):  # ends without `finish`, as a killed process does
        (folder.path / "model").mkdir()
        (folder.path / "checkpoint").write_bytes(b"whole")
        left = [folder.path / name for name in (".best.safetensors.7-ab.partial", "model/.config.json.7-ab.partial")]
        for path in left:
            path.write_bytes(b"half of it")
    with folder.work({"lr": 1}) as needed:
        assert needed
        assert not any(path.exists() for path in left)
        assert (folder.path / "checkpoint").exists()


def test_a_whole_checkpoint_is_not_written_twice_and_a_damaged_one_is(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    checkpoints.save(tmp_path, 1, {"p": parameter}, optimizer, {"epoch": 0})
    path = tmp_path / "step-000000001" / "task.safetensors"
    before = path.stat().st_mtime_ns
    checkpoints.save(tmp_path, 1, {"p": parameter}, optimizer, {"epoch": 0})
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="damaged"):
        checkpoints.load_newest(tmp_path)
    checkpoints.save(tmp_path, 1, {"p": parameter}, optimizer, {"epoch": 0})
    assert checkpoints.load_newest(tmp_path) is not None


def test_weights_that_are_not_finite_are_never_kept() -> None:
    with pytest.raises(UniegoError, match=r"head.*--overwrite"):
        checkpoints.check_finite({"head": torch.tensor([1.0, float("nan")])}, "the student")


def test_runaway_training_is_no_success(run: Path) -> None:
    good("extract-teachers", "--run", run)
    result = call("train-proxies", "--run", run, "--set", "proxies.train.optimizer.lr=1e38")
    assert result.exit_code == 1
    assert "finite" in result.output
    stages = status(Run.open(run, ["proxies.train.optimizer.lr=1e38"]))["stages"]
    assert stages["train-proxies"]["ego_dino"]["state"] == "failed"


def test_other_videos_under_the_same_names_are_other_clips(
    tmp_path: Path, clip_table: Path, make_video: Callable[..., Path]
) -> None:
    """Two data sets with the same ids and relative paths share a cache without sharing rows."""
    other = tmp_path / "other"
    shutil.copytree(clip_table.parent, other)
    for path in (other / "ego").glob("*.mp4"):
        make_video(path, frames=40, hue=7)
    for name, table in (("one", clip_table), ("two", other / "clips.csv")):
        good("init", tmp_path / name, "--data", table, "--preset", "tiny", "--set", "cache.root=../cache")
        assert "12 of 12 clips" in good("extract-teachers", "--run", tmp_path / name, "--teacher", "ego_dino")
    entry = status(Run.open(tmp_path / "one"))["stages"]["extract-teachers"]["ego_dino"]
    assert (entry["state"], entry["done"]) == ("done", 12)


def test_later_stages_need_no_exo_videos(tmp_path: Path, clip_table: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clip_table.parent, data)
    folder = tmp_path / "run"
    good("init", folder, "--data", data / "clips.csv", "--preset", "tiny")
    only = ["--teacher", "exo_dino"]
    good("extract-teachers", "--run", folder, *only)
    shutil.rmtree(data / "exo")
    shutil.rmtree(data / "pose")
    good("train-proxies", "--run", folder, *only)
    assert status(Run.open(folder))["stages"]["train-proxies"]["exo_dino"]["state"] == "done"


@pytest.mark.parametrize("key", ["ego_dino-v2", "ego_../escape", "index", "keys", "1st", "nameless"])
def test_teacher_names_are_checked_when_the_configuration_is_read(key: str) -> None:
    raw = preset("tiny").model_dump()
    raw["teachers"] = {key: raw["teachers"]["ego_dino"]}
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        RunConfig.model_validate(raw)


def test_given_selections_may_hold_anything_where_not_valid() -> None:
    config = SPDConfig(normalise_over="micro_batch")
    g = torch.Generator().manual_seed(0)
    arguments: dict[str, Any] = {
        "proxy_logits": torch.randn(2, 3, 4, generator=g),
        "proxy_tokens": torch.full((2, 3, 5), float("nan")),
        "present": torch.tensor([[False, True, True], [False, False, False]]),
        "config": config,
    }
    arguments["proxy_tokens"][0, 1:] = 1.0
    selection = (torch.tensor([[1], [-1]]), torch.tensor([[True], [False]]))
    logits, token = torch.randn(2, 4, generator=g), torch.randn(2, 5, generator=g)
    labels = torch.tensor([0, 1])
    assert spd_loss(logits, token, labels, selection=selection, **arguments).feature_loss.isfinite()
    absent = (torch.tensor([[0], [0]]), torch.tensor([[True], [True]]))
    result = spd_loss(logits, token, labels, selection=absent, **arguments)
    assert not result.valid.any()
    assert result.feature_loss.item() == 0.0


def test_a_stop_signal_while_everything_is_still_loading_exits_75(run: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "uniego", "extract-teachers", "--run", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75


def test_a_reader_that_leaves_early_is_no_failure(run: Path) -> None:
    command = f"{sys.executable} -m uniego status --run {run}"
    script = f"set -o pipefail; {command} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_status_is_readable_on_a_narrow_terminal(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uniego", "status", "--run", str(run)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "40", "NO_COLOR": "1"},
    )
    assert "ego_dino, pending, 12 pending, pending" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_misspelt_column_is_pointed_out(tmp_path: Path, clip_table: Path) -> None:
    table = clip_table.with_name("typo.csv")
    text = clip_table.read_text().splitlines()
    table.write_text("\n".join([text[0].replace("start_s", "start"), *text[1:]]) + "\n")
    assert "did you mean 'start_s'?" in good("data", "check", table, "--quick")


def test_settings_of_the_record_are_plain_json(run: Path) -> None:
    good("extract-teachers", "--run", run, "--teacher", "ego_dino")
    record = json.loads((run / "extract" / "ego_dino.json").read_text())
    assert record["settings"]["teacher"]["network"] == "dinov2"
