"""Moments of stored features, by dask over the chunks of the Zarr array: a few shards in memory, never the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import compute
from dask.delayed import delayed

from ..errors import IntegrityError
from .ledger import RowStatus
from .store import FeatureStore

_TOGETHER = 32  # shards whose moments are computed in one go
_PIECE = 1024  # vectors that are float64 at once
Vector = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Over `vectors` vectors of one width: per dimension mean, sum of squared deviations and range, float64 [D].

    `norm`: sum, smallest and largest of the vectors' Euclidean norms.
    """

    vectors: int
    mean: Vector
    squares: Vector
    low: Vector
    high: Vector
    norm: tuple[float, float, float]

    def merge(self, other: Moments) -> Moments:
        """Moments of both together (Chan, Golub and LeVeque 1979)."""
        if not self.vectors or not other.vectors:
            return self if self.vectors else other
        total, shift = self.vectors + other.vectors, other.mean - self.mean
        return Moments(
            total,
            self.mean + shift * (other.vectors / total),
            self.squares + other.squares + shift**2 * (self.vectors * other.vectors / total),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            (
                self.norm[0] + other.norm[0],
                min(self.norm[1], other.norm[1]),
                max(self.norm[2], other.norm[2]),
            ),
        )


def statistics(store: FeatureStore, name: str, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """JSON-able statistics of an array over those of the rows (-1: none) that are done; all others are left out.

    "clips", "vectors" (clips times time steps), "mean", "variance" (over all values, population), "norm" (mean, least,
    greatest of the vectors), "dead" (dimensions that have one and the same value everywhere), and "per_dimension" with
    mean and variance [D]. All but the counts are None where no clip is done. Raises `IntegrityError` for a shard that
    cannot be trusted.
    """
    wanted = _done(store, rows)
    total = _nothing(store.arrays[name].shape[-1])
    for moments in _by_shard(store, name, wanted):
        total = total.merge(moments)
    result: dict[str, Any] = {"clips": int(wanted.sum()), "vectors": total.vectors}
    if not total.vectors:
        return {**result, **dict.fromkeys(("mean", "variance", "norm", "dead", "per_dimension"))}
    variance = total.squares / total.vectors
    mean = float(total.mean.mean())
    return {
        **result,
        "mean": mean,
        "variance": float((variance + (total.mean - mean) ** 2).mean()),
        "norm": {"mean": total.norm[0] / total.vectors, "min": total.norm[1], "max": total.norm[2]},
        "dead": np.flatnonzero(total.low == total.high).tolist(),
        "per_dimension": {"mean": total.mean.tolist(), "variance": variance.tolist()},
    }


def _done(store: FeatureStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool [rows of whole shards]: which rows count."""
    mask = np.zeros(store.index.num_shards * store.index.rows_per_shard, np.bool_)
    mask[rows[store.status(rows) == RowStatus.DONE]] = True
    for shard in np.unique(rows[rows >= 0] // store.index.rows_per_shard).tolist():
        problem = store.problem(shard)
        if problem:
            raise IntegrityError(f"{store.path.name}: shard {shard} {problem}; run `uniego verify`, then extraction")
    return mask


def _by_shard(store: FeatureStore, name: str, wanted: npt.NDArray[np.bool_]) -> Iterator[Moments]:
    """Moments of every shard that has wanted rows, in order: the result does not hang on the scheduling."""
    path, array = f"{store.path.name}: {name}", store.zarr_array(name)
    per_shard = store.index.rows_per_shard
    blocks = da.from_zarr(array, chunks=array.chunks).to_delayed().reshape(-1)  # type: ignore[no-untyped-call]
    shards = np.flatnonzero(wanted.reshape(-1, per_shard).any(axis=1)).tolist()
    moments = delayed(_moments, pure=False)
    for start in range(0, len(shards), _TOGETHER):
        some = shards[start : start + _TOGETHER]
        masks = [wanted[shard * per_shard : (shard + 1) * per_shard] for shard in some]
        names = [f"{path}: shard {shard}" for shard in some]
        tasks = [moments(blocks[shard], *pair) for shard, *pair in zip(some, masks, names, strict=True)]
        try:
            yield from compute(*tasks, scheduler="threads")  # type: ignore[no-untyped-call]
        except ValueError as error:  # a checksum that fails
            what = f"{path}: one of the shards {some} is damaged: {error}; `uniego verify --full` names it"
            raise IntegrityError(what) from error


def _moments(block: npt.NDArray[Any], mask: npt.NDArray[np.bool_], where: str) -> Moments:
    picked = block[mask[: len(block)]]
    vectors = picked.reshape(-1, picked.shape[-1])  # [vectors, D]
    total = _nothing(vectors.shape[1])
    for start in range(0, len(vectors), _PIECE):
        piece = vectors[start : start + _PIECE].astype(np.float64)
        if not np.isfinite(piece).all():
            raise IntegrityError(f"{where} reads as empty, but was written; run `uniego verify --full`")
        total = total.merge(_piece(piece))
    return total


def _piece(vectors: npt.NDArray[np.float64]) -> Moments:
    mean, norms = vectors.mean(axis=0), np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    deviations = vectors - mean
    norm = (float(norms.sum()), float(norms.min()), float(norms.max()))
    squares = np.einsum("nd,nd->d", deviations, deviations)
    return Moments(len(vectors), mean, squares, vectors.min(axis=0), vectors.max(axis=0), norm)


def _nothing(width: int) -> Moments:
    empty = np.zeros(width)
    return Moments(0, empty, empty, empty, empty, (0.0, np.inf, -np.inf))
