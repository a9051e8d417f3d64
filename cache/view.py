"""The training view: contiguous arrays with a row per clip, in memory, or mapped from a file where that is too small.

Both are filled by the same function, so they hold the same bits. A mapped view is a folder `<content key>/` of .npy
files and their hashes; it is whole or not there, and one of another content is never taken for it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..pipeline import files
from .store import FeatureStore

_HASHES = "view.json"
Arrays = dict[str, npt.NDArray[Any]]
Fill = Callable[[Arrays], None]


class Part(NamedTuple):
    """One array of a view."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """What it takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def content_key(stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64], recipe: object) -> str:
    """Hash of what a view of these rows is made from: the shards' content, the rows in their order, the recipe."""
    parts: list[object] = [recipe, files.hash_bytes(np.ascontiguousarray(rows).tobytes())]
    for store in stores:
        shards = np.unique(rows[rows >= 0] // store.index.rows_per_shard).tolist()
        entries = ((shard, store.entry(shard)) for shard in shards)
        parts.append([[shard, entry.arrays if entry else None] for shard, entry in entries])
    return files.hash_bytes(json.dumps(parts).encode())


def resident(parts: Mapping[str, Part], fill: Fill) -> Arrays:
    """The arrays in memory: zeros, then filled."""
    arrays: Arrays = {name: np.zeros(part.shape, part.dtype) for name, part in parts.items()}
    fill(arrays)
    return arrays


def mapped(folder: Path, key: str, parts: Mapping[str, Part], fill: Fill) -> Arrays:
    """The arrays as private maps of files under `folder`, which is this view's alone; made when not there.

    An earlier one is taken if its key and the hashes of its files agree (they are read), and removed otherwise.
    Raises OSError; for a full disk its message says how many bytes are needed.
    """
    path = folder / key
    if not _sound(path, parts):
        files.remove_tree(folder)
        partial = folder / f".{key}{files.PARTIAL}"
        files.make_dir(partial)
        _write(partial, parts, fill)
        files.operations.rename(partial, path)
        files.sync_dir(folder)
    return {name: np.load(path / f"{name}.npy", mmap_mode="c") for name in parts}


def _write(folder: Path, parts: Mapping[str, Part], fill: Fill) -> None:
    maps = {name: _new_map(folder / f"{name}.npy", part) for name, part in parts.items()}
    fill(dict(maps))
    for array in maps.values():
        array.flush()
    hashes = {}
    for name in parts:
        with (folder / f"{name}.npy").open("rb") as file:
            files.operations.fsync(file.fileno())
        hashes[name] = files.hash_file(folder / f"{name}.npy")
    files.write_json(folder / _HASHES, hashes)


def _new_map(path: Path, part: Part) -> Any:
    array = np.lib.format.open_memmap(path, "w+", part.dtype, part.shape)
    with path.open("r+b") as file:
        size = path.stat().st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, and not as a SIGBUS later
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(error.errno, f"{error.strerror}: {size} bytes needed", str(path)) from error
    return array


def _sound(path: Path, parts: Mapping[str, Part]) -> bool:
    try:
        hashes = json.loads((path / _HASHES).read_bytes())
        return set(hashes) == set(parts) and all(files.hash_file(path / f"{n}.npy") == hashes[n] for n in parts)
    except (OSError, ValueError):
        return False
