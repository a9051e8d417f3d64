"""What is told before anything is computed, and `--dry-run`, which stops there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.durations import header_seconds
from uniego.stages import extract_report


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def told(output: str) -> list[str]:
    """The lines about what is to be done."""
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("extract-teachers: "))
    return [line.split(" (")[0].split(" into ")[0] for line in lines[first : first + 3]]


def test_a_dry_run_tells_and_writes_nothing(run: Path) -> None:
    before = sorted(run.rglob("*"))
    result = call("extract-teachers", "--run", run, "--dry-run")
    assert result.exit_code == 0, result.output
    assert sorted(run.rglob("*")) == before
    assert "12 of 12 clips in 6 shards of at most 2, 3 teachers (ego_dino, exo_rgb, exo_skl)" in result.output
    assert "on this machine, by a short measurement" in result.output
    assert result.output.endswith("dry run: nothing was computed or written\n")
    assert "about 0:00:46" in result.output  # 12 ego and 11 exo clips of two seconds
    assert told(result.output) == told(call("extract-teachers", "--run", run).output)
    assert "0 of 12 clips in 0 shards" in call("extract-teachers", "--run", run, "--dry-run").output


def test_a_dry_run_of_what_is_left(run: Path) -> None:
    assert call("extract-teachers", "--run", run, "--task-index", 0, "--num-tasks", 3).exit_code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "8 of 12 clips in 4 shards" in call("extract-teachers", "--run", run, "--dry-run").output
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = call("extract-teachers", "--run", run, "--dry-run", "--set", "cache.dtype=float32")
    assert (result.exit_code, "dtype: stored 'float16', wanted 'float32'" in result.output) == (5, True)


def test_what_may_not_fit_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = extract_report.shutil.disk_usage
    monkeypatch.setattr(extract_report.shutil, "disk_usage", lambda path: plain(path)._replace(free=1000))
    result = call("extract-teachers", "--run", run, "--dry-run")
    assert "warning: this may not fit" in result.output
    assert "(1.0 kB free)" in result.output


def test_many_clips_are_measured_first(colours: Callable[..., Path]) -> None:
    few, many = colours("few"), colours("many", times=6)
    assert "by a short measurement" not in call("extract-teachers", "--run", few).output
    assert "by a short measurement" in call("extract-teachers", "--run", many).output


def test_lengths_out_of_headers(clip_table: Path, tmp_path: Path) -> None:
    assert header_seconds(clip_table.parent / "ego" / "00.mp4") == pytest.approx(2.0, abs=0.1)
    (tmp_path / "text.mp4").write_text("no video")
    assert header_seconds(tmp_path / "text.mp4") is None
    assert header_seconds(tmp_path / "none.mp4") is None
