"""Stores in one HDF5 file: a group for each, with a data set for each array and for what is known of the clips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ..errors import IntegrityError
from ..pipeline import files
from .index import RowKey
from .interchange import Block, Header, Package, Writer, rows_of_block
from .ledger import Failure, RowStatus

_HEADER, _HASHES = "uniego", "hashes"
_KEYS, _REASONS = ("clip_id", "identity"), ("reason", "message")


class Hdf5Writer(Writer):
    """`<store>/<array>` [N, …], chunked by blocks and checksummed (fletcher32); `clip_id`, `identity`, `status`,
    `reason`, `message` [N] beside them. Reasons and messages are ASCII, escaped as inside the quotes of JSON: they
    quote what libraries and file names say, and HDF5 holds neither NUL nor what is no Unicode text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = h5py.File(self._partial, "w")

    def write(self, header: Header, blocks: Iterable[Block]) -> None:
        """Write one store as a group."""
        group = self._file.create_group(header.name)
        group.attrs[_HEADER] = json.dumps(header.to_json(), sort_keys=True)
        for name, spec in header.arrays.items():
            _create(group, name, (header.rows, *spec.shape), spec.dtype, header.rows_per_block)
        _create(group, "status", (header.rows,), "uint8", header.rows_per_block)
        for name in (*_KEYS, *_REASONS):
            group.create_dataset(name, (header.rows,), h5py.string_dtype())
        hashes, start = [], 0
        for block in blocks:
            stop = start + len(block.keys)
            for name, values in block.values.items():
                group[name][start:stop] = values
            reasons = {failure.clip_id: failure for failure in block.failures}
            failures = [reasons.get(key.clip_id, Failure("", "", "")) for key in block.keys]
            group["status"][start:stop] = block.status
            for name in _KEYS:
                group[name][start:stop] = [getattr(key, name) for key in block.keys]
            for name in _REASONS:
                group[name][start:stop] = [json.dumps(getattr(failure, name))[1:-1] for failure in failures]
            hashes.append(block.hash())
            start = stop
        group.create_dataset(_HASHES, data=np.array(hashes, "S32"))

    def close(self) -> None:
        self._file.close()
        super().close()

    def discard(self) -> None:
        if "_file" in vars(self):
            self._file.close()
        super().discard()


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
    chunks = (min(rows, max(shape[0], 1)), *shape[1:])
    group.create_dataset(name, shape, dtype, chunks=chunks, maxshape=(None, *shape[1:]), fletcher32=True)


class Hdf5Package(Package):
    """One group of an HDF5 file. `content` is a hash of the whole file."""

    def __init__(self, path: Path, group: Any, content: str) -> None:
        self._where = f"{path}: {group.name.strip('/')}"
        self.source, self.content = path.name, content
        self._group = group
        self.header = Header.from_json(json.loads(group.attrs[_HEADER]), self._where)

    def clips(self) -> Iterator[tuple[RowKey, RowStatus, Failure | None]]:
        size = self.header.rows_per_block
        for number in range(self.header.blocks):
            piece = slice(number * size, min((number + 1) * size, self.header.rows))
            try:
                ids, identities = (self._group[name].asstr()[piece].tolist() for name in _KEYS)
                reasons, messages = (
                    [json.loads(f'"{text}"') for text in self._group[name].asstr()[piece]] for name in _REASONS
                )
                status, stored = self._group["status"][piece], self._group[_HASHES][number].decode()
            except (OSError, KeyError, ValueError) as error:
                raise IntegrityError(f"{self._where}: clips of block {number} cannot be read: {error}") from error
            failed = zip(ids, reasons, messages, (status == RowStatus.FAILED).tolist(), strict=True)
            failures = [Failure(clip, reason, message) for clip, reason, message, wanted in failed if wanted]
            keys = [RowKey(*pair) for pair in zip(ids, identities, strict=True)]
            block = Block(keys, {}, status, failures)
            if block.hash() != stored:
                raise IntegrityError(f"{self._where}: clips of block {number} differ from what was written")
            yield from rows_of_block(block)

    def read_values(self, block: int) -> dict[str, npt.NDArray[Any]]:
        size = self.header.rows_per_block
        try:
            return {name: self._group[name][block * size : (block + 1) * size] for name in self.header.arrays}
        except (OSError, KeyError, ValueError) as error:
            raise IntegrityError(f"{self._where}: block {block} is damaged: {error}") from error


def open_hdf5(path: Path) -> list[Package]:
    """The stores of an exported file; none of a file that was made elsewhere, HDF5 or not. Raises IntegrityError."""
    if not h5py.is_hdf5(path):
        return []
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise IntegrityError(f"{path} cannot be opened: {error}") from error
    groups = [group for group in file.values() if isinstance(group, h5py.Group) and _HEADER in group.attrs]
    content = files.hash_file(path) if groups else ""
    return [Hdf5Package(path, group, content) for group in groups]
