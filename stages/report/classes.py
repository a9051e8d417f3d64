"""Recognition class by class: a table, the confusion matrix, and which classes are taken for which."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...pipeline.rundir import Run
from .section import Absent, Section
from .tables import HeatCell, Number, Table, heat, number, table

TABLE_ID, TABLE_TITLE = "per-class", "Recognition by class"
ID, TITLE = "confusion", "Confusion matrix"
_MATRIX = 32  # classes that a matrix shows; of more, those that are confused most
_PAIRS = 30
_OTHERS = ("ego-only",)


def _folder(run: Run, model: str = "student") -> Path:
    return run.evaluation_folder(model).path / "recognition"


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def _missing(run: Run) -> str:
    return f"recognition was not measured for the student: run `{run.command('evaluate --task recognition')}`"


def per_class(run: Run) -> Section | Absent:
    """Clips, recall and precision of every class, and the recall of the network without teachers beside it."""
    path = _folder(run) / "per_class.csv"
    if not path.exists():
        return Absent(TABLE_ID, TABLE_TITLE, _missing(run))
    others = {model: _recalls(run, model) for model in _OTHERS}
    others = {model: recalls for model, recalls in others.items() if recalls}
    rows = []
    for name, clips, predicted, recall, precision in _read(path)[1:]:
        own = _value(recall)
        row: tuple[Number | str, ...] = (
            name,
            number(float(clips), 0),
            number(float(predicted), 0),
            number(own),
            number(_value(precision)),
        )
        for recalls in others.values():
            other = recalls.get(name)
            gain = None if own is None or other is None else own - other
            row += (number(other), Number("–" if gain is None else f"{gain:+.1f}", gain))
        rows.append(row)
    head: tuple[str, ...] = ("class", "test clips", "predicted", "recall", "precision")
    for model in others:
        head += (f"recall, {model}", "difference")
    note = "Percent. A dash: no test clip of the class (recall), or the class was never predicted (precision)."
    return Section(
        TABLE_ID, TABLE_TITLE, table(Table("", head, rows, filter="Filter classes", sort=True, scroll=True)), note
    )


def _value(text: str) -> float | None:
    return float(text) if text else None


def _recalls(run: Run, model: str) -> dict[str, float | None]:
    path = _folder(run, model) / "per_class.csv"
    return {row[0]: _value(row[3]) for row in _read(path)[1:]} if path.exists() else {}


def confusion(run: Run) -> Section | Absent:
    """Truth by prediction as a matrix, and the pairs that are confused most."""
    path = _folder(run) / "confusion.csv"
    if not path.exists():
        return Absent(ID, TITLE, _missing(run))
    (_, *names), *lines = _read(path)
    matrix = np.array([[int(value) for value in line[1:]] for line in lines], np.int64)
    wrong = matrix - np.diag(np.diag(matrix))
    shown = np.arange(len(names))
    if len(names) > _MATRIX:
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_MATRIX])
    picked = [names[place] for place in shown]
    cells = [[_cell(matrix, names, int(i), int(j)) for j in shown] for i in shown]
    words = {"low": "none", "high": "all clips of the class", "gap": "no test clip"}
    body = heat("Rows: the truth; columns: the prediction; clips", picked, picked, cells, "truth", words=words)
    pairs = _pairs(wrong, matrix, names)
    if pairs:
        body += table(Table("Taken for one another most", ("truth", "predicted", "clips", "of"), pairs, sort=True))
    note = f"The {_MATRIX} classes of {len(names)} that are confused most." if len(names) > _MATRIX else ""
    return Section(ID, TITLE, body, note)


def _cell(matrix: npt.NDArray[np.int64], names: list[str], i: int, j: int) -> HeatCell:
    count, total = int(matrix[i, j]), int(matrix[i].sum())
    told = f"{count} of {total} clips of {names[i]} predicted as {names[j]}"
    return HeatCell(str(count) if count else "·", count / total if total else None, told, "diagonal" if i == j else "")


def _pairs(
    wrong: npt.NDArray[np.int64], matrix: npt.NDArray[np.int64], names: list[str]
) -> list[tuple[str, str, Number, Number]]:
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        (names[i], names[j], number(int(wrong[i, j]), 0), number(int(matrix[i].sum()), 0))
        for i, j in places
        if wrong[i, j]
    ]
