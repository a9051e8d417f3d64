"""Checks of what is handed to `FeatureStore.write_shard`, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UniegoError
from .arrays import ArraySpec, fits
from .index import RowKey
from .ledger import Failure, RowStatus

Values = Mapping[str, npt.NDArray[Any]]
Statuses = npt.NDArray[np.uint8]


class ShardError(UniegoError, ValueError):
    """Arrays handed to `write_shard` that do not fit the store; nothing was written."""


class NonFiniteError(ShardError):
    """Rows said to be done hold NaN or infinity, or values too large for the stored dtype."""


def checked_status(where: str, status: npt.ArrayLike, rows: int) -> Statuses:
    """A copy as uint8 [rows]. Raises ShardError."""
    codes = np.array(status)
    if codes.shape != (rows,) or codes.dtype.kind not in "iu" or not np.isin(codes, list(RowStatus)).all():
        raise ShardError(f"{where}: RowStatus [{rows}] wanted, got {codes.dtype} {codes.shape}: {codes}")
    return codes.astype(np.uint8)


def checked_values(
    where: str, arrays: Mapping[str, ArraySpec], values: Values, codes: Statuses
) -> dict[str, npt.NDArray[Any]]:
    """Copies in the stored dtypes, NaN where not DONE. Raises ShardError or NonFiniteError."""
    if set(values) != set(arrays):
        raise ShardError(f"{where}: arrays {sorted(arrays)} wanted, got {sorted(values)}")
    done = codes == RowStatus.DONE
    blocks: dict[str, npt.NDArray[Any]] = {}
    for name, spec in arrays.items():
        block, wanted = np.asarray(values[name]), (len(codes), *spec.shape)
        if block.shape != wanted or block.dtype.kind != "f":
            raise ShardError(f"{where}: {name}: floating {wanted} wanted, got {block.dtype} {block.shape}")
        picked = slice(None) if done.all() else done  # the slice makes no copy
        bad = np.flatnonzero(done)[~fits(block[picked], spec.dtype)]
        if bad.size:
            raise NonFiniteError(
                f"{where}: {name}: rows {bad[:5].tolist()} of the shard are said to be done, but hold NaN, "
                f"infinity or values beyond {spec.dtype}: mark these clips failed (non_finite)"
            )
        blocks[name] = np.full(wanted, np.nan, spec.dtype)
        blocks[name][picked] = block[picked]
    return blocks


def checked_failures(
    where: str, keys: Sequence[RowKey], codes: Statuses, failures: Sequence[Failure]
) -> dict[str, Failure]:
    """{clip id: failure}, exactly one for each FAILED row. Raises ShardError."""
    failed = [key.clip_id for key, code in zip(keys, codes, strict=True) if code == RowStatus.FAILED]
    if sorted(failed) != sorted(failure.clip_id for failure in failures):
        raise ShardError(f"{where}: one failure for each of {failed} wanted, got {list(failures)}")
    return {failure.clip_id: Failure(*map(str, failure)) for failure in failures}
