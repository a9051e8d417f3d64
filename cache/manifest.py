"""What a store is: its manifest, and Zarr metadata that explain it to whoever opens it with plain zarr."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import (
    FingerprintMismatch,
    IntegrityError,
    MissingInputError,
    UsageError,
    fingerprint_difference,
)
from ..pipeline import files
from .arrays import STATUS, STATUS_SPEC, ArraySpec, array_metadata, group_metadata
from .index import ClipIndex
from .ledger import STATUS_MEANING

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ZARR_FOLDER = "features.zarr"
LEDGER_FOLDER = "ledger"


class Manifest(NamedTuple):
    """Content of manifest.json; never changes once written."""

    name: str
    rows_per_shard: int
    fingerprint: dict[str, Any]
    attributes: dict[str, Any]
    arrays: dict[str, ArraySpec]

    @classmethod
    def make(
        cls,
        name: str,
        rows_per_shard: int,
        arrays: Mapping[str, ArraySpec],
        fingerprint: Mapping[str, Any],
        attributes: Mapping[str, Any],
    ) -> Manifest:
        """Raises UsageError for arrays that cannot be stored, or mappings that JSON cannot hold."""
        if not arrays or name.startswith("."):
            raise UsageError(f"store {name!r}: needs a plain name and at least one array")
        for array, spec in arrays.items():
            spec.check(array)
        try:
            plain = [json.loads(json.dumps(dict(m), allow_nan=False)) for m in (fingerprint, attributes)]
        except (TypeError, ValueError) as error:
            raise UsageError(f"store {name}: fingerprint or attributes are not plain JSON: {error}") from error
        return cls(name, rows_per_shard, plain[0], plain[1], dict(arrays))

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """Raises MissingInputError or IntegrityError."""
        path = store / MANIFEST
        try:
            stored = json.loads(path.read_bytes())
            version = stored.pop("schema_version")
            manifest = cls(**{**stored, "arrays": {k: _spec(v) for k, v in stored["arrays"].items()}})
        except FileNotFoundError:
            raise MissingInputError(f"no feature store at {store}: extraction makes it") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}") from error
        if version != SCHEMA_VERSION:
            raise IntegrityError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}")
        return manifest

    def write(self, store: Path) -> None:
        """Write manifest.json, durably. Raises OSError."""
        arrays = {name: spec._asdict() for name, spec in self.arrays.items()}
        files.write_json(store / MANIFEST, {**self._asdict(), "arrays": arrays, "schema_version": SCHEMA_VERSION})

    def check_same(self, wanted: Manifest, store: Path) -> Manifest:
        """Itself, or FingerprintMismatch if a store made by it cannot hold what `wanted` asks for."""
        fields = fingerprint_difference(self._identity(), wanted._identity())
        if fields:
            raise FingerprintMismatch(
                f"feature store {store}",
                {name.removeprefix("fingerprint."): pair for name, pair in fields.items()},
                "use another cache.root, or remove this store with --overwrite; nothing was changed",
            )
        return self

    def write_metadata(self, store: Path, index: ClipIndex) -> None:
        """Write the Zarr metadata that are missing or shorter than the index; arrays never shrink."""
        folder = store / ZARR_FOLDER
        if not (folder / "zarr.json").exists():
            files.write_bytes(folder / "zarr.json", group_metadata(self._explanation()))
        for name, spec in {**self.arrays, STATUS: STATUS_SPEC}.items():
            path = folder / name / "zarr.json"
            if not path.exists() or _length(path) < index.num_rows:
                explanation = _explain(name, spec)
                files.write_bytes(path, array_metadata(spec, index.num_rows, self.rows_per_shard, explanation))

    def _identity(self) -> dict[str, Any]:
        arrays = {name: f"{list(spec.shape)} {spec.dtype}" for name, spec in self.arrays.items()}
        return {"fingerprint": self.fingerprint, "arrays": arrays}

    def _explanation(self) -> dict[str, Any]:
        return {
            **self.attributes,
            "name": self.name,
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "rows": (
                "row i of every array belongs to one clip; ../../index.json names the files that list the "
                "clips (clip id, tab, identity; one row a line) and the row each of them starts at"
            ),
            "valid": f"only rows whose {STATUS} is 1 hold features; all others are NaN, not zero",
            "rows_per_shard": self.rows_per_shard,
            "ledger": "../ledger/*.jsonl: per shard content hashes, counts and reasons of failures",
        }


def _explain(name: str, spec: ArraySpec) -> dict[str, Any]:
    axes = {"clip": "row of the clip index", **dict(zip(spec.dims, spec.shape, strict=True))}
    if name == STATUS:
        meanings = {str(int(code)): f"{code.name.lower()}: {text}" for code, text in STATUS_MEANING.items()}
        return {"description": "state of each row", "axes": axes, "codes": meanings}
    return {"description": spec.description, "units": "dimensionless", "axes": axes}


def _spec(stored: Mapping[str, Any]) -> ArraySpec:
    spec = ArraySpec(**stored)
    return spec._replace(shape=tuple(spec.shape), dims=tuple(spec.dims))


def _length(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["shape"][0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
