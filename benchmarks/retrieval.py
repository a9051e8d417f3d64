"""Exact retrieval: seconds per query over galleries of several sizes, and what a million x a million would take.

    python benchmarks/retrieval.py --gallery 10000 100000 1000000 --queries 64

Every query is compared with the whole gallery, in blocks of 256 MB of cosines. Time grows with queries x gallery (x the
logarithm of the relevant items), memory with the gallery. The last column extrapolates the cost per query and item to
a million queries and a million items: hours of one core, or of the GPU.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import resource
import time
from pathlib import Path

import torch
from uniego.metrics import rank

WIDTH, CLASSES, MILLION = 768, 665, 1_000_000


def measure(items: int, queries: int, device: torch.device) -> dict[str, object]:
    """One row of the table."""
    g = torch.Generator().manual_seed(0)
    gallery = torch.randn(items, WIDTH, generator=g).to(device)
    labels = torch.randint(CLASSES, (items,), generator=g)
    own = torch.arange(items)
    count = min(queries, items)
    started, busy = time.perf_counter(), time.process_time()
    rank(gallery[:count], gallery, (labels[:count], labels), (own[:count], own))
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    grown = MILLION / items
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "gallery": items,
        "queries": count,
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu, 3),
        "ms_per_query_cpu": round(1000 * cpu / count, 2),
        "gallery_gb": round(items * WIDTH * 4 / 1e9, 2),
        "peak_gb_so_far": round(peak, 2),
        "hours_million_x_million": round(
            (seconds if device.type == "cuda" else cpu) / count * grown * MILLION / 3600, 1
        ),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    """Measure, print, and write a CSV where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [measure(items, arguments.queries, torch.device(arguments.device)) for items in arguments.gallery]
    for row in rows:
        print(row)
    if arguments.out:
        with arguments.out.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
