"""Stores as folders of safetensors files, one a block of rows; nothing but safetensors is needed to read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from ..errors import IntegrityError
from ..pipeline import files
from .index import RowKey
from .interchange import Block, Header, Package, Writer, rows_of_block
from .ledger import Failure, RowStatus

_HEADER = "export.json"
_CLIPS, _STATUS = "clips", "status"


class SafetensorsWriter(Writer):
    """`<store>/<block>.safetensors`: the arrays [n, …] and `status` [n]; metadata `clips`: ids, identities, failures.
    `<store>/export.json`: what the store is, and the hashes of these files."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        files.make_dir(self._partial)

    def write(self, header: Header, blocks: Iterable[Block]) -> None:
        """Write one store as a folder."""
        folder = self._partial / header.name
        folder.mkdir()
        hashes = {}
        for number, block in enumerate(blocks):
            clips = json.dumps({"keys": block.keys, "failures": block.failures})
            data = save({**block.values, _STATUS: block.status}, {_CLIPS: clips})
            name = _name(number)
            (folder / name).write_bytes(data)
            hashes[name] = files.hash_bytes(data)
        files.write_json(folder / _HEADER, {**header.to_json(), "files": hashes})


class SafetensorsPackage(Package):
    """One folder. `content` is the hash of export.json, which holds those of all files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        data = (folder / _HEADER).read_bytes()
        try:
            stored = json.loads(data)
            self._hashes: dict[str, str] = stored.pop("files")
        except (ValueError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{folder / _HEADER} cannot be read: {error}") from error
        self.source, self.content = folder.parent.name, files.hash_bytes(data)
        self.header = Header.from_json(stored, str(folder / _HEADER))

    def clips(self) -> Iterator[tuple[RowKey, RowStatus, Failure | None]]:
        for number in range(self.header.blocks):
            path = self._folder / _name(number)
            if not path.is_file() or files.hash_file(path) != self._hashes.get(path.name):
                raise IntegrityError(f"{path} is missing or differs from what was written")
            try:
                with safe_open(path, "np") as file:
                    clips, status = json.loads(file.metadata()[_CLIPS]), file.get_tensor(_STATUS)
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                raise IntegrityError(f"{path} cannot be read: {error}") from error
            keys = [RowKey(*key) for key in clips["keys"]]
            yield from rows_of_block(Block(keys, {}, status, [Failure(*failure) for failure in clips["failures"]]))

    def read_values(self, block: int) -> dict[str, npt.NDArray[Any]]:
        path = self._folder / _name(block)
        data = path.read_bytes()
        if files.hash_bytes(data) != self._hashes.get(path.name):
            raise IntegrityError(f"{path} differs from what was written")
        tensors: dict[str, npt.NDArray[np.generic]] = load(data)
        return {name: tensors[name] for name in self.header.arrays}


def open_safetensors(folder: Path) -> list[Package]:
    """The stores of an exported folder; none of a folder that was made elsewhere. Raises IntegrityError."""
    return [SafetensorsPackage(path.parent) for path in sorted(folder.glob(f"*/{_HEADER}"))]


def _name(block: int) -> str:
    return f"{block:06d}.safetensors"
