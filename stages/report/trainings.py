"""Every training of a run, and what it wrote about itself; the curves of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ...pipeline import files
from ...pipeline.progress import duration
from ...pipeline.rundir import Run, TaskFolder
from .plots import Point, lines
from .section import Absent, Section
from .tables import Number, State, Table, number, percent, table

CURVES, CURVES_TITLE = "training-curves", "Training curves"
TERMS = {"loss": "loss", "ce": "cross-entropy", "feature": "feature distance", "logit": "logit divergence"}


@dataclass(frozen=True)
class Training:
    """A training that was begun: what it is, its folder, the lines of its log per step, and torn lines beside them."""

    name: str
    folder: TaskFolder
    steps: tuple[Mapping[str, Any], ...]
    torn: int

    @property
    def seconds(self) -> float | None:
        """What its steps took, by the clips per second that they were logged with; None: nothing is logged."""
        timed = [step for step in self.steps if step.get("clips_per_s")]
        return sum(step["clips"] / step["clips_per_s"] for step in timed) if timed else None

    def curve(self, term: str) -> list[Point]:
        """A term over the steps."""
        return [(float(i), float(s[term])) for i, s in enumerate(self.steps) if isinstance(s.get(term), int | float)]


def places(run: Run) -> Iterator[tuple[str, TaskFolder]]:
    """Every training that the run may have, in the order of the stages."""
    for key in run.config.teachers:
        yield f"teacher {key}", run.teacher_folder(key)
    for key in run.config.teachers:
        yield f"proxy {key}", run.proxy_folder(key)
    yield "merge", run.merge_folder
    yield "student", run.student_folder
    for name in run.variants():
        yield name, run.variant_folder(name)
    yield "ego-only", run.ego_only_folder


def trainings(run: Run) -> list[Training]:
    """Those with a log."""
    return [found for name, folder in places(run) if (found := _read(name, folder)) is not None]


def _read(name: str, folder: TaskFolder) -> Training | None:
    path = folder.path / "metrics.jsonl"
    if not path.exists():
        return None
    records, torn = files.read_json_lines(path)
    steps = tuple(record for record in records if isinstance(record, dict) and "step" in record)
    return Training(name, folder, steps, torn) if steps else None


def training_curves(run: Run) -> Section | Absent:
    """Losses and their terms over the steps: proxies beside each other, merge, and every student."""
    found = trainings(run)
    if not found:
        reason = f"nothing was trained yet: `{run.command('train-proxies')}` trains the proxies"
        return Absent(CURVES, CURVES_TITLE, reason)
    proxies = {t.name.removeprefix("proxy "): t for t in found if t.name.startswith("proxy ")}
    others = [t for t in found if not t.name.startswith("proxy ")]
    parts = [
        lines(f"Proxies: {words}", curves, "step")
        for term, words in TERMS.items()
        if (curves := {key: t.curve(term) for key, t in proxies.items() if t.curve(term)})
    ]
    for training in others:
        curves = {words: curve for term, words in TERMS.items() if (curve := training.curve(term))}
        if curves:
            parts.append(lines(f"{training.name}: the loss and its terms", curves, "step", zero=True))
    body = Markup('<div class="plots">{}</div>').format(Markup().join(parts)) + table(_speeds(found))
    torn = sum(training.torn for training in found)
    note = "Each point is a step, or the mean of several where there are many."
    return Section(CURVES, CURVES_TITLE, body, note + (f" {torn} torn lines of the logs are left out." if torn else ""))


def _state(folder: TaskFolder) -> State:
    try:
        return State("running" if folder.running() else "done" if folder.done else "partial")
    except ValueError:
        return State("damaged")


def _speeds(found: list[Training]) -> Table:
    rows = []
    for training in found:
        rates = sorted(float(step["clips_per_s"]) for step in training.steps if step.get("clips_per_s"))
        waits = [float(step["data_wait"]) for step in training.steps if "data_wait" in step]
        epochs = 1 + max(int(step["epoch"]) for step in training.steps)
        seconds = training.seconds
        rows.append(
            (
                training.name,
                _state(training.folder),
                number(epochs, 0),
                number(len(training.steps), 0),
                number(rates[len(rates) // 2] if rates else None),
                percent(sum(waits) / len(waits) if waits else None),
                Number("–" if seconds is None else duration(seconds), seconds),
            )
        )
    head = ("training", "state", "epochs begun", "steps", "clips per second", "waiting for data", "time in steps")
    return Table("What the logs say of speed: the median step, and the sum of all", head, rows, sort=True)
