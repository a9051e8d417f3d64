"""Which rows of the cache are the run's clips, kept with the run: `status` over a million clips needs no table.

The record counts only while the table, the files' record, the class map, the settings of the data and the clip index
are those that it was made from.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..cache import ClipIndex
from ..pipeline import files
from ..pipeline.clips import SPLITS, Split
from ..pipeline.rundir import Run
from .fingerprints import clips_hash
from .targets import row_keys


class RunRows(NamedTuple):
    """The clips in the table's order: their rows int64 [N] (-1: none), their splits uint8 [N], places in `SPLITS`.

    Of the train clips also what fingerprints of trainings say: `train`, their rows in the order of their ids;
    `train_clips`, their `clips_hash`; `train_identities`, a hash of their ids and identities, "" before extraction.
    """

    rows: npt.NDArray[np.int64]
    splits: npt.NDArray[np.uint8]
    classes: int
    train: npt.NDArray[np.int64]
    train_clips: str
    train_identities: str

    def split(self, name: Split) -> npt.NDArray[np.int64]:
        """Rows of one split."""
        chosen: npt.NDArray[np.int64] = self.rows[self.splits == SPLITS.index(name)]
        return chosen

    @property
    def counts(self) -> dict[str, int]:
        """Clips per split."""
        return {name: int((self.splits == place).sum()) for place, name in enumerate(SPLITS)}


def run_rows(run: Run, index: ClipIndex | None) -> RunRows:
    """The run's rows as recorded, or out of its table; before the run has extracted anything no clip has a row."""
    recorded = _recorded(run, index) if index is not None else None
    if recorded is not None:
        return recorded
    if not (run.base / "extract" / "sources.json").exists():
        index = None
    table = run.table()
    places = {name: place for place, name in enumerate(SPLITS)}
    rows = np.full(len(table.clips), -1, np.int64) if index is None else index.rows(row_keys(run, table.clips))
    splits = np.fromiter((places[clip.split] for clip in table.clips), np.uint8, len(table.clips))
    train = sorted(
        ((row, clip) for row, clip in zip(rows.tolist(), table.clips, strict=True) if clip.split == "train"),
        key=lambda pair: pair[1].clip_id,
    )
    clips = [clip for _, clip in train]
    identities = "" if index is None else files.hash_bytes(json.dumps(row_keys(run, clips)).encode())
    ordered = np.array([row for row, _ in train], np.int64)
    return RunRows(rows, splits, table.num_classes, ordered, clips_hash(clips), identities)


def record_rows(run: Run, index: ClipIndex) -> None:
    """Keep the run's rows with it; nothing is written where the record is up to date."""
    if _recorded(run, index) is not None:
        return
    found, out = run_rows(run, index), io.BytesIO()
    np.savez(out, key=np.array(_key(run, index)), **found._asdict())
    files.write_bytes(run.base / "extract" / "rows.npz", out.getvalue())


def _recorded(run: Run, index: ClipIndex) -> RunRows | None:
    try:
        with np.load(run.base / "extract" / "rows.npz", allow_pickle=False) as stored:
            if str(stored["key"]) == _key(run, index):
                found = {name: stored[name] for name in RunRows._fields}
                return RunRows(**{name: value if value.ndim else value.item() for name, value in found.items()})
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # a record that cannot be read is no record
    return None


def _key(run: Run, index: ClipIndex) -> str:
    parts = (run.base / run.config.data.table, run.base / "extract" / "sources.json", run.base / "classes.json")
    hashes = [files.hash_file(path) for path in parts if path.exists()]
    settings = [run.config.data.model_dump(), run.config.seed]
    return files.hash_bytes(json.dumps([hashes, settings, index.rows_per_shard, index.generations]).encode())
