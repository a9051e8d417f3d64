"""The file that `uniego encode` writes: Parquet, .npy or Zarr, and what lies beside it.

features.parquet               a row per clip: clip_id, video, start_s, end_s, embedding, ...
features.npy, features.zarr    embeddings float32 [N, width]; features.npy.clips.csv says which row is which clip
<out>.failures.csv             clips that are not in it, with their reasons (only where there are any)
<out>.json                     the record: settings, counts, classes; written last
<out>.work/                    while it is being made
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache import Failure, FeatureStore
from ..errors import FingerprintMismatch, IntegrityError, UsageError, fingerprint_difference
from ..pipeline import files
from ..pipeline.clips import Clip
from .encoder import Encoder

FORMATS = (".parquet", ".npy", ".zarr")
_ROWS = 4096  # that are in memory at a time


@dataclass(frozen=True)
class Embeddings:
    """What an output holds: the clips in order, and at which `rows` of the store their arrays lie."""

    clips: tuple[Clip, ...]
    store: FeatureStore
    rows: npt.NDArray[np.int64]
    encoder: Encoder

    @property
    def from_table(self) -> bool:
        """Whether a clip table says what the clips show."""
        return "label" in self.clips[0].extra

    def parts(self) -> Iterator[tuple[slice, dict[str, npt.NDArray[np.float32]]]]:
        """The arrays in portions: which clips, and "tokens" [n, width] and perhaps "logits" [n, C] of them."""
        for at in range(0, len(self.rows), _ROWS):
            where = slice(at, min(at + _ROWS, len(self.rows)))
            yield where, {name: self.store.load(name, self.rows[where], np.float32)[0] for name in self.store.arrays}

    def columns(self, where: slice, logits: npt.NDArray[np.float32] | None) -> dict[str, list[Any]]:
        """What a portion's rows are called and show, by column."""
        clips = self.clips[where]
        columns: dict[str, list[Any]] = {
            "clip_id": [clip.clip_id for clip in clips],
            "video": [clip.sources["ego"] for clip in clips],
            "start_s": [clip.start_s for clip in clips],
            "end_s": [clip.end_s for clip in clips],
        }
        if self.from_table:
            columns |= {"split": [clip.split for clip in clips], "label": [clip.extra["label"] for clip in clips]}
        if logits is not None:
            scores = np.exp(logits - logits.max(1, keepdims=True))
            columns["predicted"] = [self.encoder.class_name(int(best)) for best in logits.argmax(1)]
            columns["probability"] = [float(p) for p in scores.max(1) / scores.sum(1)]
        return columns


@dataclass(frozen=True)
class Output:
    """One output: `path`, and the files beside it."""

    path: Path

    @classmethod
    def at(cls, path: Path) -> Output:
        """The output at a path. Raises `UsageError` for a suffix that names no format, or one whose library is not
        installed."""
        if path.suffix not in FORMATS:
            raise UsageError(f"--out {path}: the name must end in {', '.join(FORMATS)}, which says the format")
        if path.suffix == ".parquet":
            _pyarrow()
        return cls(path)

    @property
    def work(self) -> Path:
        """Where it is made."""
        return self.beside("work")

    def beside(self, what: str) -> Path:
        """`<out>.<what>`."""
        return self.path.with_name(f"{self.path.name}.{what}")

    def record(self) -> dict[str, Any]:
        """What `seal` wrote."""
        record: dict[str, Any] = json.loads(self.beside("json").read_text(encoding="utf-8"))
        return record

    def finished(self, fingerprint: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Whether it is there, made under these settings; with `overwrite` an older one is removed first.

        Raises `FingerprintMismatch` where it was made under others, `UsageError` where something else is at its place,
        `IntegrityError` where its files are not as they were written.
        """
        if overwrite:
            for path in (self.beside("json"), *self._beside(), self.path):  # the record first
                files.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return False
        if not self.beside("json").exists():
            if self.path.exists() and not self.work.exists():
                raise UsageError(f"{self.path} exists, and not of `uniego encode`: choose another name, or --overwrite")
            return False
        record = self.record()
        different = fingerprint_difference(record["fingerprint"], json.loads(json.dumps(fingerprint)))
        if different:
            advice = "Choose another --out, or make it anew with --overwrite; nothing was changed."
            raise FingerprintMismatch(f"{self.path}", different, advice)
        changed = [name for name, size in record["files"].items() if self._size(self.path.with_name(name)) != size]
        if changed:
            raise IntegrityError(
                f"{', '.join(changed)} beside {self.beside('json')} is missing or changed: --overwrite makes it anew"
            )
        if self.work.exists():
            files.remove_tree(self.work)
        return True

    def write(self, embeddings: Embeddings, failures: Sequence[Failure]) -> None:
        """Write everything but the record; each file whole or not at all, the output itself last."""
        writers: dict[str, Callable[[Embeddings], None]] = {
            ".parquet": self._write_parquet,
            ".npy": self._write_npy,
            ".zarr": self._write_zarr,
        }
        self.write_failures(failures)
        writers[self.path.suffix](embeddings)

    def write_failures(self, failures: Sequence[Failure]) -> None:
        """`<out>.failures.csv`: clip_id, reason class, message."""
        path = self.beside("failures.csv")
        if failures:
            files.write_bytes(path, _csv(["clip_id", "reason", "message"], [tuple(failure) for failure in failures]))
        else:
            path.unlink(missing_ok=True)

    def seal(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record: from now on it is finished. Returns it."""
        there = [path for path in (self.path, *self._beside()) if path.exists()]
        sealed = {**record, "format": 1, "files": {path.name: self._size(path) for path in there}}
        files.write_json(self.beside("json"), sealed)
        return sealed

    def _beside(self) -> list[Path]:
        return [self.beside(what) for what in ("failures.csv", "clips.csv", "logits.npy")]

    def _size(self, path: Path) -> int:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size if path.exists() else -1

    def _write_parquet(self, embeddings: Embeddings) -> None:
        arrow, parquet = _pyarrow()
        text = json.dumps({"classes": list(embeddings.encoder.classes)}, ensure_ascii=False)
        temporary, writer = self.work / "output", None
        for where, arrays in embeddings.parts():
            columns = embeddings.columns(where, arrays.get("logits"))
            table = {name: _column(arrow, name, values) for name, values in columns.items()}
            table["embedding"] = _vectors(arrow, arrays["tokens"])
            if "logits" in arrays:
                table["logits"] = _vectors(arrow, arrays["logits"])
            portion = arrow.table(table).replace_schema_metadata({"uniego": text})
            writer = writer or parquet.ParquetWriter(temporary, portion.schema)
            writer.write_table(portion)
        if writer is not None:
            writer.close()
        _move(temporary, self.path)

    def _write_npy(self, embeddings: Embeddings) -> None:
        self._write_clips(embeddings)
        targets = {"tokens": self.path, "logits": self.beside("logits.npy")}
        for name, spec in sorted(embeddings.store.arrays.items()):  # the logits first
            temporary = self.work / "output"
            shape = (len(embeddings.rows), *spec.shape)
            mapped = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            for where, arrays in embeddings.parts():
                mapped[where] = arrays[name]
            mapped.flush()
            del mapped
            _move(temporary, targets[name])

    def _write_zarr(self, embeddings: Embeddings) -> None:
        import zarr

        self._write_clips(embeddings)
        temporary = self.work / "output"
        files.remove_tree(temporary)
        attributes: Any = {"classes": list(embeddings.encoder.classes)}
        group = zarr.open_group(temporary, mode="w", attributes=attributes)
        names = {"tokens": "embeddings", "logits": "logits"}
        made = {
            name: group.create_array(
                names[name],
                shape=(len(embeddings.rows), *spec.shape),
                chunks=(min(_ROWS, len(embeddings.rows)), *spec.shape),
                dtype="float32",
            )
            for name, spec in sorted(embeddings.store.arrays.items())
        }
        for where, arrays in embeddings.parts():
            for name, array in made.items():
                array[where] = arrays[name]
        if self.path.exists():  # of a command that was killed before it wrote the record
            files.remove_tree(self.path)
        _move(temporary, self.path)

    def _write_clips(self, embeddings: Embeddings) -> None:
        """`<out>.clips.csv`: a line per row of the array."""
        lines: list[tuple[Any, ...]] = []
        columns: dict[str, list[Any]] = {}
        for where, arrays in embeddings.parts():
            columns = embeddings.columns(where, arrays.get("logits"))
            lines += zip(range(where.start, where.stop), *columns.values(), strict=True)
        files.write_bytes(self.beside("clips.csv"), _csv(["row", *columns], lines))


def _csv(header: Sequence[str], lines: Sequence[tuple[Any, ...]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in line] for line in lines)
    return out.getvalue().encode()


def _column(arrow: Any, name: str, values: list[Any]) -> Any:
    kinds = {"start_s": arrow.float64(), "end_s": arrow.float64(), "probability": arrow.float32()}
    return arrow.array(values, kinds.get(name, arrow.string()))


def _vectors(arrow: Any, values: npt.NDArray[np.float32]) -> Any:
    """Float32 [n, D] as a column of lists of D."""
    return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError(
            "writing Parquet needs pyarrow: pip install 'uniego[parquet]', or let --out end in .npy or .zarr"
        ) from None
    return pyarrow, parquet


def _move(temporary: Path, target: Path) -> None:
    """Make what was written durable, and give it its name."""
    files.sync_tree(temporary)
    files.operations.rename(temporary, target)
    files.sync_dir(target.parent)
