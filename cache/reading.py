"""Reading rows in blocks of whole shards, so that a checksum is paid once a shard and never per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from ..errors import IntegrityError
from .arrays import ArraySpec, chunk_name

_BLOCK_BYTES = 32 << 20
Arrays = dict[str, "zarr.Array[Any]"]


def open_arrays(locate: Callable[[str], Any], specs: Mapping[str, ArraySpec], rows_per_shard: int) -> Arrays:
    """The arrays of a store, opened for reading where `locate` says, and compared with the manifest.

    Raises IntegrityError.
    """
    arrays: Arrays = {}
    for name, spec in specs.items():
        where = locate(name)
        try:
            array = zarr.open_array(where, mode="r")
            found = (array.shape[1:], array.dtype.name, array.chunks)
        except (ValueError, KeyError, TypeError, FileNotFoundError, AttributeError) as error:
            raise IntegrityError(f"{where}/zarr.json cannot be read: {error}") from error
        wanted = (spec.shape, spec.dtype, (rows_per_shard, *spec.shape))
        if found != wanted:
            raise IntegrityError(f"{where}/zarr.json: {wanted} wanted, found {found}")
        arrays[name] = array
    return arrays


def gather(
    array: zarr.Array[Any],
    spec: ArraySpec,
    rows: npt.NDArray[np.int64],
    out: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
) -> None:
    """out[positions[i]] = array[rows[i]], for rows that are DONE, cast to the dtype of `out`.

    Every shard concerned is read once, several neighbours at a time. Raises IntegrityError naming the file if
    its checksum fails, or if a row reads as the fill value.
    """
    order = np.argsort(rows, kind="stable")
    rows, positions = rows[order], positions[order]
    for first, last in _runs(rows, array.chunks[0], array.dtype.itemsize * int(np.prod(array.chunks))):
        start, stop = first * array.chunks[0], (last + 1) * array.chunks[0]
        a, b = np.searchsorted(rows, [start, stop])
        block = _read(array, spec, first, last)
        picked = rows[a:b] - start
        probe = block.reshape(len(block), -1)[picked, 0]
        if np.isnan(probe).any():
            row = int(rows[a:b][np.isnan(probe)][0])
            file = _file(array, spec, row // array.chunks[0])
            raise IntegrityError(f"{file}: row {row} reads as empty, but was written")
        out[_place(positions[a:b])] = block[_place(picked)]


def _place(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | slice:
    """The indices, as a slice where they are neighbours in order: no copy then."""
    neighbours = bool((np.diff(indices) == 1).all())
    return slice(int(indices[0]), int(indices[-1]) + 1) if neighbours else indices


def _runs(rows: npt.NDArray[np.int64], per_shard: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbouring shards that hold any of the sorted rows, up to a block's bytes."""
    longest = max(1, _BLOCK_BYTES // shard_bytes)
    shards = np.unique(rows // per_shard).tolist()
    first = None
    for shard, following in zip(shards, [*shards[1:], -1], strict=False):
        first = shard if first is None else first
        if following != shard + 1 or shard - first + 1 >= longest:
            yield first, shard
            first = None


def _read(array: zarr.Array[Any], spec: ArraySpec, first: int, last: int) -> npt.NDArray[Any]:
    per_shard = array.chunks[0]
    try:
        return np.asarray(array[first * per_shard : (last + 1) * per_shard])
    except ValueError as error:
        if first == last:
            raise IntegrityError(f"{_file(array, spec, first)} is damaged: {error}") from error
    parts = [_read(array, spec, shard, shard) for shard in range(first, last + 1)]
    return np.concatenate(parts)


def _file(array: zarr.Array[Any], spec: ArraySpec, shard: int) -> str:
    return f"{array.store_path}/{chunk_name(spec, shard)} (shard {shard})"
