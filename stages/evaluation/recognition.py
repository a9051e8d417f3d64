"""Recognition on the test split, by the published protocol: views x crops, raw logits summed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ...metrics import accuracies, bootstrap, class_table, confusion, label_ranks
from ...metrics.classification import Accuracies
from ...pipeline import files
from ...pipeline.config import RunConfig
from ...pipeline.progress import results_console, say
from ...pipeline.rundir import Run
from ...pipeline.signals import StopFlag
from ..recognition import Recognition
from .measure import Measure, bootstrap_words, percent, with_interval
from .subjects import NetworkSubject, Subject


def why_not(subject: Subject) -> str | None:
    """A network with the run's classes can recognise."""
    if not isinstance(subject, NetworkSubject):
        return "a teacher's features have no classifier; --task probe fits one"
    own, wanted = subject.classes, subject.run.table().classes
    if not own:
        return "the network does not name its classes (`uniego checkpoint import --classes` does)"
    unnamed = tuple(map(str, range(len(wanted))))  # such as a released checkpoint's, which has no names
    if own not in (wanted, unnamed):
        return f"the network names other classes than the run ({len(own)}, not {len(wanted)})"
    return None


def compute(subject: Subject, folder: Path, flag: StopFlag) -> dict[str, Any]:
    """Accuracies with intervals; predictions.csv, per_class.csv and confusion.csv."""
    found = subject.embeddings("test", flag)
    assert found.logits is not None
    result = Recognition(found.clips, found.logits, found.labels, found.failures)
    run = subject.run
    write_recognition(run, result, folder)
    files.write_bytes(folder.parent / "predictions.csv", predictions(run, result))
    classes = result.logits.shape[1]
    protocol = {
        "split": "test",
        **subject.protocol(),
        "scores": "raw logits summed over views and crops",
        **({"top5": f"{classes} classes: a clip counts as right wherever its label ranks"} if classes <= 5 else {}),
        **bootstrap_words(run.config, "clips"),
    }
    return {"protocol": protocol, **scored(result, run.config)}


def scored(result: Recognition, config: RunConfig) -> dict[str, Any]:
    """`Recognition.metrics`, and bootstrap intervals over clips where the configuration wants them."""
    metrics = result.metrics()
    if config.evaluate.resamples and len(result.labels):
        ranks, labels = label_ranks(result.logits, result.labels), result.labels.numpy()
        ranges = bootstrap(
            lambda counts: np.array(accuracies(ranks, labels, counts)),
            len(labels),
            resamples=config.evaluate.resamples,
            seed=config.seed,
        )
        metrics["interval"] = dict(zip(Accuracies._fields, ranges.tolist(), strict=True))
    return metrics


def write_recognition(run: Run, result: Recognition, folder: Path) -> None:
    """per_class.csv: clips, predictions, recall and precision; confusion.csv: rows are the truth."""
    predicted = result.logits.argsort(dim=1, descending=True, stable=True)[:, 0]
    classes = result.logits.shape[1]
    names = class_names(run, classes)
    matrix = confusion(result.labels.numpy(), predicted.numpy(), classes)
    rows = [
        [name, row.clips, row.predicted, *("" if x is None else f"{x:.2f}" for x in (row.recall, row.precision))]
        for name, row in zip(names, class_table(matrix), strict=True)
    ]
    files.write_bytes(folder / "per_class.csv", _csv([["class", "clips", "predicted", "recall", "precision"], *rows]))
    table = [["truth", *names], *([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True))]
    files.write_bytes(folder / "confusion.csv", _csv(table))


def class_names(run: Run, count: int) -> list[str]:
    """Names of `count` classes; numbers beyond those that the table names."""
    names = run.table().classes
    return [*names[:count], *(str(i) for i in range(len(names), count))]


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def predictions(run: Run, result: Recognition) -> bytes:
    """A row per clip: id, label, prediction, the label's rank (1 = right), probability of the prediction."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["clip_id", "label", "predicted", "label_rank", "probability"])
    ranked = result.logits.argsort(dim=1, descending=True, stable=True)
    ranks = (ranked == result.labels.unsqueeze(1)).int().argmax(dim=1) + 1
    confidence = result.logits.softmax(dim=1).amax(dim=1)
    names = class_names(run, result.logits.shape[1])
    for i, clip in enumerate(result.clips):
        row = [names[clip.label], names[int(ranked[i, 0])], int(ranks[i]), f"{confidence[i]:.4f}"]
        writer.writerow([clip.clip_id, *row])
    for failure in result.failures:
        writer.writerow([failure.clip_id, "", "", "", failure.reason])
    return out.getvalue().encode()


def print_results(results: Mapping[str, Any], protocol: Mapping[str, int], folder: Path) -> None:
    """A table of accuracies, and where the predictions lie."""
    results_console().print(_table(str(results["model"]), {**results, "protocol": protocol}))
    if results["failed"]:
        say(f"{results['failed']} clips could not be decoded and are not counted; see {folder / 'predictions.csv'}")
    say(f"predictions: {folder / 'predictions.csv'}")


def tables(model: str, results: dict[str, Any]) -> list[Table]:
    """Accuracies, and their intervals below."""
    table = _table(model, results)
    if "interval" in results:
        table.caption = f"{results['protocol']['interval']}: " + ", ".join(
            f"{title} {with_interval(results, name)}"
            for name, title in (("top1", "top-1"), ("mean_class_accuracy", "mean class"))
        )
    return [table]


def _table(model: str, results: Mapping[str, Any]) -> Table:
    protocol = results["protocol"]
    table = Table("clips", "views x crops", "top-1", "top-5", "mean class", title=f"{model} on test")
    accuracy = (percent(results[key]) for key in ("top1", "top5", "mean_class_accuracy"))
    table.add_row(str(results["clips"]), f"{protocol['views']} x {protocol['crops']}", *accuracy)
    return table


def settings(subject: Subject) -> dict[str, Any]:
    """Intervals are all that depends on more than the subject."""
    return {"resamples": subject.run.config.evaluate.resamples, "seed": subject.run.config.seed}


RECOGNITION = Measure(why_not, settings, compute, tables)
