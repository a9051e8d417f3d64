"""Time and memory of `uniego status` over large caches, whose ledgers are synthetic and whose chunk files are holes.

    python benchmarks/status_scale.py --clips 10000 100000 1000000

Each size is a run of nine teachers, a clip table, the record of its files, an index and nine finished stores; once
without proxies, once with nine that are begun. `status`
runs in a process of its own, so its time holds the start of the program; the first run finds cold records of this
program (not a cold page cache), the median is of the later ones. `cpu_s` is the processor time of the fastest run, that
a busy machine disturbs less. Resident memory is the kernel's peak of the process.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from uniego.cache import ArraySpec, ClipIndex, FeatureStore
from uniego.cache.arrays import STATUS, STATUS_SPEC, chunk_name
from uniego.cache.ledger import Entry, Stored, entry_to_line
from uniego.pipeline import files
from uniego.pipeline.presets import preset
from uniego.pipeline.rundir import Run
from uniego.stages.proxy_training import proxy_fingerprint
from uniego.stages.rows import record_rows, run_rows
from uniego.stages.targets import open_index, open_teacher, row_keys

SPEC = ArraySpec((8, 1024), "float16", ("time", "feature"))
RUNS = 3


def make_run(folder: Path, clips: int) -> None:
    """Make a run whose nine teachers have features of all clips, by their ledgers."""
    folder.mkdir()
    table = folder / "clips.csv"
    with table.open("w") as stream:
        stream.write("clip_id,split,label,ego_path,exo_path,start_s,end_s\n")
        for n in range(clips):
            split = "test" if n % 10 == 9 else "train"
            video, start = f"{n // 8:07d}.mp4", n % 8
            stream.write(f"clip{n:08d},{split},{n % 100},ego/{video},exo/{video},{start},{start + 1}\n")
    config = preset("tiny")
    data = config.data.model_copy(update={"table": str(table.absolute())})
    run = Run.create(folder / "run", config.model_copy(update={"data": data}))
    seen = {f"{view}/{n:07d}.mp4": (1 << 20, f"{n:032x}", 1) for view in ("ego", "exo") for n in range(-(-clips // 8))}
    files.write_json(folder / "run" / "extract" / "sources.json", seen)
    index = ClipIndex.plan(run.cache_root, row_keys(run, run.table().clips))
    record_rows(run, index)
    for key in run.config.teachers:
        store = FeatureStore.create(run.cache_root / key, index, {"features": SPEC}, {"of": key}, {})
        run.record_extraction(key, store.fingerprint)
        _fill(store)


def begin_proxies(run: Run) -> None:
    """Begin a proxy of every teacher, as a training that was stopped at once."""
    index = open_index(run)
    rows = run_rows(run, index)
    for key in run.config.teachers:
        with run.proxy_folder(key).work(proxy_fingerprint(run, key, open_teacher(run, index, key), rows)):
            pass


def _fill(store: FeatureStore) -> None:
    """Ledger lines for all shards, and files of the right size without content."""
    index, lines = store.index, []
    rows = index.rows_per_shard
    sizes = {"features": rows * 8 * 1024 * 2 + 4, STATUS: rows + 4}
    for shard in range(index.num_shards):
        arrays = tuple((name, Stored("0" * 32, size)) for name, size in sizes.items())
        status = ((1, len(index.shard_rows(shard))),)
        lines.append(entry_to_line(Entry(shard, 0, index.shard_hash(shard), arrays, status)))
        for name, spec in (("features", SPEC), (STATUS, STATUS_SPEC)):
            path = store.path / "features.zarr" / name / chunk_name(spec, shard)
            with path.open("wb") as file:
                file.truncate(sizes[name])
    (store.path / "ledger" / "local.jsonl").write_text("\n".join(lines) + "\n")


def measure(run: Run) -> tuple[float, float, float]:
    """(seconds, seconds of the processor, peak MB) of one `uniego status --json`."""
    command = [sys.executable, "-m", "uniego", "status", "--json", "--run", str(run.root)]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, code, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise SystemExit(f"status failed with {process.returncode}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _row(run: Run, clips: int, proxies: int) -> dict[str, object]:
    first, *later = [measure(run) for _ in range(1 + RUNS)]
    return {
        "clips": clips,
        "teachers": len(run.config.teachers),
        "proxies_begun": proxies,
        "shards": ClipIndex.open(run.cache_root).num_shards,
        "first_s": round(first[0], 2),
        "median_s": round(statistics.median(taken[0] for taken in later), 2),
        "cpu_s": round(min(taken[1] for taken in later), 2),
        "peak_mb": round(max(taken[2] for taken in (first, *later))),
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of `uniego status` over large caches.")
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--keep", type=Path, default=None, help="folder for the runs, kept; default: temporary")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    date = datetime.date.today().isoformat()
    out = arguments.out or Path(__file__).parent / "results" / f"status_scale-{date}.csv"
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for clips in arguments.clips:
            folder = (arguments.keep or Path(temporary)) / str(clips)
            if not folder.exists():  # elsewhere: a child's peak counts that of the process it was started from
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    pool.submit(make_run, folder, clips).result()
            run = Run.open(folder / "run")
            for proxies in (0, len(run.config.teachers)):
                if proxies:
                    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                        pool.submit(begin_proxies, run).result()
                rows.append(_row(run, clips, proxies) | {"date": date})
                print(rows[-1], flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out)


if __name__ == "__main__":
    main()
