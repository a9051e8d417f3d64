"""The feature cache against one .npy a clip, HDF5 and plain zarr: writing, loading whole, reading random clips.

    python benchmarks/cache.py --clips 8192

Features are float16 [8, 1024] a clip, files in the page cache, one thread. The methods take turns; a row of the CSV is
the median of `runs`. What is compared:

* write: this cache writes with checksums and fsync, whole shards; the others as they are used, without either: one
  .npy a clip, HDF5 with one clip a chunk, zarr with one clip a chunk and its default codecs.
* load: all clips into one array [N, 8, 1024] in memory; this cache verifies its checksums. The methods called view
  are what training does, `load_targets`: the mean of each clip's steps as float32 [N, 1024], of clips in the order of
  the store and shuffled; still megabytes of stored features a second.
* rows: batches of 64 random clips. This cache reads them from all features loaded into one array; the others from
  their files, clip by clip, as data loaders do.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch
import zarr
from uniego.cache import ArraySpec, ClipIndex, FeatureStore, RowKey, RowStatus
from uniego.stages.targets import load_targets

SHAPE = (8, 1024)
BATCH = 64
Features = npt.NDArray[np.float16]


class Cache:
    """This package's store."""

    def write(self, folder: Path, features: Features) -> None:
        index = ClipIndex.plan(folder, [RowKey(f"clip{n:08d}", "") for n in range(len(features))])
        arrays = {"features": ArraySpec(SHAPE, "float16", ("time", "feature"))}
        store = FeatureStore.create(folder / "store", index, arrays, {}, {})
        for shard in store.pending():
            rows = index.shard_rows(shard)
            status = np.full(len(rows), RowStatus.DONE, np.uint8)
            store.write_shard(shard, {"features": features[rows.start : rows.stop]}, status)

    def load(self, folder: Path) -> Features:
        store = FeatureStore.open(folder / "store", ClipIndex.open(folder))
        values, _ = store.read(np.arange(store.index.num_rows), "features")
        return values

    def reader(self, folder: Path) -> Callable[[npt.NDArray[np.int64]], Any]:
        view = torch.from_numpy(self.load(folder))
        return lambda rows: view[torch.from_numpy(rows)]


def load_view(folder: Path, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The training view of these rows of this package's store, float32 [N, 1024]."""
    store = FeatureStore.open(folder / "store", ClipIndex.open(folder))
    values: npt.NDArray[np.float32] = load_targets(store, rows, SHAPE[0]).values.numpy()
    return values


class Npy:
    """One .npy a clip."""

    def write(self, folder: Path, features: Features) -> None:
        for number, feature in enumerate(features):
            np.save(folder / f"{number:08d}.npy", feature)

    def load(self, folder: Path) -> Features:
        return np.stack([np.load(path) for path in sorted(folder.glob("*.npy"))])

    def reader(self, folder: Path) -> Callable[[npt.NDArray[np.int64]], Any]:
        return lambda rows: np.stack([np.load(folder / f"{row:08d}.npy") for row in rows.tolist()])


class Hdf5:
    """One dataset, one clip a chunk."""

    def write(self, folder: Path, features: Features) -> None:
        with h5py.File(folder / "features.h5", "w") as file:
            data = file.create_dataset("features", features.shape, "f2", chunks=(1, *SHAPE))
            for number, feature in enumerate(features):
                data[number] = feature

    def load(self, folder: Path) -> Features:
        with h5py.File(folder / "features.h5") as file:
            values: Features = file["features"][:]
            return values

    def reader(self, folder: Path) -> Callable[[npt.NDArray[np.int64]], Any]:
        data = h5py.File(folder / "features.h5")["features"]
        return lambda rows: np.stack([data[row] for row in rows.tolist()])


class Zarr:
    """One array, one clip a chunk, default codecs."""

    def write(self, folder: Path, features: Features) -> None:
        array = zarr.create_array(str(folder / "a.zarr"), shape=features.shape, chunks=(1, *SHAPE), dtype="float16")
        for start in range(0, len(features), BATCH):
            array[start : start + BATCH] = features[start : start + BATCH]

    def load(self, folder: Path) -> Features:
        return np.asarray(zarr.open_array(str(folder / "a.zarr"), mode="r")[:])

    def reader(self, folder: Path) -> Callable[[npt.NDArray[np.int64]], Any]:
        array: Any = zarr.open_array(str(folder / "a.zarr"), mode="r")
        return lambda rows: np.stack([array[row] for row in rows.tolist()])


METHODS: dict[str, Any] = {"uniego": Cache(), "npy": Npy(), "h5py": Hdf5(), "zarr": Zarr()}


def measure(root: Path, clips: int, runs: int, seed: int) -> list[dict[str, object]]:
    """One row per task and method. Every method's result is compared with what was written."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(clips, *SHAPE)).astype(np.float16)
    taken: dict[tuple[str, str], list[float]] = {}

    def timed(task: str, name: str, amount: float, act: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = act()
        taken.setdefault((task, name), []).append(amount / (time.perf_counter() - begin))
        return result

    names = list(METHODS)
    megabytes = features.nbytes / 1e6
    for run in range(runs):
        order = names[run % len(names) :] + names[: run % len(names)]  # no method always follows another
        for name in order:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            timed("write", name, megabytes, lambda name=name: METHODS[name].write(root / name, features))
        os.sync()  # what one method left to be written is not paid for by the next
        for name in order:
            loaded = timed("load", name, megabytes, lambda name=name: METHODS[name].load(root / name))
            if not np.array_equal(loaded, features):
                raise SystemExit(f"{name} does not read what was written")
            del loaded
        means, shuffled = features.mean(axis=1, dtype=np.float32), rng.permutation(clips)
        for name, wanted in (("view sorted", np.arange(clips)), ("view shuffled", shuffled)):
            view = timed("load", name, megabytes, lambda wanted=wanted: load_view(root / "uniego", wanted))
            if not np.allclose(view, means[wanted], atol=1e-6):
                raise SystemExit(f"{name} is not the mean of what was written")
        batches = [rng.integers(0, clips, BATCH) for _ in range(20)]
        for name in order:
            read = METHODS[name].reader(root / name)
            last = timed("rows", name, BATCH * len(batches), lambda r=read, b=batches: [r(rows) for rows in b][-1])
            if not np.array_equal(np.asarray(last), features[batches[-1]]):
                raise SystemExit(f"{name} does not read what was written")
    units = {"write": "MB/s", "load": "MB/s", "rows": "clips/s"}
    middle = {key: statistics.median(rates) for key, rates in taken.items()}
    return [
        {
            "task": task,
            "method": name,
            "median": round(rate, 1),
            "unit": units[task],
            "uniego_is_times": round(middle[task, "uniego"] / rate, 2),
            "clips": clips,
            "megabytes": round(megabytes, 1),
            "runs": runs,
        }
        for (task, name), rate in sorted(middle.items())
    ]


def machine() -> str:
    """Processor's name and number of cores."""
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0].strip() if names else 'unknown'}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="The feature cache against .npy, HDF5 and zarr.")
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="CSV file; default benchmarks/results/cache-DATE.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    date = datetime.date.today().isoformat()
    out = arguments.out or Path(__file__).parent / "results" / f"cache-{date}.csv"
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), arguments.clips, arguments.runs, arguments.seed)
    for row in rows:
        row |= {"date": date, "machine": machine(), "load_before": load, "seed": arguments.seed}
        print(f"{row['task']:6} {row['method']:13} {row['median']:>10} {row['unit']:8} x{row['uniego_is_times']}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out)


if __name__ == "__main__":
    main()
