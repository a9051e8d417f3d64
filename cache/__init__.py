"""The feature store: one Zarr group per teacher or proxy, rows shared through one clip index; and the clip store."""

from .clip_store import ClipStore
from .index import ClipIndex, RowKey, suggested_rows
from .store import ArraySpec, Failure, FeatureStore, NonFiniteError, RowStatus, ShardError, fits, remove

__all__ = [
    "ArraySpec",
    "ClipIndex",
    "ClipStore",
    "Failure",
    "FeatureStore",
    "NonFiniteError",
    "RowKey",
    "RowStatus",
    "ShardError",
    "fits",
    "remove",
    "suggested_rows",
]
