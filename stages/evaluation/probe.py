"""Quick checks of frozen embeddings: a linear probe and k-NN, fitted on train, measured on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ...metrics import LinearProbe, neighbour_vote
from ...pipeline.signals import StopFlag
from ..compute import resolve_device
from ..fingerprints import clips_hash
from ..recognition import Recognition
from .measure import Measure, bootstrap_words, percent, with_interval
from .recognition import scored
from .subjects import Subject


def why_not(subject: Subject) -> str | None:
    """A train split is needed."""
    return None if subject.run.table().split("train") else "the table has no train split to fit on"


def settings(subject: Subject) -> dict[str, Any]:
    """Settings of both probes, and what they are fitted on."""
    run = subject.run
    return {
        **run.config.evaluate.probe.model_dump(),
        "train_clips": clips_hash(run.table().split("train")),
        "resamples": run.config.evaluate.resamples,
        "seed": run.config.seed,
    }


def compute(subject: Subject, folder: Path, flag: StopFlag) -> dict[str, Any]:
    """Accuracies of both, on embeddings of one view and a centre crop of either split."""
    run, config = subject.run, subject.run.config.evaluate.probe
    train, test = (subject.embeddings(split, flag, single=True) for split in ("train", "test"))
    classes = run.table().num_classes
    device = resolve_device(run.config.compute)
    x, labels, asked = (tensor.to(device) for tensor in (train.tokens, train.labels, test.tokens))
    probe = LinearProbe.fit(x, labels, classes, l2=config.l2)
    flag.check()
    votes = neighbour_vote(asked, x, labels, classes, k=config.neighbours).cpu()
    shared = {"train_clips": len(train.clips), **subject.protocol(single=True), **bootstrap_words(run.config, "clips")}
    ways = {
        "linear": (
            probe(asked).cpu(),
            {
                "fit": "multinomial logistic regression by L-BFGS, features standardised on train",
                "l2": config.l2,
                "steps": probe.steps,
                "gradient": probe.gradient,
            },
        ),
        "knn": (
            votes,
            {"k": min(config.neighbours, len(train.clips)), "vote": "majority by cosine; ties go to the nearer"},
        ),
    }
    return {
        name: {
            "protocol": {"split": "test", **words, **shared},
            **scored(Recognition(test.clips, scores, test.labels, test.failures), run.config),
        }
        for name, (scores, words) in ways.items()
    }


def tables(model: str, results: dict[str, Any]) -> list[Table]:
    """A row per probe."""
    table = Table("probe", "clips", "top-1", "top-5", "mean class", title=f"{model}: frozen embeddings on test")
    for name, entry in results.items():
        cells = (percent(entry[key]) for key in ("top5", "mean_class_accuracy"))
        table.add_row(name, str(entry["clips"]), with_interval(entry, "top1"), *cells)
    return [table]


PROBE = Measure(why_not, settings, compute, tables)
