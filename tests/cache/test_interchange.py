"""Exports of a store: whatever a message holds comes back, and what is written meanwhile is not mixed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from uniego.cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey, RowStatus
from uniego.cache.interchange import Contents, Package, Writer, export_store, import_store
from uniego.cache.interchange_hdf5 import Hdf5Writer, open_hdf5
from uniego.cache.interchange_safetensors import SafetensorsWriter, open_safetensors
from uniego.cache.ledger import Entry

IDS = ["a/b", "ünï 🎥", "c", "d"]
Form = tuple[Callable[[Path], Writer], Callable[[Path], list[Package]]]
FORMS = pytest.mark.parametrize("form", [(Hdf5Writer, open_hdf5), (SafetensorsWriter, open_safetensors)])


def new_store(root: Path) -> FeatureStore:
    index = ClipIndex.plan(root, [RowKey(name, "x") for name in IDS], 4)
    arrays = {"features": ArraySpec((2, 3), "float32", ("time", "feature"))}
    return FeatureStore.create(root / "t", index, arrays, {}, {})


def transfer(folder: Path, form: Form, store: FeatureStore) -> FeatureStore:
    write, read = form
    with write(folder / "out") as writer:
        export_store(writer, store, np.arange(4))
    (package,) = read(folder / "out")
    contents, other = Contents.of(package), new_store(folder / "other")
    import_store(package, contents, other, np.array([contents.places[key.clip_id] for key in other.index.keys(0)]))
    return other


@FORMS
@pytest.mark.parametrize("message", ["a\nb", "nul\x00byte", "no text \udc80", 'quoted "\\u0041"', "größer"])
def test_messages_are_lossless(tmp_path: Path, form: Form, message: str) -> None:
    store = new_store(tmp_path / "store")
    failure = Failure(store.index.keys(0)[3].clip_id, "reason", message)
    store.write_shard(
        0,
        {"features": np.ones((4, 2, 3), np.float32)},
        [RowStatus.DONE, RowStatus.DONE, RowStatus.ABSENT, RowStatus.FAILED],
        [failure],
    )
    other = transfer(tmp_path, form, store)
    assert other.failures() == [failure]
    assert other.status().tolist() == store.status().tolist()


@FORMS
def test_a_shard_that_is_written_meanwhile_is_whole(
    tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, writer = new_store(tmp_path / "store"), new_store(tmp_path / "store")
    states = [RowStatus.DONE, RowStatus.DONE, RowStatus.DONE, RowStatus.FAILED]
    failure, look = Failure(store.index.keys(0)[3].clip_id, "reason", "message"), store.entry

    def entry(shard: int) -> Entry | None:
        found = look(shard)
        writer.write_shard(0, {"features": np.ones((4, 2, 3), np.float32)}, states, [failure])
        return found

    monkeypatch.setattr(store, "entry", entry)
    other = transfer(tmp_path, form, store)
    assert other.status().tolist() == states
    assert other.failures() == [failure]
