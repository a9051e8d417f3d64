"""Features that were made elsewhere: a folder of .npy files, an HDF5 file or a Zarr group, read by name."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import zarr

from ...errors import UniegoError, UsageError, WeightsError
from .facts import TEACHERS

Layout = Literal["npy", "hdf5", "zarr"]
Reason = Literal["missing", "unreadable"]
Array = npt.NDArray[Any]

SAMPLED = 256
"""Entries whose content enters the identity."""


class FeatureFileError(UniegoError):
    """One clip's stored feature cannot be had; `reason` is missing or unreadable."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions with other arguments do not survive pickling
        return FeatureFileError, (self.reason, str(self))


class StoredFeatures(ABC):
    """Arrays by name. `names` is sorted; a name may hold `/` where files or data sets lie in folders or groups."""

    layout: Layout

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names

    @abstractmethod
    def read(self, name: str) -> Array:
        """The array of an entry. Raises `FeatureFileError`; `OSError` when the machine is at fault."""

    @abstractmethod
    def mark(self, name: str) -> str:
        """What of an entry can be told without reading it: its size, or shape and type."""

    def identity(self) -> str:
        """Hash (blake2b-128, hex) that stands for the content, cheap for many entries.

        Over the names and marks of all entries, and the values of 256 of them, spread evenly over the sorted names;
        of all, where there are no more. Added, removed or renamed entries and features made anew are seen; a single
        entry that is replaced by another of its size may not be.
        """
        digest = hashlib.blake2b(self.layout.encode(), digest_size=16)
        for name in self.names:
            digest.update(f"{name}\0{self.mark(name)}\0".encode())
        count = len(self.names)
        for index in np.unique(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int)):
            try:
                values = np.ascontiguousarray(self.read(self.names[index]))
                digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
            except FeatureFileError:
                digest.update(b"unreadable")
        return digest.hexdigest()


class Entries:
    """Which entry is a clip's. `title` names whose entries they are, in messages."""

    def __init__(self, stored: StoredFeatures, title: str) -> None:
        self._path, self._title = stored.path, title
        self._exact = frozenset(stored.names)
        self._named: dict[str, list[str]] = {}  # by the last part of the name
        for name in stored.names:
            self._named.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, clip_id: str, stem: str | None) -> str | None:
        """The entry of a clip: by its id, then by its video's stem, then by what that has before its first dot.

        The released code cuts names at the first dot in one place and at the last in another. None when there is no
        such entry. Raises `UsageError` naming both when two entries in different folders are called so.
        """
        if clip_id in self._exact:
            return clip_id
        for wanted in (clip_id, stem, None if stem is None else stem.partition(".")[0]):
            found = self._named.get(wanted, []) if wanted else []
            if len(found) > 1:
                raise UsageError(
                    f"{self._title}: {found[0]} and {found[1]} in {self._path} could both be the feature "
                    f"of clip {clip_id!r}; name it by the clip's id, or point weights at one folder"
                )
            if found:
                return found[0]
        return None


class NpyFolder(StoredFeatures):
    """`<name>.npy` files in a folder and the folders inside it."""

    layout = "npy"

    def __init__(self, path: Path) -> None:
        self._sizes: dict[str, int] = {}
        _scan(path, "", self._sizes)
        super().__init__(path, sorted(self._sizes))

    def read(self, name: str) -> Array:
        path = self.path / f"{name}.npy"
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except FileNotFoundError:
            raise FeatureFileError("missing", f"{path}: no such file any more") from None
        except (ValueError, EOFError) as error:
            raise FeatureFileError("unreadable", f"{path}: no NumPy array can be read: {error}") from error

    def mark(self, name: str) -> str:
        return str(self._sizes[name])


def _scan(folder: Path, prefix: str, sizes: dict[str, int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                _scan(Path(entry.path), f"{prefix}{entry.name}/", sizes)
            elif entry.name.endswith(".npy"):
                sizes[prefix + entry.name.removesuffix(".npy")] = entry.stat().st_size


class Hdf5File(StoredFeatures):
    """Data sets of an HDF5 file, or of one group of it, at any depth."""

    layout = "hdf5"

    def __init__(self, path: Path, group: str) -> None:
        self._file = h5py.File(path, "r")
        self._root = self._file.get(group, self._file)
        if isinstance(self._root, h5py.Dataset):
            raise WeightsError(f"{path}: {group} is one data set {self._root.shape}; {_WANTED['hdf5']}")
        marks: dict[str, str] = {}

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                marks[name] = f"{item.dtype}{item.shape}"

        self._root.visititems(note)
        self._marks = marks
        super().__init__(path, sorted(marks))

    def read(self, name: str) -> Array:
        try:
            return np.asarray(self._root[name][()])
        except (OSError, KeyError, ValueError) as error:  # HDF5 calls a damaged chunk an OSError
            raise FeatureFileError("unreadable", f"{self.path}: {name} cannot be read: {error}") from error

    def mark(self, name: str) -> str:
        return self._marks[name]


_GROUP = "a Zarr group of features holds the arrays ids [N] and features [N, …]"


class ZarrGroup(StoredFeatures):
    """A Zarr group of two arrays: `ids`, text [N], and `features`, [N, D] or [N, T, D]."""

    layout = "zarr"

    def __init__(self, path: Path, group: str) -> None:
        try:
            root = zarr.open_group(path, mode="r")
        except zarr.errors.ContainsArrayError as error:
            raise WeightsError(f"{path}: a single Zarr array; {_GROUP}") from error
        inner = root.get(group)
        root = inner if isinstance(inner, zarr.Group) else root
        ids, features = root.get("ids"), root.get("features")
        if not isinstance(ids, zarr.Array) or not isinstance(features, zarr.Array):
            raise WeightsError(f"{path}: {_GROUP}")
        self._features = features
        names = [_text(value) for value in np.asarray(ids[:]).tolist()]
        if len(names) != features.shape[0] or len(set(names)) != len(names):
            raise WeightsError(
                f"{path}: ids has {len(names)} entries, {len(set(names))} different ones; features has "
                f"{features.shape[0]} rows"
            )
        self._rows = {name: row for row, name in enumerate(names)}
        self._block = lru_cache(maxsize=4)(self._read_block)
        super().__init__(path, sorted(names))

    def read(self, name: str) -> Array:
        per_block = self._features.chunks[0]
        row = self._rows[name]
        try:
            return np.asarray(self._block(row // per_block)[row % per_block])
        except (ValueError, RuntimeError) as error:  # what codecs raise
            raise FeatureFileError("unreadable", f"{self.path}: {name} cannot be read: {error}") from error

    def _read_block(self, block: int) -> Array:
        size = self._features.chunks[0]
        return np.asarray(self._features[block * size : (block + 1) * size])

    def mark(self, name: str) -> str:
        return f"{self._features.dtype}{self._features.shape[1:]}"


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def open_stored(path: str | Path, teacher: str) -> StoredFeatures:
    """Open the features at `path`; a folder or group inside that is called like the teacher is taken instead.

    Raises `WeightsError` when there is nothing, nothing of a known layout, or another teacher's folder or group alone.
    """
    path = Path(path).expanduser()
    try:
        return _open(path, teacher)
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: features cannot be opened: {error}") from error


def _open(path: Path, teacher: str) -> StoredFeatures:
    stored: StoredFeatures
    if path.is_dir():
        if (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
            stored = ZarrGroup(path, teacher)
        else:
            stored = NpyFolder(path / teacher if (path / teacher).is_dir() else path)
    elif path.is_file():
        if not h5py.is_hdf5(path):
            raise WeightsError(f"{path}: no HDF5 file; name a folder of .npy files or a Zarr group with dir:")
        stored = Hdf5File(path, teacher)
    else:
        raise WeightsError(f"{path}: no such file or folder")
    if not stored.names:
        raise WeightsError(f"{stored.path}: holds no features; {_WANTED[stored.layout]}")
    others = sorted({name.split("/")[0] for name in stored.names if "/" in name} & (set(TEACHERS) - {teacher}))
    if others:  # taken as they are, they would be another teacher's features under this one's name
        raise WeightsError(
            f"{stored.path}: holds features of {', '.join(others)}, and none of {teacher}; if those are meant, name "
            "that folder itself, or a file of them alone"
        )
    return stored


_WANTED: dict[Layout, str] = {
    "npy": "expected <clip id or video's stem>.npy files",
    "hdf5": "expected a data set for each clip, called by its id or its video's stem",
    "zarr": "ids and features are empty",
}
