"""The paper's claims under controlled conditions: the rendered world's twelve actions, other people for every seed.

    python benchmarks/evidence.py core --out DIR                  # the core table, eight seeds
    python benchmarks/evidence.py core --out DIR --table          # what is done of it, without computing
    python benchmarks/evidence.py selection --out DIR --hours 2   # a part of the full grid, as far as it comes

A seed is a data set of its own (75 people, each does every action once: 600 clips to learn from and 300 to be measured
on, of people never seen), its teachers' features, and a grid of `uniego ablate` (benchmarks/evidence/PART.yaml) with
that seed. It lies in DIR/<seed>; proxies and merges serve all parts. The same command continues. Every part but the
core is shown against the arms of the core that are done. Results: benchmarks/results/evidence-PART-DATE.csv, a row per
seed and arm, and a picture of them in docs/pictures; evidence-teachers-DATE.csv says what each teacher knows. For the
part `gradients` also evidence-conflicts and evidence-cka. docs/evidence.md tells what came out.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.table import Table
from uniego.demo.actions import ALL_ACTIONS
from uniego.demo.dataset import write_dataset
from uniego.demo.preset import evidence_config
from uniego.demo.probes import own_accuracy, probe_accuracy
from uniego.models.teachers import TeacherConfig
from uniego.pipeline import charts, files, yamltext
from uniego.pipeline.progress import Meter, duration, results_console, say
from uniego.pipeline.rundir import Run
from uniego.stages.ablate import ablate
from uniego.stages.ablate_grid import SHARED
from uniego.stages.analyze_cka import analyze_cka
from uniego.stages.analyze_conflicts import analyze_conflicts
from uniego.stages.extract_options import ExtractOptions
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.paired import compare, summarise
from uniego.stages.prepare_clips import prepare_clips
from uniego.stages.targets import load_targets, open_index, open_teacher, row_keys

HERE = Path(__file__).parent
GRIDS, RESULTS, PICTURES = HERE / "evidence", HERE / "results", HERE.parent / "docs" / "pictures"
CORE, GRADIENTS, CORRUPTED = "core", "gradients", "corrupted"
SHUFFLED = ("exo_rgb", "ego_siglip", "exo_depth", "ego_dino")  # also there as if taught by shuffled labels
CLIPS, SIZE = 900, 64
SEEDS = range(8)


def prepare(folder: Path, seed: int) -> Run:
    """The seed's data, run, features and clips as images; what is there is left as it is."""
    note, table, root = folder / "data" / "whole.json", folder / "data" / "clips.csv", folder / "run"
    wanted = {"seed": seed, "clips": CLIPS, "size": SIZE}
    if not note.exists():
        with Meter(f"render seed {seed}", CLIPS) as meter:
            options: dict[str, Any] = {"actions": ALL_ACTIONS, "extras": False, "progress": meter.advance}
            write_dataset(folder / "data", **wanted, **options)
        files.write_json(note, wanted)
    if not (root / "run.yaml").exists():
        root.mkdir(parents=True, exist_ok=True)
        config = evidence_config(seed)
        Run.create(root, config.model_copy(update={"data": config.data.model_copy(update={"table": str(table)})}))
    run = Run.open(root)
    extract_teachers(run, options=ExtractOptions(workers=os.cpu_count()))
    prepare_clips(run)
    return run


def corrupted(folder: Path, run: Run) -> Run:
    """A run over the same cache and proxies whose pool also has four teachers that learned shuffled labels by heart:
    what each says of a train clip is what its honest namesake says of another one, drawn by the seed."""
    root = folder / CORRUPTED
    if (root / "run.yaml").exists():
        return Run.open(root)
    clips, index = run.table().split("train"), open_index(run)
    pool = dict(run.config.teachers)
    for number, key in enumerate(SHUFFLED):
        store = open_teacher(run, index, key)
        told = load_targets(store, index.rows(row_keys(run, clips)), run.config.student.num_frames)
        order = np.random.default_rng([run.config.seed, number]).permutation(len(clips))
        path = folder / "data" / "shuffled" / f"{key}.zarr"
        group = zarr.open_group(path, mode="w")
        group.create_array("ids", data=np.array([clip.clip_id for clip in clips]))
        group.create_array("features", data=told.values.numpy()[order])
        pool[f"{key}_shuffled"] = TeacherConfig(network="precomputed", weights=f"dir:{path}")
    cache = run.config.cache.model_copy(update={"root": str(run.cache_root)})
    extract = run.config.extract.model_copy(update={"min_coverage": 0.0})  # shuffled ones know the train clips alone
    (root / "ablate").mkdir(parents=True)
    (root / "ablate" / SHARED).symlink_to(run.root / "ablate" / SHARED)
    Run.create(root, run.config.model_copy(update={"teachers": pool, "cache": cache, "extract": extract}))
    return Run.open(root)


def carry_out(part: str, folder: Path, seed: int) -> None:
    """A seed's cells of a part of the grid."""
    began = time.monotonic()
    run = prepare(folder, seed)
    if part == CORRUPTED:
        run = corrupted(folder, run)
        extract_teachers(run, options=ExtractOptions(workers=os.cpu_count()))
    grid = folder / f"{part}.yaml"
    text = (GRIDS / f"{part}.yaml").read_text(encoding="utf-8")
    files.write_bytes(grid, f"{text}seeds: [{seed}]\n".encode())
    result = ablate(run, grid, jobs=os.cpu_count() or 1)
    if result.error is not None:
        raise result.error
    if part == GRADIENTS:
        for arm in ("spd", "naive"):
            analyze_conflicts(Run.open(cell_root(folder, arm, seed)))
        analyze_cka(Run.open(cell_root(folder, "spd", seed)))
    say(f"seed {seed}: {part} in {duration(time.monotonic() - began)}")


def cell_root(folder: Path, arm: str, seed: int) -> Path:
    """The run that an arm of the part `gradients` is."""
    return folder / "run" / "ablate" / GRADIENTS / arm / f"seed-{seed}"


def cells_of(part: str, out: Path, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """A row per seed and arm that is done."""
    rows = []
    for seed in seeds:
        path = out / str(seed) / (CORRUPTED if part == CORRUPTED else "run") / "ablate" / part / "results.csv"
        if path.exists():
            with path.open(encoding="utf-8", newline="") as handle:
                rows += [row for row in csv.DictReader(handle) if row["state"] == "done" and row["seed"] == str(seed)]
    return rows


def teachers_of(out: Path, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """What each teacher knows of each seed's test clips: its own classifier, a linear probe of its targets."""
    rows = []
    for seed in seeds:
        root = out / str(seed) / "run"
        if not (root / "ablate").exists():
            continue
        run = Run.open(root)
        for key in run.config.teachers:
            own, probed = own_accuracy(run, key), f"{probe_accuracy(run, key):.2f}"
            rows.append({"seed": seed, "teacher": key, "own": "" if own is None else f"{own:.2f}", "probe": probed})
    return rows


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def conflicts_of(out: Path, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Negative cosines among pairs of teachers' gradients, a row per seed, arm and step."""
    rows = []
    for seed in seeds:
        for arm in ("spd", "naive"):
            path = cell_root(out / str(seed), arm, seed) / "analyze" / "conflicts" / "conflicts.json"
            students = _json(path).get("students", {}).values()
            named = ("step", "share", "negative", "pairs", "without_gradient")
            for student in students:
                rows += [{"seed": seed, "arm": arm, **{key: step[key] for key in named}} for step in student["steps"]]
    return rows


def cka_of(out: Path, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """How alike each teacher, its proxy and the student are, a row per seed and teacher."""
    rows = []
    for seed in seeds:
        path = cell_root(out / str(seed), "spd", seed) / "analyze" / "cka" / "cka.json"
        pairs = _json(path).get("pairs", {}).items()
        rows += [{"seed": seed, "teacher": key, **values} for key, values in pairs]
    return rows


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a dated file of results; none: nothing."""
    if not rows:
        return
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = RESULTS / f"evidence-{name}-{date}.csv"
    where = {"date": date, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    say(str(path))


def by_arm(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Top-1 by arm and seed."""
    top1: dict[str, dict[str, float]] = {}
    for row in rows:
        top1.setdefault(row["arm"], {})[row["seed"]] = float(row["top1"])
    return top1


def show(part: str, top1: Mapping[str, Mapping[str, float]], against: Mapping[str, Mapping[str, float]]) -> None:
    """Means over seeds, and paired tests against some arms, over the seeds that both have."""
    table = Table("arm", "seeds", "mean", "sd", *(f"minus {arm} (p)" for arm in against), title=f"{part}: top-1")
    for arm, values in top1.items():
        whole, cells = summarise(list(values.values())), []
        for others in against.values():
            shared = [seed for seed in values if seed in others]
            if values is others or not shared:
                cells.append("")
                continue
            found = compare([values[seed] for seed in shared], [others[seed] for seed in shared])
            cells.append(f"{found.difference:+.2f}" + ("" if found.p is None else f" ({found.p:.4f})"))
        table.add_row(arm, str(whole.n), f"{whole.mean:.2f}", "" if whole.sd is None else f"{whole.sd:.2f}", *cells)
    results_console().print(table)


def report(part: str, out: Path, seeds: Sequence[int]) -> None:
    """Tables, files and pictures of what is done."""
    rows = cells_of(part, out, seeds)
    if not rows:
        raise SystemExit(f"nothing of {part} is done in {out}")
    top1 = by_arm(rows)
    core = top1 if part == CORE else by_arm(cells_of(CORE, out, seeds))
    baseline = yamltext.parse((GRIDS / f"{part}.yaml").read_text(encoding="utf-8"), part).get("baseline")
    against = {arm: core[arm] for arm in ("spd", "naive", "ego-only") if arm in core}
    if baseline in top1 and baseline not in against:
        against[baseline] = top1[baseline]
    show(part, top1, against)
    write(part, rows)
    write("teachers", teachers_of(out, seeds))
    write("conflicts", conflicts_of(out, seeds))
    write("cka", cka_of(out, seeds))
    shown = {**top1, **{f"{arm} (core)": values for arm, values in core.items() if core is not top1}}
    picture = charts.dots(
        f"{part}: a dot per seed, a line at the mean",
        {arm: list(values.values()) for arm, values in shown.items()},
        f"top-1 on test, percent; chance is {100 / len(ALL_ACTIONS):.1f}",
    )
    files.write_bytes(PICTURES / f"evidence-{part}.svg", charts.page([picture]).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(path.stem for path in GRIDS.glob("*.yaml")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no other seed after so long")
    parser.add_argument("--table", action="store_true", help="only show and write what is done")
    chosen = parser.parse_args()
    began = time.monotonic()
    for seed in [] if chosen.table else chosen.seeds:
        if time.monotonic() - began > 3600 * chosen.hours:
            say(f"{chosen.hours:g} hours are over before seed {seed}; the same command continues")
            break
        carry_out(chosen.part, (chosen.out / str(seed)).resolve(), seed)
    report(chosen.part, chosen.out, chosen.seeds)


if __name__ == "__main__":
    main()
