"""A toy extraction whose features depend on the clip alone, and the bytes of a whole cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from uniego.cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey, RowStatus

SPECS = {
    "features": ArraySpec((2, 3), "float16", ("frame", "feature"), "of a toy"),
    "logits": ArraySpec((4,), "float32", ("class",)),
}


class Toy:
    """Clip ids that start with "bad" fail, with "none" are absent, with "zero" give zeros."""

    specs = SPECS
    fingerprint: ClassVar[dict[str, Any]] = {"weights": "w1", "preprocessing": {"size": 224}}

    def keys(self, ids: Iterable[str]) -> list[RowKey]:
        return [RowKey(clip, f"identity-of-{clip}") for clip in ids]

    def features(self, clip: str, size: int) -> np.ndarray:
        if clip.startswith("zero"):
            return np.zeros(size, np.float32)
        seed = int.from_bytes(hashlib.blake2b(clip.encode(), digest_size=8).digest())
        return np.random.default_rng(seed).normal(size=size).astype(np.float32)

    def shard(
        self, keys: Iterable[RowKey], specs: dict[str, ArraySpec] = SPECS
    ) -> tuple[dict[str, np.ndarray], np.ndarray, list[Failure]]:
        ids = [key.clip_id for key in keys]
        codes = {"bad": RowStatus.FAILED, "none": RowStatus.ABSENT}
        status = np.array([codes.get(clip.rstrip("0123456789"), RowStatus.DONE) for clip in ids], np.uint8)
        values = {
            name: np.stack(
                [self.features(clip + name * (clip[:4] != "zero"), int(np.prod(spec.shape))) for clip in ids]
            )
            .reshape(len(ids), *spec.shape)
            .astype(spec.dtype)
            for name, spec in specs.items()
        }
        failures = [Failure(clip, "truncated", f"{clip} ends early") for clip in ids if clip.startswith("bad")]
        return values, status, failures

    def open(self, root: Path, ids: Iterable[str], rows_per_shard: int = 3, task: str = "local") -> FeatureStore:
        index = ClipIndex.plan(root, self.keys(ids), rows_per_shard)
        return FeatureStore.create(root / "toy", index, SPECS, self.fingerprint, {"teacher": "toy"}, task)

    def extract(self, root: Path, ids: Iterable[str], rows_per_shard: int = 3, task: str = "local") -> FeatureStore:
        store = self.open(root, ids, rows_per_shard, task)
        for shard in store.pending():
            store.write_shard(shard, *self.shard(store.index.keys(shard)))
        return store

    def check(self, store: FeatureStore, ids: Iterable[str]) -> None:
        """Every clip reads as what it should be, and nothing else is there."""
        ids = list(ids)
        values, status, _ = self.shard(self.keys(ids))
        rows = store.index.rows(self.keys(ids))
        for name, expected in values.items():
            got, present = store.read(rows, name)
            done = status == RowStatus.DONE
            np.testing.assert_array_equal(present, done)
            np.testing.assert_array_equal(got[done], expected[done])
            assert np.isnan(got[~done]).all()
        np.testing.assert_array_equal(store.status(rows), status)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """{path: content, None for a folder} of all below a folder."""

    def read(root: Path) -> dict[str, bytes | None]:
        paths = sorted(root.rglob("*"))
        return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in paths}

    return read
