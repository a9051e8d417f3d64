"""The demo over several seeds: the distilled student against ego-only training, and the nine teachers.

    python benchmarks/demo.py --out DIR --seeds 0 1 2

Each seed is another data set and another draw of everything. A folder DIR/<seed> that `uniego demo` has finished is
read and not computed again. Accuracies are top-1 on test in percent; `teacher_*` is the linear probe of its targets.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from uniego.demo.journey import demo
from uniego.demo.probes import own_accuracy, probe_accuracy
from uniego.pipeline.rundir import Run

RESULTS = Path(__file__).parent / "results"


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """One row of the table."""
    demo(folder, seed=seed)
    run = Run.open(folder / "run")
    scores = {model: run.evaluation_folder(model).results["top1"] for model in ("ego-only", "student")}
    row: dict[str, Any] = {
        "seed": seed,
        "test_clips": sum(clip.split == "test" for clip in run.table().clips),
        "ego_only": round(scores["ego-only"], 1),
        "student": round(scores["student"], 1),
    }
    for key in run.config.teachers:
        own = own_accuracy(run, key)
        row[f"teacher_{key}"] = round(probe_accuracy(run, key) if own is None else own, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    rows = [measure(chosen.out / str(seed), seed) for seed in chosen.seeds]
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    path = RESULTS / f"demo-{date}.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*rows[0], "date", "machine"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "date": date, "machine": machine} for row in rows)
    gains = [row["student"] - row["ego_only"] for row in rows]
    print(
        f"student minus ego-only: mean {statistics.mean(gains):+.1f}, by seed {', '.join(f'{g:+.1f}' for g in gains)}"
    )
    print(path)


if __name__ == "__main__":
    main()
