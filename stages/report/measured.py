"""The numbers of all tasks and models, each with its protocol and its interval; and the methods side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ...pipeline.rundir import Run, TaskFolder
from .answers import outdated
from .pictures import render
from .plots import intervals
from .section import Absent, Section
from .tables import Cell, Number, Table, number, table

ID, TITLE = "metrics", "Metrics of all tasks"
METHODS, METHODS_TITLE = "methods", "Methods compared"
TASKS = ("recognition", "retrieval", "segmentation", "probe")
_ACCURACY = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class"}
_NAMES = {
    "recognition": _ACCURACY,
    "retrieval": {"map": "mAP", "r@1": "R@1", "r@5": "R@5", "r@10": "R@10"},
    "segmentation": {"mof": "MoF", "edit": "Edit", "f1@10": "F1@10", "f1@25": "F1@25", "f1@50": "F1@50"},
    "probe": _ACCURACY,
}
_KINDS = {"linear": "linear probe", "knn": "k-NN"}
_RELEVANT = {"class": "clips of the class", "partner": "the clip's own other view"}
_SIZE = {"recognition": "clips", "retrieval": "queries", "segmentation": "videos", "probe": "clips"}


class Measured(NamedTuple):
    """A row of numbers. `kind`: of several kinds in a task, "" where there is one; `of`: what is searched in, or ""."""

    model: str
    kind: str
    of: str
    results: Mapping[str, Any]
    protocol: Mapping[str, Any]


def evaluations(run: Run) -> dict[str, Mapping[str, Any]]:
    """Results of every model that was evaluated: the student first, then those trained for comparison, then others."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted((run.root / "evaluate").glob("*/record.json")):
        record = TaskFolder(path.parent, path.parent.name).record
        if record is not None and record["state"] == "done":
            found[str(record["results"]["model"])] = record["results"]
    order = ["student", "ego-only", *run.variants(), *(f"proxy:{key}" for key in run.config.teachers)]
    ranked = {name: place for place, name in enumerate(order)}
    return dict(sorted(found.items(), key=lambda item: (ranked.get(item[0], len(order)), item[0])))


def rows_of(model: str, results: Mapping[str, Any]) -> Iterator[Measured]:
    """The rows that a task's results give for a model."""
    if "protocol" in results:
        yield Measured(model, "", "", results, results["protocol"])
        return
    for name, entry in results.items():
        if name == "ego_to_exo":
            for key, across in entry.items():
                for kind, words in _RELEVANT.items():
                    if kind in across:
                        protocol = {**across["protocol"], "relevant": across[kind]["relevant"]}
                        yield Measured(model, f"ego → exo, {words}", key, across[kind], protocol)
        elif name != "absent":
            yield Measured(model, _KINDS.get(name, name.replace("_to_", " → ")), "", entry, entry["protocol"])


def metrics(run: Run) -> Section | Absent:
    """Per task and kind a row per model, and beside them the protocol; where models differ in it, in their rows."""
    found = evaluations(run)
    if not found:
        return Absent(ID, TITLE, f"nothing was evaluated yet: run `{run.command('evaluate')}`")
    tasks = []
    for task in TASKS:
        rows = [
            row
            for model, results in found.items()
            if task in results.get("tasks", {})
            for row in rows_of(model, results["tasks"][task])
        ]
        blocks = [_block(task, same) for same in _alike(rows)]
        tasks.append({"name": task, "blocks": blocks, "absent": "" if blocks else _absent(run, task, found)})
    note = "Percent, on the test split. In brackets the 95 % bootstrap interval, where there is one."
    late = " ".join(words for model in found if (words := _late(run, model)))
    return Section(ID, TITLE, render("metrics.html", tasks=tasks), f"{note} {late}".strip())


def _late(run: Run, model: str) -> str:
    known = model in ("student", "ego-only") or run.config.distill.as_variant(model) is not None
    return outdated(run, model) if known else ""


def _absent(run: Run, task: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    why = found.get("student", {}).get("left_out", {}).get(task)
    command = run.command(f"evaluate --task {task}")
    return f"left out: {why}" if why else f"not measured: run `{command}`"


def _alike(rows: Sequence[Measured]) -> list[list[Measured]]:
    """Rows of one kind whose protocols have the same fields together, in the order of their first."""
    groups: dict[Any, list[Measured]] = {}
    for row in rows:
        groups.setdefault((row.kind, tuple(sorted(row.protocol))), []).append(row)
    return sorted(groups.values(), key=lambda same: [row.kind for row in rows].index(same[0].kind))


def _block(task: str, rows: Sequence[Measured]) -> dict[str, Any]:
    """Values for the template: a table, and what the protocols of its rows have in common."""
    first = rows[0].protocol
    common = {name: value for name, value in first.items() if all(row.protocol[name] == value for row in rows)}
    own = [{name: value for name, value in row.protocol.items() if name not in common} for row in rows]
    failures = any("failed" in row.results for row in rows)
    searched = any(row.of for row in rows)
    body: list[tuple[Cell, ...]] = [
        (
            row.model,
            *((row.of,) if searched else ()),
            *(score(row.results, name) for name in _NAMES[task]),
            number(row.results.get(_SIZE[task]), 0),
            *((_failed(row.results),) if failures else ()),
            *((_sentence(words),) if any(own) else ()),
        )
        for row, words in zip(rows, own, strict=True)
    ]
    head = (
        "model",
        *(("gallery",) if searched else ()),
        *_NAMES[task].values(),
        _SIZE[task],
        *(("failed",) if failures else ()),
    )
    content = Table(rows[0].kind, (*head, *(("its protocol",) if any(own) else ())), body)
    return {"table": table(content), "protocol": _words(common), "below": any(own)}


def _sentence(protocol: Mapping[str, Any]) -> Markup:
    words = (Markup("{}: {}").format(name, text) for name, text in _words(protocol).items())
    return Markup("<small>{}</small>").format(Markup("; ").join(words))


def _failed(results: Mapping[str, Any]) -> Number:
    failed = results.get("failed")
    count = len(failed) if isinstance(failed, list) else failed
    return number(count, 0)


def score(results: Mapping[str, Any], name: str) -> Number:
    """A metric with its interval beside it."""
    interval = results.get("interval", {}).get(name)
    return number(results.get(name), 1, f"({interval[0]:.1f} to {interval[1]:.1f})" if interval else "")


def _words(protocol: Mapping[str, Any]) -> dict[str, str]:
    """A protocol for people."""
    return {name.replace("_", " "): _text(value) for name, value in protocol.items() if value not in ([], "")}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def methods(run: Run) -> Section | Absent:
    """The student beside other methods and the network without teachers: top-1 with intervals, and all main numbers."""
    found = {
        name: results
        for name, results in evaluations(run).items()
        if name in ("student", "ego-only") or run.config.distill.as_variant(name) is not None
    }
    if len(found) < 2:
        train, measure = "distill --method naive --init imagenet", "evaluate --model naive-imagenet"
        reason = f"there is nothing to compare the student with: `{run.command(train)}` and `{run.command(measure)}`"
        return Absent(METHODS, METHODS_TITLE, f"{reason} make it")
    accuracies = {
        name: results["tasks"]["recognition"] for name, results in found.items() if "recognition" in results["tasks"]
    }
    dots = {
        name: (float(entry["top1"]), tuple(entry["interval"]["top1"]) if "interval" in entry else None)
        for name, entry in accuracies.items()
    }
    drawn = intervals("Top-1 on the test split, percent, with its 95 % interval", dots) if dots else Markup()
    rows = [_method(name, results) for name, results in found.items()]
    head = ("method", "top-1", "mean class", "retrieval mAP", "MoF", "F1@50", "linear probe", "k-NN")
    note = "One seed each, so that a difference says little about methods: `uniego ablate` compares over seeds."
    return Section(METHODS, METHODS_TITLE, drawn + table(Table("Percent", head, rows, sort=True)), note)


def _method(name: str, results: Mapping[str, Any]) -> tuple[Cell, ...]:
    tasks = results["tasks"]
    retrieval = tasks.get("retrieval", {}).get("ego_to_ego", {})
    probes = tasks.get("probe", {})
    pairs = (
        (tasks.get("recognition", {}), "top1"),
        (tasks.get("recognition", {}), "mean_class_accuracy"),
        (retrieval, "map"),
        (tasks.get("segmentation", {}), "mof"),
        (tasks.get("segmentation", {}), "f1@50"),
        (probes.get("linear", {}), "top1"),
        (probes.get("knn", {}), "top1"),
    )
    return (name, *(number(entry.get(metric)) for entry, metric in pairs))
