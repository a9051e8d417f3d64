"""How often teachers' gradients conflict over training: naive distillation against Selective Proxy Distillation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file

from ..errors import MissingInputError, UsageError
from ..models.teachers import teacher_view
from ..pipeline import charts, files
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter, results_console, say, warn
from ..pipeline.randomness import clip_stream, order
from ..pipeline.rundir import Run, TaskFolder
from ..pipeline.signals import StopFlag
from . import snapshots
from .batches import SINGLE, Batch, load, protocol_order
from .clip_source import training_reader
from .compute import prepare, resolve_device
from .conflicts import Conflicts, Losses, measure, naive_losses, spd_losses
from .encoder import WEIGHTS, read_model
from .spd import slots
from .targets import load_bank, load_targets, open_index, open_teacher, row_keys
from .tokens import outputs_store
from .training import make_plan, trained

_PROBE = -1  # the "epoch" whose order the probe clips are taken from: none of training's


@dataclass(frozen=True)
class Student:
    """A trained student whose way is looked at: its name, its method ("spd" or "naive"), and where it lies."""

    name: str
    method: str
    folder: Path


def students(run: Run) -> list[Student]:
    """The finished ones that learnt by SPD, or naively from all teachers at once (RUN/distill/variants/naive-…)."""
    found = [Student("student", "spd", run.student_folder.path)]
    variants = run.root / "distill" / "variants"
    found += [Student(path.name, "naive", path) for path in sorted(variants.glob("naive-*"))]
    return [s for s in found if TaskFolder(s.folder, s.name).done and trained(s.folder)]


def analyze_conflicts(run: Run, global_batches: int = 8) -> dict[str, Any]:
    """Cosines between the gradients of teachers' losses on each student's shared parameters, at each of its snapshots.

    The probe is `global_batches` times `distill.train.global_batch` train clips (fewer if there are not so many), drawn
    by the run's seed, one view, centre crop; the network is in eval mode. Writes conflicts.json, conflicts.csv and
    conflicts.svg to RUN/analyze/conflicts/, and returns what the first one holds. Raises `MissingInputError` without a
    student.
    """
    found = students(run)
    if not found:
        raise MissingInputError(f"there is no student yet: run `{run.command('distill')}` first")
    prepare(run.config.compute)
    probe = probe_clips(run, global_batches)
    ways = {student.name: _way(run, student) for student in found}
    inputs = {"probe": [clip.clip_id for clip in probe], **{name: [*map(str, way)] for name, way in ways.items()}}
    analysis = run.analysis_folder("conflicts")
    with StopFlag() as flag, analysis.work(inputs, overwrite=True):
        report: dict[str, Any] = {"clips": len(probe), "global_batch": run.config.distill.train.global_batch}
        report["students"] = {s.name: _follow(run, s, ways[s.name], probe, flag) for s in found}
        files.write_json(analysis.path / "conflicts.json", report)
        files.write_bytes(analysis.path / "conflicts.csv", _as_csv(report))
        files.write_bytes(analysis.path / "conflicts.svg", _as_picture(report).encode())
        analysis.finish({name: student["share"] for name, student in report["students"].items()})
    return report


def probe_clips(run: Run, global_batches: int) -> list[Clip]:
    """The clips that gradients are taken on: whole global batches, functions of the run's seed."""
    clips, batch = run.table().split("train"), run.config.distill.train.global_batch
    count = min(global_batches, len(clips) // batch) * batch
    if not count:
        raise UsageError(
            f"no global batch of {batch} clips can be made of {len(clips)}: lower distill.train.global_batch"
        )
    positions = order(run.config.seed, _PROBE, [clip.clip_id for clip in clips])
    return [clips[int(position)] for position in positions[:count]]


def _way(run: Run, student: Student) -> dict[int, Path]:
    """Weights by the number of steps done: the snapshots, and the trained network."""
    steps = make_plan(run, run.config.distill.train, run.table().split("train")).steps
    found = snapshots.find(student.folder)
    if not found:
        warn(f"{student.name} has no snapshots, only its end is looked at; distill.snapshots keeps some over training")
    return {**found, steps: student.folder / "model" / WEIGHTS}


def _follow(
    run: Run, student: Student, way: Mapping[int, Path], probe: Sequence[Clip], flag: StopFlag
) -> dict[str, Any]:
    """The conflicts at each step, and over all of them."""
    model = read_model(student.folder / "model")[0].to(resolve_device(run.config.compute))
    teachers, losses = _losses(run, student, list(model.geometry["projections"]), probe)
    steps, pooled = [], []
    with Meter(f"conflicts of {student.name}", len(way) * len(probe)) as meter:
        for step, path in sorted(way.items()):
            model.load_state_dict(load_file(path))
            found = measure(model, teachers, losses, _global_batches(run, probe, flag, meter))
            pooled.append(found.cosines)
            steps.append({"step": step, **_as_json(found)})
    whole = _as_json(Conflicts(tuple(teachers), torch.cat(pooled)))
    return {"method": student.method, "teachers": teachers, **whole, "steps": steps}


def _global_batches(run: Run, probe: Sequence[Clip], flag: StopFlag, meter: Meter) -> Iterator[list[Batch]]:
    """The probe as global batches of micro-batches, on the device; clips that cannot be decoded are left out."""
    train, compute = run.config.distill.train, run.config.compute
    device = resolve_device(compute)
    portions = protocol_order(len(probe), train.micro_batch)
    whole: list[Batch] = []
    for batch in load(training_reader(run), probe, portions, protocol=SINGLE, workers=compute.workers):
        flag.check()
        whole.append(batch._replace(videos=batch.videos[:, 0]).to(device) if batch.rows else batch)
        if len(whole) == train.global_batch // train.micro_batch:
            yield whole
            whole = []
            meter.advance(train.global_batch)


def _losses(run: Run, student: Student, projections: list[str], probe: Sequence[Clip]) -> tuple[list[str], Losses]:
    """The teachers of a student, and what each asks of the probe clips."""
    index, device = open_index(run), resolve_device(run.config.compute)
    rows = index.rows(row_keys(run, probe))
    if student.method == "naive":
        frames = run.config.student.num_frames
        targets = {key: load_targets(open_teacher(run, index, key), rows, frames) for key in projections}
        return projections, naive_losses(targets, run.config.proxies.feature_distance)
    keys = list(TaskFolder(student.folder, student.name).results["proxies"])
    bank = load_bank([outputs_store(run, key) for key in keys], rows)
    labels = torch.tensor([clip.label for clip in probe], device=device)
    config = run.config.distill.spd([teacher_view(key, run.config.teachers[key]) for key in keys])
    draws = None
    if config.select == "random":
        count = slots(config, len(keys))
        streams = [clip_stream(run.config.seed, 0, clip.clip_id, "selection") for clip in probe]
        draws = torch.from_numpy(np.stack([s.integers(len(keys), size=count) for s in streams])).to(device)
    (projection,) = projections
    on_device = type(bank)(*(tensor.to(device) for tensor in bank))
    return keys, spd_losses(keys, on_device, labels, config, projection, draws)


def _as_json(found: Conflicts) -> dict[str, Any]:
    """Share of negative cosines (None: there is none), and per pair mean cosine, negative ones and their number."""
    negative, pairs = found.total()
    mean = [[None if math.isnan(value) else value for value in row] for row in found.mean.tolist()]
    return {
        "share": negative / pairs if pairs else None,
        "negative": negative,
        "pairs": pairs,
        "without_gradient": found.without_gradient,
        "mean_cosines": mean,
        "negative_by_pair": found.negative.tolist(),
        "pairs_by_pair": found.counts.tolist(),
    }


def _as_csv(report: Mapping[str, Any]) -> bytes:
    """A row per student, step and pair of teachers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["student", "method", "step", "one", "other", "mean_cosine", "negative", "pairs"])
    for name, student in report["students"].items():
        teachers = student["teachers"]
        for entry in student["steps"]:
            for i, one in enumerate(teachers):
                for j in range(i + 1, len(teachers)):
                    mean = entry["mean_cosines"][i][j]
                    numbers = ["" if mean is None else repr(mean), entry["negative_by_pair"][i][j]]
                    row = [name, student["method"], entry["step"], one, teachers[j], *numbers]
                    writer.writerow([*row, entry["pairs_by_pair"][i][j]])
    return out.getvalue().encode()


def _as_picture(report: Mapping[str, Any]) -> str:
    curves = {
        f"{name} ({student['method']})": [(e["step"], e["share"]) for e in student["steps"] if e["share"] is not None]
        for name, student in report["students"].items()
    }
    return charts.page([charts.lines("Conflicts between teachers", curves, "step", "share of negative cosines")])


def print_conflicts(run: Run, report: Mapping[str, Any]) -> None:
    """A row per student and step, and where the rest lies."""
    table = Table(
        "student", "method", "step", "negative", "of pairs", "no gradient", "share", title="Conflicting gradients"
    )
    for name, student in report["students"].items():
        for entry in [*student["steps"], {**student, "step": "all"}]:
            share = "no pair" if entry["share"] is None else f"{100 * entry['share']:.1f} %"
            counts = (str(entry[field]) for field in ("step", "negative", "pairs", "without_gradient"))
            table.add_row(name, student["method"], *counts, share)
    results_console().print(table)
    methods = {student["method"] for student in report["students"].values()}
    if "naive" not in methods:
        say("a student of naive distillation would show what selection spares")
    say(f"by pair: {run.analysis_folder('conflicts').path}/conflicts.json, conflicts.csv, conflicts.svg")
