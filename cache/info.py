"""What a store is and what it takes, from its manifest, its ledger and the sizes of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, MissingInputError
from ..pipeline import files
from ..pipeline.objects import origin
from .index import LOCK_FILE, ClipIndex
from .manifest import SCHEMA_VERSION
from .store import FeatureStore
from .verify import store_names


def describe(root: Path) -> dict[str, Any]:
    """JSON-able: {"cache", "schema_version", "rows", "rows_per_shard", "shards", "bytes", "files", "stores": {…}}.

    `rows` counts clips, dropped ones included. A store that cannot be opened has only a "problem". Raises
    `MissingInputError` or `IntegrityError` for the clip index.
    """
    index = ClipIndex.open(root)
    remote = origin(root)
    sizes = _sizes(root) if remote is None else {name: found.size for name, found in remote.list().items()}
    stores = {name: _describe(root / name, index, sizes) for name in store_names(root)}
    return {
        "cache": str(root) if remote is None else remote.url,
        "schema_version": SCHEMA_VERSION,
        "rows": sum(generation.rows for generation in index.generations),
        "rows_per_shard": index.rows_per_shard,
        "shards": index.num_shards,
        "bytes": sum(sizes.values()),
        "files": len(sizes),
        "stores": stores,
    }


def fingerprint_hash(store: FeatureStore) -> str:
    """What stands for a store's whole fingerprint in one word."""
    return files.hash_bytes(json.dumps(store.fingerprint, sort_keys=True).encode())


def _sizes(root: Path) -> dict[str, int]:
    """{path: bytes} of all files of the cache."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.name != LOCK_FILE}
    return {name: path.stat().st_size for name, path in found.items() if path.is_file()}


def _describe(path: Path, index: ClipIndex, sizes: Mapping[str, int]) -> dict[str, Any]:
    mine = [size for name, size in sizes.items() if name.startswith(f"{path.name}/")]
    size = {"files": len(mine), "bytes": sum(mine)}
    try:
        store = FeatureStore.open(path, index)
    except (IntegrityError, MissingInputError) as error:
        return {"problem": str(error), **size}
    counts = store.coverage()
    return {
        "arrays": {
            name: {"dims": dict(zip(spec.dims, spec.shape, strict=True)), "dtype": spec.dtype}
            for name, spec in store.arrays.items()
        },
        **{name: counts[name] for name in ("done", "failed")},
        "missing": counts["absent"],
        "pending": counts["pending"],
        "shards": len(store.written()),
        **size,
        "fingerprint": fingerprint_hash(store),
        "random": bool(store.attributes.get("random")),
        "reconstruction": bool(store.attributes.get("reconstruction")),
        "made_by": store.attributes.get("made_by", "teacher"),
        "imported": store.attributes.get("imported"),
    }
