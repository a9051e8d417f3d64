"""What the proxies gave to the student: the weights of the merge, and who taught whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ...pipeline.progress import count
from ...pipeline.rundir import Run
from ..evaluation.recognition import class_names
from ..teaching import EpochTeaching, read_teaching
from .plots import lines
from .section import Absent, Section
from .tables import GAP, HeatCell, Number, Table, heat, percent, table
from .trainings import trainings

MERGE, MERGE_TITLE = "merge-weights", "Merge weights"
TAUGHT, TAUGHT_TITLE = "who-taught-whom", "Who taught whom"
_GROUPS = 400  # rows of weights that a page shows


def merge_weights(run: Run) -> Section | Absent:
    """The learned share of every proxy, over the steps and per level in the end."""
    folder = run.merge_folder
    if not folder.done:
        return Absent(MERGE, MERGE_TITLE, f"the proxies are not merged yet: run `{run.command('distill')}`")
    results = folder.results
    proxies, alphas = list(results["proxies"]), results["alpha"]
    curves = _alpha_curves(run, proxies)
    parts = [lines("Over the training, share of all parameters", curves, "step", shares=True)] if curves else []
    groups = list(alphas)[:_GROUPS]
    highest = max((max(alphas[group]) for group in groups), default=1.0) or 1.0
    cells = [
        [
            HeatCell(f"{100 * a:.1f}", a / highest, f"{key} in {group}: {100 * a:.2f} %")
            for key, a in zip(proxies, alphas[group], strict=True)
        ]
        for group in groups
    ]
    scale = {"low": "0 %", "high": f"{100 * highest:.0f} %"}
    parts.append(heat("Weights in the end, percent", groups, proxies, cells, "level", words=scale))
    note = f"The student begins as this combination of the proxies ({count(len(alphas), 'group')} of parameters)."
    if len(groups) < len(alphas):
        note += f" The first {len(groups)} are shown."
    return Section(MERGE, MERGE_TITLE, Markup().join(parts), note)


def _alpha_curves(run: Run, proxies: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    log = next((training for training in trainings(run) if training.name == "merge"), None)
    found = {} if log is None else {key: log.curve(f"alpha.{key}") for key in proxies}
    return {key: curve for key, curve in found.items() if curve}


def who_taught_whom(run: Run) -> Section | Absent:
    """Lessons per proxy over the epochs, per class, the clips nobody taught, and how often a proxy is right."""
    epochs = read_teaching(run.student_folder.path)
    if not epochs:
        begun = run.student_folder.record is not None
        reason = "no epoch of the student that counted its teachers is done" if begun else "there is no student yet"
        return Absent(TAUGHT, TAUGHT_TITLE, f"{reason}: run `{run.command('distill')}`")
    proxies = epochs[-1].proxies
    epochs = [epoch for epoch in epochs if epoch.proxies == proxies]
    shares = {key: [(float(e.epoch), float(e.shares[r])) for e in epochs] for r, key in enumerate(proxies)}
    untaught = {"no valid proxy": [(float(e.epoch), e.untaught_share) for e in epochs]}
    plots = (
        lines("Lessons by proxy, share of the epoch's", shares, "epoch", shares=True, zero=True),
        lines("Clips without a valid proxy, share of all", untaught, "epoch", shares=True, zero=True, top=1.0),
    )
    names = class_names(run, len(epochs[-1].clips))
    body = Markup('<div class="plots">{}{}</div>').format(*plots)
    body += table(_proxies(epochs, names)) + _by_class(epochs, names)
    note = (
        "A lesson: a clip in an epoch on which a proxy was among the chosen ones, right, and surer than the student. "
        "Agreement: share of the train clips with its output on which the proxy is right."
    )
    return Section(TAUGHT, TAUGHT_TITLE, body, note)


def _proxies(epochs: Sequence[EpochTeaching], names: Sequence[str]) -> Table:
    first, last = epochs[0], epochs[-1]
    taught = _taught(epochs)
    rows = []
    for r, key in enumerate(last.proxies):
        lessons, most = int(taught[:, r].sum()), int(taught[:, r].argmax())
        rows.append(
            (
                key,
                Number(str(lessons), lessons),
                percent(float(first.shares[r])),
                percent(float(last.shares[r])),
                percent(last.agreement[r]),
                names[most] if lessons else GAP,
            )
        )
    ends = (f"share, epoch {first.epoch}", f"share, epoch {last.epoch}")
    return Table("Proxies", ("proxy", "lessons", *ends, "agreement with labels", "taught most"), rows, sort=True)


def _taught(epochs: Sequence[EpochTeaching]) -> npt.NDArray[np.int64]:
    """Lessons per class and proxy over all epochs, int64 [C, R]."""
    total: npt.NDArray[np.int64] = np.sum([epoch.taught for epoch in epochs], axis=0)
    return total


def _by_class(epochs: Sequence[EpochTeaching], names: Sequence[str]) -> Markup:
    """A row per class: of its lessons the share of each proxy; and of its clips those that nobody taught."""
    taught = _taught(epochs)
    clips, untaught = (np.sum([getattr(epoch, name) for epoch in epochs], axis=0) for name in ("clips", "untaught"))
    cells = []
    for label, name in enumerate(names):
        total, seen = int(taught[label].sum()), int(clips[label])
        row = [
            HeatCell(f"{100 * n / total:.0f}", n / total, f"{key} gave {n} of {total} lessons about {name}")
            if total
            else HeatCell(GAP, None, f"nobody taught {name}")
            for key, n in zip(epochs[-1].proxies, taught[label].tolist(), strict=True)
        ]
        none = int(untaught[label])
        told = f"{none} of {seen} times nobody taught a clip of {name}"
        row.append(
            HeatCell(f"{100 * none / seen:.0f}", none / seen, told, "other") if seen else HeatCell(GAP, None, "no clip")
        )
        cells.append(row)
    return heat(
        "Lessons by class over all epochs, percent of the class's lessons; last column: percent of its clips",
        names,
        [*epochs[-1].proxies, "no valid proxy"],
        cells,
        "class",
        sort=True,
        search="Filter classes",
        words={"low": "0 %", "high": "100 %", "gap": "no lesson"},
    )
