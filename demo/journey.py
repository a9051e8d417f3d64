"""`uniego demo`: data, nine teachers, proxies, merge, student; and the same network without teachers beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import UsageError
from ..pipeline import files
from ..pipeline.progress import Meter, duration, results_console, say
from ..pipeline.rundir import Run
from ..stages.distill import distill
from ..stages.ego_only import train_ego_only
from ..stages.evaluate import evaluate
from ..stages.extract_teachers import extract_teachers
from ..stages.report.page import PAGE, write_report
from ..stages.train_proxies import train_proxies
from .dataset import write_dataset
from .preset import PROXY_EPOCHS, STUDENT_EPOCHS, demo_config, training
from .probes import own_accuracy, probe_accuracy
from .sheet import write_sheet


def demo(out: Path, *, seed: int = 0, clips: int = 240, size: int = 96, data_only: bool = False) -> None:
    """Write OUT/data and OUT/run, carry out the whole road there, and print what came out.

    Continues where it stopped. Raises `UsageError` for a folder that holds the demo of another seed, size or number
    of clips.
    """
    clock = _Clock()
    with clock("render the data"):
        table = _data(out / "data", {"seed": seed, "clips": clips, "size": size})
    with clock("draw the picture sheet"):
        sheet = write_sheet(table, out / "sheet.png")
    if data_only:
        say(f"data: {table}\npicture sheet: {sheet}")
        return
    run = _run(out / "run", table, seed)
    stages: dict[str, Callable[[], Any]] = {
        "extract-teachers": lambda: extract_teachers(run),
        "train-proxies": lambda: train_proxies(run),
        "distill": lambda: distill(run),
        "ego-only training": lambda: train_ego_only(run, training(PROXY_EPOCHS + STUDENT_EPOCHS)),
        "evaluate": lambda: [evaluate(run, model=name, tasks=["recognition"]) for name in ("student", "ego-only")],
        "report": lambda: write_report(run),
    }
    for name, stage in stages.items():
        with clock(name):
            stage()
    _print(run, sheet, clock)


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def _data(folder: Path, wanted: dict[str, int]) -> Path:
    """Render the data set, or take the one that is there; `demo.json`, written last, says that it is whole."""
    note, table = folder / "demo.json", folder / "clips.csv"
    if note.exists():
        made = json.loads(note.read_text(encoding="utf-8"))
        if made != wanted:
            raise UsageError(f"{folder} holds the demo of {made}, not of {wanted}; choose another --out")
        say(f"data: {table} is there")
        return table
    say(f"rendering {wanted['clips']} clips of {wanted['size']} x {wanted['size']} pixels, both views, into {folder}")
    with Meter("render", wanted["clips"]) as meter:
        write_dataset(folder, seed=wanted["seed"], clips=wanted["clips"], size=wanted["size"], progress=meter.advance)
    files.write_json(note, wanted)
    return table


def _run(folder: Path, table: Path, seed: int) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.yaml").exists():
        config = demo_config(seed)
        data = config.data.model_copy(update={"table": "../data/clips.csv"})
        Run.create(folder, config.model_copy(update={"data": data}))
    return Run.open(folder)


def _print(run: Run, sheet: Path, clock: _Clock) -> None:
    console = results_console()
    console.print(_accuracies(run))
    console.print(_teachers(run))
    times = Table("part", "time", title="time")
    for name, seconds in clock.seconds.items():
        times.add_row(name, duration(seconds))
    times.add_row("altogether", duration(sum(clock.seconds.values())))
    console.print(times)
    say(f"data: {run.table().path.parent.resolve()}\nrun: {run.root}\npicture sheet: {sheet}")
    say(f"report: {run.root / PAGE}")
    say(f"retrieval, segmentation of the untrimmed videos, probes: {run.command('evaluate')}")
    say(f"embeddings of your videos: uniego encode VIDEOS --model {run.root} --out features.npy")
    say(f"the encoder, in Python: uniego.load({str(run.root)!r}).encode(VIDEO)")


def _accuracies(run: Run) -> Table:
    """Ego-only training against the distilled student."""
    table = Table("network, ego video alone", "top-1", "mean class", title="accuracy on test, percent")
    chance = 100 / run.table().num_classes
    for model, title in (
        ("ego-only", f"trained on labels alone, {PROXY_EPOCHS + STUDENT_EPOCHS} epochs"),
        ("student", f"distilled from nine teachers, {PROXY_EPOCHS} + {STUDENT_EPOCHS} epochs"),
    ):
        result = run.evaluation_folder(model).results
        table.add_row(title, f"{result['top1']:.1f}", f"{result['mean_class_accuracy']:.1f}")
    table.add_row("chance", f"{chance:.1f}", f"{chance:.1f}", style="dim")
    return table


def _teachers(run: Run) -> Table:
    """What each teacher knows: its own classifier where it has one, a linear probe of its targets."""
    table = Table("teacher", "own classifier", "linear probe", title="teachers on test, top-1 percent")
    for key in run.config.teachers:
        own = own_accuracy(run, key)
        table.add_row(key, "" if own is None else f"{own:.1f}", f"{probe_accuracy(run, key):.1f}")
    return table
