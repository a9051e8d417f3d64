"""`uniego status --watch`: the state of all stages again and again, and what trainings that run are at."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..errors import EXIT_INTERRUPTED
from ..pipeline.progress import results_console
from ..pipeline.rundir import Run, TaskFolder
from .status import STATED, line_of, status, tables

_TAIL = 1 << 14  # bytes of metrics.jsonl that hold its last line


def watch(run: Run, every: float) -> int:
    """Show the status every `every` seconds until Ctrl-C; returns the exit code of that.

    On a terminal one view is renewed; elsewhere a block of plain lines is printed each time.
    """
    console = results_console()
    try:
        if console.is_terminal:
            with Live(_view(run, console), console=console, auto_refresh=False, screen=False) as live:
                while True:
                    time.sleep(every)
                    live.update(_view(run, console), refresh=True)
        while True:
            for line in plain(run):
                console.print(line, markup=False, soft_wrap=True)
            time.sleep(every)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _view(run: Run, console: Console) -> RenderableType:
    report = status(run)
    running = [Text(line) for line in at_work(run, report)]
    now = Text(f"{time.strftime('%H:%M:%S')}   Ctrl-C ends", style="dim")
    return Group(*tables(report, console.width), *running, now)


def plain(run: Run) -> list[str]:
    """The status as lines: the time, a stage's parts by state, and what runs."""
    report = status(run)
    lines = [f"[{time.strftime('%H:%M:%S')}] {report['run']}"]
    for stage, entries in report["stages"].items():
        counts: dict[str, int] = {}
        for entry in entries.values():
            counts[entry["state"]] = counts.get(entry["state"], 0) + 1
        shown = ", ".join(f"{counts[state]} {state}" for state in sorted(counts, key=_order))
        lines.append(f"  {stage}: {shown or 'nothing'}")
        lines += [f"    {name}: {line_of(e)}" for name, e in entries.items() if e["state"] == "failed"]
    return [*lines, *(f"  {line}" for line in at_work(run, report))]


def at_work(run: Run, report: Mapping[str, Any]) -> list[str]:
    """A line for each part that runs: how far extraction is, the last step of a training."""
    lines = []
    for stage, entries in report["stages"].items():
        for name, entry in entries.items():
            if entry["state"] == "running":
                folder = _folder(run, stage, name)
                step = None if folder is None else last_line(folder.path / "metrics.jsonl")
                done = f"{entry['done']} clips done, {entry['pending']} pending" if "pending" in entry else "running"
                lines.append(f"{stage} {name}: {done if step is None else _step(step)}")
    return lines


def _folder(run: Run, stage: str, name: str) -> TaskFolder | None:
    if stage == "distill":
        return run.student_folder if name == "student" else run.merge_folder
    find = {"train-teacher": run.teacher_folder, "train-proxies": run.proxy_folder}.get(stage)
    return None if find is None else find(name)


def _step(step: Mapping[str, Any]) -> str:
    parts = [f"epoch {step['epoch']}"]
    parts += [f"step {step['step']}"] if "step" in step else []
    parts += [f"loss {step['loss']:.4f}"] if isinstance(step.get("loss"), float) else []
    parts += [f"{step['clips_per_s']:.1f} clips/s"] if "clips_per_s" in step else []
    parts += [f"data wait {step['data_wait']:.0%}"] if "data_wait" in step else []
    return ", ".join(parts)


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a file of JSON lines, of which only the end is read; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        return found
    return None


def _order(state: str) -> int:
    return STATED.index(state) if state in STATED else len(STATED)
