"""`uniego status --watch`: on a terminal, elsewhere, and what it says of work that runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.rundir import Run
from uniego.stages.status import status
from uniego.stages.watch import at_work, last_line, plain


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    result = CliRunner().invoke(cli.app, ["init", f"{tmp_path / 'run'}", "--data", str(clip_table), "--preset", "tiny"])
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_ends_it_cleanly(run: Path, terminal: bool) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "uniego", "status", "--watch", "--every", "0.2", "--run", str(run)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells let jobs in the background ignore it
    )
    os.close(theirs)
    shown, until = b"", time.monotonic() + 60
    wanted = b"Ctrl-C ends" if terminal else b"train-proxies: 9 pending"
    while shown.count(wanted) < 2 and time.monotonic() < until:
        shown += os.read(ours, 1 << 16)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    os.close(ours)
    assert shown.count(wanted) >= 2
    assert (b"\x1b" in shown) is terminal
    assert process.returncode == 130
    assert errors == b""


def test_what_runs_is_told_with_its_last_step(run: Path) -> None:
    opened = Run.open(run)
    folder = opened.teacher_folder("exo_rgb")
    with folder.work({"any": "thing"}):
        step = {"epoch": 2, "step": 7, "clips_per_s": 12.34, "data_wait": 0.5, "loss": 1.25}
        (folder.path / "metrics.jsonl").write_text(f'{json.dumps(step)}\n{{"epoch": 2, "st', encoding="utf-8")
        told = "train-teacher exo_rgb: epoch 2, step 7, loss 1.2500, 12.3 clips/s, data wait 50%"
        report = {"stages": {"train-teacher": {"exo_rgb": {"state": "running"}}}}
        assert at_work(opened, report) == [told]
    assert at_work(opened, status(opened)) == []
    assert "  extract-teachers: 9 pending" in plain(opened)
    assert last_line(run / "nothing") is None


def test_json_is_for_programs(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["status", "--watch", "--json", "--run", str(run)])
    assert result.exit_code == 2
