"""A teacher without a network: its features were made elsewhere and are read from files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import UsageError, WeightsError
from ...pipeline.poses import Pose
from .base import Teacher
from .config import TeacherConfig, View
from .stored import Entries, FeatureFileError, StoredFeatures, open_stored

ZERO = 1e-6
"""Features that nowhere exceed this are zeros: the released loader leaves such targets out."""


class PrecomputedTeacher(Teacher):
    """Features [D] or [T, D] of each clip, under the clip's id or the stem of its video's name.

    All clips have the rows and width of the first readable entry, in the order of their names. `weights_hash` is
    `StoredFeatures.identity`.
    """

    reads = "stored"

    def __init__(self, key: str, view: View, config: TeacherConfig) -> None:
        source = config.source
        if source is None:
            raise WeightsError(
                f"teacher {key!r} has no features: set teachers.{key}.weights to dir:<folder of .npy files or Zarr "
                "group> or file:<HDF5 file>; or leave the teacher out"
            )
        try:
            self._stored = open_stored(source.location, key)
        except WeightsError as error:
            raise WeightsError(f"teacher {key!r}: {error}") from error
        zero = config.zero_is_missing
        self._zero_is_missing = self._stored.layout == "npy" if zero is None else zero
        self._entries = Entries(self._stored, f"teacher {key!r}")
        self._first, rows, dim = _first_shape(key, self._stored, config)
        super().__init__(key, view, config, nn.Identity(), dim, self._stored.identity(), rows=rows)

    def find(self, clip_id: str, stem: str | None) -> str | None:
        """The entry of a clip, None where there is none; see `Entries.find`."""
        return self._entries.find(clip_id, stem)

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self._stored.names)

    def read(self, clip_id: str, stem: str | None) -> Tensor:
        """The stored feature of a clip, float32 [rows, dim].

        Raises `FeatureFileError`: missing when there is none (or only zeros, if these mean missing), unreadable for
        an entry that is no finite floating array of the teacher's rows and width.
        """
        name = self.find(clip_id, stem)
        if name is None:
            wanted = " or ".join(dict.fromkeys(repr(text) for text in (clip_id, stem) if text is not None))
            raise FeatureFileError("missing", f"{self._stored.path}: nothing called {wanted}")
        values = _as_rows(self._stored, name, self.config)
        if self._zero_is_missing and np.abs(values).max() <= ZERO:
            raise FeatureFileError("missing", f"{self._where(name)}: all zeros, which means none (zero_is_missing)")
        if values.shape != (self.rows, self.dim):
            raise FeatureFileError(
                "unreadable",
                f"{self._where(name)}: shape {list(values.shape)}, but {[self.rows, self.dim]} as in {self._first}; "
                "set dim if files are transposed, rows if their number of rows differs",
            )
        return torch.from_numpy(values)

    def _where(self, name: str) -> str:
        return f"{self._stored.path}: {name}"

    def prepare(self, frames: Tensor | None = None, pose: Pose | None = None) -> Tensor:
        """Refused: there is nothing to prepare; see `read`."""
        raise UsageError(f"teacher {self.key!r} has stored features; they are read, not computed")

    def forward(self, batch: Tensor) -> Tensor:
        """[B, rows, dim], as it is."""
        return batch

    def architecture(self) -> dict[str, Any]:
        return {"layout": self._stored.layout}

    def preprocessing(self) -> dict[str, Any]:
        return {"zero_is_missing": self._zero_is_missing, "dim": self.config.dim, "rows": self.config.rows}

    def describe(self) -> dict[str, Any]:
        """Adds how many entries there are, and what the content's hash covers."""
        return {
            "key": self.key,
            "source": str(self.config.source),
            "licence": "unknown",
            "note": "features made elsewhere, read from files",
            "entries": len(self._stored.names),
            "zero_is_missing": self._zero_is_missing,
            "content": "the hash `weights` covers all names and sizes and the values of at most 256 entries",
        }


def _as_rows(stored: StoredFeatures, name: str, config: TeacherConfig) -> npt.NDArray[np.float32]:
    """An entry as finite float32 [T, D], by the released loader's rules.

    [D] is one row; [D, T] is transposed where `dim` says so; higher ranks are flattened to [-1, D]; with `rows`, that
    many of the T rows are picked.
    """
    where = f"{stored.path}: {name}"
    values = stored.read(name)
    if values.dtype.kind != "f" or values.ndim == 0 or values.size == 0:
        raise FeatureFileError(
            "unreadable", f"{where}: {values.dtype} {list(values.shape)}; expected floating numbers [D] or [T, D]"
        )
    if config.dim is not None and values.ndim == 2 and values.shape[0] == config.dim != values.shape[1]:
        values = values.T
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused
        values = values.reshape(-1, values.shape[-1]).astype(np.float32)
    if not np.isfinite(values).all():
        raise FeatureFileError("unreadable", f"{where}: holds numbers that are not finite")
    if config.rows is not None:
        values = values[np.linspace(0, len(values) - 1, config.rows).astype(np.int64)]
    if config.dim is not None and values.shape[-1] != config.dim:
        raise FeatureFileError("unreadable", f"{where}: width {values.shape[-1]}, but dim is {config.dim}")
    return np.ascontiguousarray(values)


def _first_shape(key: str, stored: StoredFeatures, config: TeacherConfig) -> tuple[str, int, int]:
    """Name, rows and width of the first readable entry."""
    problem = ""
    for name in stored.names:
        try:
            rows, dim = _as_rows(stored, name, config).shape
        except FeatureFileError as error:
            problem = problem or str(error)
            continue
        return name, rows, dim
    raise WeightsError(f"teacher {key!r}: none of {len(stored.names)} entries can be read; the first: {problem}")
