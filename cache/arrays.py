"""Zarr arrays of a store: their metadata, and the bytes of one chunk. A chunk is a shard of whole rows.

Zarr itself makes metadata and chunks, in memory; they are then written by `pipeline.files`, since zarr does
not fsync. Codecs are plain little-endian bytes and crc32c, so that a flipped bit is an error on reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ..errors import UsageError

DTYPES = ("float16", "float32")
STATUS = "status"
_ROUNDS_TO_INFINITY = {"float16": 65520.0, "float32": 2.0**128 - 2.0**103}


class ArraySpec(NamedTuple):
    """One array of a store: `shape` and `dims` (names) of one row; the clip axis comes in front by itself."""

    shape: tuple[int, ...]
    dtype: str = "float16"
    dims: tuple[str, ...] = ()
    description: str = ""

    def check(self, name: str) -> None:
        """Raises UsageError unless it can be stored."""
        if not name.isidentifier() or name == STATUS:
            raise UsageError(f"array name {name!r}: a plain name other than {STATUS!r} is needed")
        if self.dtype not in DTYPES:
            raise UsageError(f"array {name}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.dims) != len(self.shape) or any(size < 1 for size in self.shape):
            raise UsageError(f"array {name}: one name per axis and sizes >= 1 wanted, got {self}")


STATUS_SPEC = ArraySpec((), "uint8", (), "RowStatus of each row")


class ChunkEncoder:
    """Bytes of one chunk of an array: `encode(block)` for a block [rows <= rows_per_shard, *shape]."""

    def __init__(self, spec: ArraySpec, rows_per_shard: int) -> None:
        self._spec = spec
        self._files: dict[str, Buffer] = {}
        self._array = _create(self._files, spec, rows_per_shard, rows_per_shard, {})

    def encode(self, block: npt.NDArray[Any]) -> bytes:
        """Rows missing at the end are filled (NaN; 0 for the status)."""
        missing = self._array.shape[0] - len(block)
        if missing:
            fill = np.full((missing, *self._spec.shape), fill_value(self._spec), self._spec.dtype)
            block = np.concatenate([block, fill])
        self._array[...] = block
        return self._files[chunk_name(self._spec, 0)].to_bytes()


def chunk_name(spec: ArraySpec, shard: int) -> str:
    """File of a shard's chunk within its array: `c.<shard>.0.0`; all in one folder."""
    return f"c.{shard}" + ".0" * len(spec.shape)


def fill_value(spec: ArraySpec) -> float | int:
    """What rows hold that were not written: NaN, and 0 (PENDING) in the status."""
    return 0 if spec.dtype == "uint8" else float("nan")


def array_metadata(spec: ArraySpec, rows: int, rows_per_shard: int, attributes: Mapping[str, Any]) -> bytes:
    """Content of an array's zarr.json."""
    content: dict[str, Buffer] = {}
    _create(content, spec, rows, rows_per_shard, attributes)
    return content["zarr.json"].to_bytes()


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Content of the group's zarr.json."""
    content: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(content), attributes=dict(attributes))
    return content["zarr.json"].to_bytes()


def fits(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    """bool [rows] for floating values [rows, ...]: True where a row is finite, and stays so as `dtype`.

    float16 holds up to 65504; what rounds beyond (from 65520 on) would become infinite.
    """
    if values.dtype == np.float16:  # by its bits, since isfinite is slow for float16
        fine = (values.view(np.uint16) & 0x7C00) != 0x7C00
    elif values.dtype.itemsize <= np.dtype(dtype).itemsize:
        fine = np.isfinite(values)
    else:
        fine = np.abs(values) < _ROUNDS_TO_INFINITY[dtype]
    result: npt.NDArray[np.bool_] = fine.all(axis=tuple(range(1, values.ndim)))
    return result


def _create(
    content: dict[str, Buffer],
    spec: ArraySpec,
    rows: int,
    rows_per_shard: int,
    attributes: Mapping[str, Any],
) -> zarr.Array[Any]:
    store: Store = MemoryStore(content)
    return zarr.create_array(
        store,
        shape=(rows, *spec.shape),
        chunks=(rows_per_shard, *spec.shape),
        dtype=spec.dtype,
        fill_value=fill_value(spec),
        filters=None,
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("clip", *spec.dims),
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )
