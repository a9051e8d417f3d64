"""What is done, running, stale or failed: every stage, every teacher. Reads records only, never videos or weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..cache import ClipIndex, FeatureStore, RowStatus
from ..errors import UniegoError
from ..models.teachers import teacher_view
from ..pipeline.clips import SPLITS
from ..pipeline.progress import results_console
from ..pipeline.rundir import Run, TaskFolder
from .distill import merge_fingerprint, student_fingerprint
from .imported import fingerprint_now, imported, imported_proxies
from .lessons import TRAINABLE, lesson_of
from .methods import needed_proxies
from .proxy_training import has_outputs, proxy_fingerprint
from .rows import RunRows, run_rows
from .targets import find_index, find_store, stale_settings

STATED = ("done", "running", "partial", "pending", "stale", "failed", "no input", "left out")
State = str
"""pending (not begun), partial (begun; the same command continues), running, done, failed, stale (made under other
settings than the run has now), no input (no clip names what the teacher sees, so that its proxy is left out)."""


def status(run: Run) -> dict[str, Any]:
    """JSON-able: {"run", "clips", "stages": {"train-teacher": …, "extract-teachers": {teacher: …}, …}}.

    Every entry has a "state"; extraction's also the counts done, failed, absent and pending of the run's clips.
    """
    index = find_index(run)
    rows = run_rows(run, index)
    stores = {key: find_store(run, index, key) for key in run.config.teachers}
    states = {key: store.status(rows.rows) for key, store in stores.items() if store is not None}
    extraction = {key: _extraction(run, key, stores[key], states.get(key), len(rows.rows)) for key in stores}
    given = imported_proxies(run)
    proxies = {
        key: _proxy(run, index, key, stores[key], rows)
        if entry["state"] != "no input" or key in given
        else {"state": "left out"}
        for key, entry in extraction.items()
    }
    train = rows.splits == SPLITS.index("train")
    able = [key for key in stores if key in given or (key in states and (states[key][train] == RowStatus.DONE).any())]
    return {
        "run": str(run.root.resolve()),
        "cache": run.cache_place,
        "clips": {**rows.counts, "classes": rows.classes},
        "stages": {
            "train-teacher": _trainings(run),
            "extract-teachers": extraction,
            "train-proxies": proxies,
            "distill": _distill(run, able, proxies, rows),
            "evaluate": _evaluations(run),
        },
    }


def _trainings(run: Run) -> dict[str, Any]:
    """Teachers that are trained in this run: those that extraction will take, and those begun all the same."""
    entries: dict[str, Any] = {}
    for key, config in run.config.teachers.items():
        folder = run.teacher_folder(key)
        if config.network not in TRAINABLE or (config.weights is not None and folder.record is None):
            continue
        if folder.record is None:
            entries[key] = {"state": "pending"}
        else:
            entries[key] = _task(folder, lesson_of(run, key).fingerprint())
            entries[key] |= folder.results if folder.done else {}
    return entries


def _extraction(
    run: Run, key: str, store: FeatureStore | None, states: npt.NDArray[np.uint8] | None, clips: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {"view": teacher_view(key, run.config.teachers[key]), "state": "pending"}
    counts = {"done": 0, "failed": 0, "absent": 0, "pending": clips}
    if store is None or states is None:
        return {**entry, **counts}
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
    if not counts["done"]:
        return "failed" if counts["failed"] else "no input"
    return "done"


def _proxy(run: Run, index: ClipIndex | None, key: str, store: FeatureStore | None, rows: RunRows) -> dict[str, Any]:
    folder = run.proxy_folder(key)
    if folder.record is None:
        return {"state": "pending"}
    wanted = fingerprint_now(run, folder, rows)
    if wanted is None and store is not None:
        wanted = proxy_fingerprint(run, key, store, rows)
    if index is None or wanted is None:
        return {"state": "stale", "why": "its teacher's features are gone"}
    entry = _task(folder, wanted)
    if entry["state"] == "done" and not has_outputs(run, index, key, rows):
        return {"state": "partial", "why": "its outputs are not all in the cache"}
    return entry


def _distill(run: Run, able: list[str], proxies: Mapping[str, Mapping[str, Any]], rows: RunRows) -> dict[str, Any]:
    undone = {key for key in able if proxies[key]["state"] != "done"}

    def entry(
        folder: TaskFolder, needed: Sequence[str], fingerprint: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        if folder.record is None:
            return {"state": "pending"}
        if undone & set(needed):
            return {"state": "stale", "why": "its proxies are not done or stale"}
        try:
            return _task(folder, fingerprint())
        except UniegoError as error:  # the teachers' features that it learned from are gone or stale
            return {"state": "stale", "why": f"{error}"}

    merge_given = imported(run.merge_folder) is not None
    merge_needs = [] if merge_given else able
    entries = {"merge": entry(run.merge_folder, merge_needs, lambda: merge_fingerprint(run, able, rows))}
    for name in ("student", *run.variants()):
        settings = run.config.distill.as_variant(name)
        if settings is None:
            entries[name] = {"state": "stale", "why": "no such method or start any more"}
            continue
        taken_in = fingerprint_now(run, run.variant_folder(name), rows)
        if taken_in is not None:
            entries[name] = _task(run.variant_folder(name), taken_in)
            continue
        needed = needed_proxies(settings, able, merge_given=merge_given)
        if not set(needed) <= set(able):
            entries[name] = {"state": "stale", "why": "its proxies are not done or stale"}
            continue
        wanted = partial(student_fingerprint, run, able, rows, settings)
        entries[name] = entry(run.variant_folder(name), needed, wanted)
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
    if record["state"] != "done":
        return {"state": "partial"}
    return {"state": "done"} | ({"imported": True} if imported(folder) is not None else {})


def _evaluations(run: Run) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in sorted((run.root / "evaluate").glob("*/record.json")):
        record = TaskFolder(path.parent, path.parent.name).record
        if record is not None and record["state"] == "done":
            results = record["results"]
            now = _weights(run, results["model"], record["fingerprint"]["weights"])
            stale = now != record["fingerprint"]["weights"]
            entries[results["model"]] = {"state": "stale" if stale else "done", **results}
    return entries


def _weights(run: Run, model: str, known: str) -> str | None:
    """Hash of a trained model's weights, None when it is not trained (any more).

    Of what is no model of the run (a teacher's features, an encoder from elsewhere) the `known` one: nobody looks.
    """
    kind, _, teacher = model.partition(":")
    folders = {"student": run.student_folder, "ego-only": run.ego_only_folder, "proxy": run.proxy_folder(teacher)}
    folder = folders.get(kind)
    if folder is None and run.config.distill.as_variant(model) is not None:
        folder = run.variant_folder(model)
    if folder is None:
        return known
    return str(folder.results["weights"]) if folder.done else None


def print_status(report: Mapping[str, Any]) -> None:
    """The report as tables, or as plain lines where a terminal is too narrow for them."""
    console = results_console()
    for part in tables(report, console.width):
        console.print(part)


def tables(report: Mapping[str, Any], width: int) -> list[RenderableType]:
    """What `print_status` prints on a console of so many columns, part by part."""
    clips = report["clips"]
    splits = ", ".join(f"{clips[name]} {name}" for name in ("train", "val", "test"))
    parts: list[RenderableType] = [Text(f"{report['run']}: {splits} clips, {clips['classes']} classes")]
    rows = _teacher_rows(report["stages"])
    if width < 72:
        parts += [Text(", ".join(row)) for row in rows]
    else:
        table = Table("teacher", "features", "clips", "proxy", title="teachers and proxies")
        for row in rows:
            table.add_row(*row)
        parts.append(table)
    for stage in ("train-teacher", "train-proxies", "distill", "evaluate"):
        for name, entry in report["stages"][stage].items():
            if stage != "train-proxies" or "why" in entry:
                parts.append(Text(f"{stage} {name}: {line_of(entry)}"))
    return parts


def _teacher_rows(stages: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for key, entry in stages["extract-teachers"].items():
        counts = [f"{entry[name]} {name}" for name in ("done", "failed", "absent", "pending") if entry[name]]
        state = entry["state"] + (", random" if entry.get("random") else "")
        rows.append((key, state, ", ".join(counts), line_of(stages["train-proxies"][key] | {"why": ""})))
    return rows


def line_of(entry: Mapping[str, Any]) -> str:
    """One entry of the report in words."""
    if entry.get("top1") is not None:
        stale = "stale: " if entry["state"] == "stale" else ""
        top1, top5, mean = (f"{entry[name]:.1f}" for name in ("top1", "top5", "mean_class_accuracy"))
        return f"{stale}top-1 {top1}, top-5 {top5}, mean class {mean}"
    note = entry.get("why") or ("imported" if entry.get("imported") else "")
    return f"{entry['state']} ({note})" if note else str(entry["state"])
