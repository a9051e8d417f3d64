"""What was run: the state of every stage, times, versions and machines, fingerprints, and the settings in force."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from ...cache.info import fingerprint_hash
from ...pipeline import files
from ...pipeline.progress import duration
from ...pipeline.rundir import Run
from ..status import line_of, status
from ..targets import find_index, find_store
from .section import Section
from .tables import GAP, Cell, Number, State, Table, table
from .trainings import places, trainings

STAGES_ID, STAGES_TITLE = "stages", "Stages"
MADE_ID, MADE_TITLE = "made-with", "Versions, machines, fingerprints"
CONFIG_ID, CONFIG_TITLE = "configuration", "Configuration in force"
_COMMANDS = {
    "train-teacher": "train-teacher {}",
    "extract-teachers": "extract-teachers --teacher {}",
    "train-proxies": "train-proxies --teacher {}",
    "merge": "distill",
    "student": "distill",
}


def stages(run: Run) -> Section:
    """A row per piece of work: its state, what is to be said of it, its time; what is not begun names its command."""
    report = status(run)
    seconds = {training.name: training.seconds for training in trainings(run)}
    rows: list[tuple[Cell, ...]] = []
    for stage, entries in report["stages"].items():
        for name, entry in entries.items():
            taken = seconds.get(_training(stage, name))
            time = Number(GAP if taken is None else duration(taken), taken)
            rows.append((stage, name, State(entry["state"]), _words(run, stage, name, entry), time))
    if not report["stages"]["evaluate"]:
        command = run.command("evaluate")
        rows.append(("evaluate", "student", State("pending"), _code(command, "makes it"), Number(GAP, None)))
    counts = report["clips"]
    note = (
        f"{counts['train']} train, {counts['val']} val and {counts['test']} test clips of {counts['classes']} classes. "
        "Times are those of the steps of trainings, out of their logs; other stages keep none."
    )
    head = ("stage", "of what", "state", "", "time")
    return Section(STAGES_ID, STAGES_TITLE, table(Table("", head, rows, filter="Filter stages", sort=True)), note)


def _training(stage: str, name: str) -> str:
    """The name that `trainings` gives to what an entry of the status is about."""
    return {"train-teacher": f"teacher {name}", "train-proxies": f"proxy {name}", "distill": name}.get(stage, "")


def _words(run: Run, stage: str, name: str, entry: Mapping[str, Any]) -> str | Markup:
    if entry["state"] in ("pending", "partial") and stage != "evaluate":
        command = _COMMANDS.get(stage) or _COMMANDS.get(name, "distill")
        return _code(run.command(command.format(name)), "makes it" if entry["state"] == "pending" else "continues it")
    if stage == "extract-teachers":
        counts = [f"{entry[kind]} {kind}" for kind in ("done", "failed", "absent", "pending") if entry[kind]]
        return ", ".join([*counts, *(["random weights"] if entry.get("random") else [])])
    if stage == "evaluate" and entry.get("top1") is None:
        return ", ".join(entry.get("tasks", {}))
    words = line_of(entry)
    return "" if words == entry["state"] else words


def _code(command: str, words: str) -> Markup:
    return Markup("<code>{}</code> {}").format(command, words)


def made_with(run: Run) -> Section:
    """Libraries and devices that made the features and outputs, and one word for the settings of everything."""
    body = table(_makers(run)) + table(_fingerprints(run))
    note = "A fingerprint is a hash of all settings and inputs that a result depends on: equal ones, equal work."
    return Section(MADE_ID, MADE_TITLE, body, note)


def _stores(run: Run) -> Iterator[tuple[str, Any]]:
    index = find_index(run)
    for key in run.config.teachers:
        store = find_store(run, index, key)
        if store is not None:
            yield f"features of {key}", store
    for key in run.config.teachers:
        folder = run.proxy_folder(key)
        store = find_store(run, index, folder.results["outputs"]) if folder.done else None
        if store is not None:
            yield f"outputs of proxy {key}", store


def _makers(run: Run) -> Table:
    """A row per way of computing; what was made that way."""
    found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name, store in _stores(run):
        made = store.attributes.get("made_with", {})
        found.setdefault(json.dumps(made, sort_keys=True), (made, []))[1].append(name)
    rows = []
    for made, names in found.values():
        libraries = ", ".join(f"{name} {version}" for name, version in made.get("libraries", {}).items())
        compute = made.get("compute", {})
        precision = made.get("precision", {}).get("dtype", "")
        rows.append(
            (
                ", ".join(names),
                str(compute.get("device", "not recorded")),
                str(compute.get("threads", GAP)),
                libraries or "not recorded",
                str(precision or "fp32") if made else GAP,
            )
        )
    return Table("What it was computed with", ("what", "device", "threads", "versions", "arithmetic"), rows)


def _fingerprints(run: Run) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, Markup("<code>{}</code>").format(fingerprint_hash(store)[:16]), str(store.attributes.get("source", "")))
        for name, store in _stores(run)
    ]
    for name, folder in places(run):
        record = folder.record
        if record is not None:
            known = files.hash_bytes(json.dumps(record["fingerprint"], sort_keys=True).encode())
            weights = record.get("results", {}).get("weights", "")
            words = Markup("weights <code>{}</code>").format(weights[:16]) if weights else record["state"]
            rows.append((name, Markup("<code>{}</code>").format(known[:16]), words))
    return Table("Fingerprints", ("what", "fingerprint", ""), rows, filter="Filter fingerprints", scroll=True)


def configuration(run: Run) -> Section:
    """Every field with its value, named as --set takes it."""
    fields = list(_flat("", run.config.model_dump(mode="json")))
    rows = [(name, Markup("<code>{}</code>").format(json.dumps(value, ensure_ascii=False))) for name, value in fields]
    content = Table("", ("field", "value"), rows, filter="Filter settings", scroll=True)
    return Section(CONFIG_ID, CONFIG_TITLE, table(content), f"{len(rows)} fields, named as `--set` takes them.")


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, value
