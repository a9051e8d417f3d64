"""What is done, running, stale or failed: every stage, every teacher. Reads records only, never videos or weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..errors import MissingInputError
from ..models.teachers import teacher_view
from ..pipeline.rundir import Run, TaskFolder
from .distill import merge_fingerprint, student_fingerprint
from .export import outputs_complete
from .targets import row_keys, stale_settings, teacher_path
from .train_proxies import proxy_fingerprint

State = str
"""pending (not begun), partial (begun; the same command continues), running, done, stale (made under other settings
than the run has now), failed."""


def status(run: Run) -> dict[str, Any]:
    """JSON-able: {"run", "clips", "stages": {"extract-teachers": {teacher: …}, "train-proxies": …, …}}.

    Every entry has a "state"; extraction's also the counts done, failed, absent and pending of the run's clips.
    """
    table = run.table()
    index = _index(run)
    extraction = {key: _extraction(run, index, key) for key in run.config.teachers}
    proxies = {key: _proxy(run, index, key) for key in run.config.teachers}
    able = [key for key, entry in extraction.items() if entry["done"] > 0]
    return {
        "run": str(run.root.resolve()),
        "cache": str(run.cache_root.resolve()),
        "clips": {**table.splits, "classes": table.num_classes},
        "stages": {
            "extract-teachers": extraction,
            "train-proxies": proxies,
            "distill": _distill(run, able, proxies),
            "evaluate": _evaluations(run),
        },
    }


def _index(run: Run) -> ClipIndex | None:
    try:
        return ClipIndex.open(run.cache_root)
    except MissingInputError:
        return None


def _extraction(run: Run, index: ClipIndex | None, key: str) -> dict[str, Any]:
    config = run.config.teachers[key]
    clips = run.table().clips
    entry: dict[str, Any] = {"view": teacher_view(key, config), "state": "pending"}
    counts = {"done": 0, "failed": 0, "absent": 0, "pending": len(clips)}
    if index is None or not teacher_path(run, key).exists():
        return {**entry, **counts}
    store = FeatureStore.open(teacher_path(run, key), index)
    states = store.status(index.rows(row_keys(clips)))
    counts = {name.lower(): int((states == code).sum()) for name, code in RowStatus.__members__.items()}
    stale = bool(stale_settings(run, store, key))
    entry["state"] = _extraction_state(run.is_extracting(key), stale, counts)
    entry["random"] = bool(store.attributes.get("random"))
    return {**entry, **{name: counts[name] for name in ("done", "failed", "absent", "pending")}}


def _extraction_state(running: bool, stale: bool, counts: Mapping[str, int]) -> State:
    if running or stale:
        return "running" if running else "stale"
    if counts["pending"]:
        return "partial"
    return "failed" if counts["failed"] and not counts["done"] else "done"


def _proxy(run: Run, index: ClipIndex | None, key: str) -> dict[str, Any]:
    folder = run.proxy_folder(key)
    if folder.record is None:
        return {"state": "pending"}
    try:
        if index is None:
            raise MissingInputError("no cache")
        wanted = proxy_fingerprint(run, key, FeatureStore.open(teacher_path(run, key), index))
    except (MissingInputError, FileNotFoundError):
        return {"state": "stale", "why": "its teacher's features are gone"}
    entry = _task(folder, wanted)
    if entry["state"] == "done" and not outputs_complete(run, index, folder.results["outputs"]):
        return {"state": "partial", "why": "its outputs are not all in the cache"}
    return entry


def _distill(run: Run, able: list[str], proxies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    parts = {
        "merge": (run.merge_folder, merge_fingerprint),
        "student": (run.student_folder, student_fingerprint),
    }
    for name, (folder, fingerprint) in parts.items():
        if folder.record is None:
            entries[name] = {"state": "pending"}
        elif any(proxies[key]["state"] != "done" for key in able):
            entries[name] = {"state": "stale", "why": "its proxies are not done or stale"}
        else:
            entries[name] = _task(folder, fingerprint(run, able))
    return entries


def _task(folder: TaskFolder, wanted: Mapping[str, Any]) -> dict[str, Any]:
    record = folder.record
    assert record is not None
    if folder.running():
        return {"state": "running"}
    different = sorted(folder.differences(wanted))
    if different:
        return {"state": "stale", "why": f"made under other settings: {', '.join(different[:5])}"}
    if record["state"] == "failed":
        return {"state": "failed", "why": record["message"]}
    return {"state": "done" if record["state"] == "done" else "partial"}


def _evaluations(run: Run) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in sorted((run.root / "evaluate").glob("*/record.json")):
        record = TaskFolder(path.parent, path.parent.name).record
        if record is not None and record["state"] == "done":
            entries[record["results"]["model"]] = {"state": "done", **record["results"]}
    return entries


def print_status(report: Mapping[str, Any]) -> None:
    """The report as tables."""
    console = Console()
    clips = report["clips"]
    console.print(
        f"{report['run']}: {clips['train']} train, {clips['val']} val, {clips['test']} test clips, "
        f"{clips['classes']} classes",
        highlight=False,
    )
    table = Table(title="teachers and proxies")
    for name in ("teacher", "view", "features", "done", "failed", "absent", "pending", "proxy"):
        table.add_column(name, justify="right" if name in ("done", "failed", "absent", "pending") else "left")
    proxies = report["stages"]["train-proxies"]
    for key, entry in report["stages"]["extract-teachers"].items():
        counts = [str(entry[name]) for name in ("done", "failed", "absent", "pending")]
        state = entry["state"] + (" (random)" if entry.get("random") else "")
        table.add_row(key, entry["view"], state, *counts, proxies[key]["state"])
    console.print(table)
    for stage in ("train-proxies", "distill", "evaluate"):
        for name, entry in report["stages"][stage].items():
            if stage != "train-proxies" or "why" in entry:
                console.print(f"{stage} {name}: {_line(entry)}", highlight=False, markup=False)


def _line(entry: Mapping[str, Any]) -> str:
    if entry.get("top1") is not None:
        return f"top-1 {entry['top1']:.1f}, top-5 {entry['top5']:.1f}, mean class {entry['mean_class_accuracy']:.1f}"
    return f"{entry['state']} ({entry['why']})" if "why" in entry else str(entry["state"])
