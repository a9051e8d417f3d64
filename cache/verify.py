"""Which written shards can no longer be trusted, over all stores of a cache; bad ones are taken back."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import IntegrityError, MissingInputError
from .index import ClipIndex
from .manifest import LEDGER_FOLDER, MANIFEST, ZARR_FOLDER
from .store import FeatureStore


class Problem(NamedTuple):
    """A shard that cannot be trusted; `shard` is None when it is the whole store. `marked`: it will be redone."""

    store: str
    shard: int | None
    what: str
    marked: bool = False

    def __str__(self) -> str:
        place = self.store if self.shard is None else f"{self.store}: shard {self.shard}"
        return f"{place} {self.what}" + ("" if self.marked else " (not marked for redoing)")


class Checked(NamedTuple):
    """One store: how many shards were written, the bytes read, and what is wrong."""

    store: str
    shards: int
    read: int
    problems: list[Problem]


def store_names(root: Path) -> list[str]:
    """Folders of a cache that are stores, also those whose manifest is missing."""
    parts = (MANIFEST, ZARR_FOLDER, LEDGER_FOLDER)
    return sorted(path.name for path in root.iterdir() if any((path / part).exists() for part in parts))


def verify_cache(root: Path, names: Sequence[str], *, full: bool = False, mark: bool = True) -> Iterator[Checked]:
    """Check the named stores one by one: ledger against files and their sizes; with `full` every byte.

    With `mark`, bad shards are taken back, so that the next extraction redoes exactly these; readers take their
    rows for pending. Raises MissingInputError or IntegrityError for the clip index itself.
    """
    index = ClipIndex.open(root)
    if full:
        for shard in (generation.start // index.rows_per_shard for generation in index.generations):
            index.shard_hash(shard)  # reads the generation's file and compares its hash
    for name in names:
        yield _verify_store(root / name, index, full, mark)


def _verify_store(path: Path, index: ClipIndex, full: bool, mark: bool) -> Checked:
    try:
        store = FeatureStore.open(path, index)
    except (IntegrityError, MissingInputError) as error:
        return Checked(path.name, 0, 0, [Problem(path.name, None, f"cannot be opened: {error}")])
    written, problems = store.written(), []
    for shard, what in store.verify(full).items():
        if store.problem(shard, full):  # asked again: somebody may just have been writing it
            problems.append(Problem(path.name, shard, what, mark and _redo(store, shard)))
    read = sum(store.size(shard) for shard in written) if full else 0
    return Checked(path.name, len(written), read, problems)


def _redo(store: FeatureStore, shard: int) -> bool:
    try:
        return store.redo(shard, store.revision(shard))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False  # a cache that is only read from here
