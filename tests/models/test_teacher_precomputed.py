"""Features made elsewhere: the three layouts, the names of entries, what is missing and what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from pydantic import ValidationError
from uniego.errors import UsageError, WeightsError
from uniego.models.teachers import FeatureFileError, PrecomputedTeacher, TeacherConfig, build_teacher
from uniego.models.teachers.stored import SAMPLED, open_stored

Values = dict[str, np.ndarray]


def values(count: int = 4, shape: tuple[int, ...] = (8, 6), dtype: str = "float32") -> Values:
    rng = np.random.default_rng(0)
    return {f"clip{number:02d}": rng.normal(size=shape).astype(dtype) for number in range(count)}


def write_npy(path: Path, entries: Values) -> str:
    for name, value in entries.items():
        file = path / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, value)
    return f"dir:{path}"


def write_hdf5(path: Path, entries: Values, group: str = "") -> str:
    with h5py.File(path, "w") as file:
        for name, value in entries.items():
            file[f"{group}/{name}"] = value
    return f"file:{path}"


def write_zarr(path: Path, entries: Values, chunk: int = 3) -> str:
    group = zarr.create_group(path)
    stacked = np.stack(list(entries.values()))
    group.create_array("features", data=stacked, chunks=(chunk, *stacked.shape[1:]))
    group.create_array("ids", data=np.array(list(entries), dtype=np.dtypes.StringDType()))
    return f"dir:{path}"


LAYOUTS: dict[str, Callable[[Path, Values], str]] = {"npy": write_npy, "hdf5": write_hdf5, "zarr": write_zarr}


def build(weights: str, key: str = "exo_dino", **settings: Any) -> PrecomputedTeacher:
    teacher = build_teacher(key, TeacherConfig(network="precomputed", weights=weights, **settings))
    assert isinstance(teacher, PrecomputedTeacher)
    return teacher


def failure(teacher: PrecomputedTeacher, clip_id: str, stem: str | None = None) -> tuple[str, str]:
    with pytest.raises(FeatureFileError) as caught:
        teacher.read(clip_id, stem)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_values_come_out_as_stored(tmp_path: Path, layout: str, dtype: str) -> None:
    entries = values(dtype=dtype)
    teacher = build(LAYOUTS[layout](tmp_path / "features", entries))
    assert (teacher.rows, teacher.dim, teacher.frames, teacher.is_random) == (8, 6, 0, False)
    for name, value in entries.items():
        np.testing.assert_array_equal(teacher.read(name, None).numpy(), value.astype(np.float32))
    items = [teacher.read(name, None) for name in entries]
    features = teacher.features(items)
    assert features.shape == (4, 8, 6)
    np.testing.assert_array_equal(features[2].numpy(), items[2].numpy())
    fingerprint = teacher.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["architecture"] == {"layout": layout}
    assert teacher.describe()["entries"] == 4
    assert "reconstruction" not in teacher.describe()["note"]
    with pytest.raises(UsageError, match="read, not computed"):
        teacher.prepare()


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_one_row_per_clip(tmp_path: Path, layout: str) -> None:
    teacher = build(LAYOUTS[layout](tmp_path / "features", values(shape=(6,))))
    assert (teacher.rows, teacher.dim) == (1, 6)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_clip_id_first_then_the_videos_stem(tmp_path: Path, layout: str) -> None:
    entries = values(2)
    teacher = build(LAYOUTS[layout](tmp_path / "features", entries))
    assert teacher.find("clip00", "clip01") == "clip00"
    assert teacher.find("other", "clip01") == "clip01"
    assert failure(teacher, "other", "neither") == (
        "missing",
        f"{tmp_path / 'features'}: nothing called 'other' or 'neither'",
    )
    assert failure(teacher, "other")[0] == "missing"


def test_the_teachers_own_folder_or_group_is_taken(tmp_path: Path) -> None:
    mine, others = values(3), values(2, shape=(5,))
    write_npy(tmp_path / "root" / "exo_dino", mine)
    write_npy(tmp_path / "root" / "ego_dino", others)
    assert build(f"dir:{tmp_path / 'root'}").dim == 6
    assert build(f"dir:{tmp_path / 'root'}", "ego_dino").dim == 5
    assert build(write_hdf5(tmp_path / "x.h5", mine, "exo_dino")).find("clip01", None) == "clip01"


def test_another_teachers_folder_or_group_is_not_taken(tmp_path: Path) -> None:
    entries = values(3)
    stores = [write_hdf5(tmp_path / "x.h5", entries, "ego_dino")]
    write_npy(tmp_path / "root" / "ego_dino", entries)
    for weights in (*stores, f"dir:{tmp_path / 'root'}"):
        with pytest.raises(WeightsError, match="holds features of ego_dino, and none of exo_dino"):
            build(weights)
        assert build(weights, "ego_dino").dim == 6
    assert build(f"dir:{tmp_path / 'root' / 'ego_dino'}").dim == 6  # named outright, it is meant


def test_two_files_of_one_name_are_refused_with_both(tmp_path: Path) -> None:
    one, two = values(2).values()
    teacher = build(write_npy(tmp_path / "features", {"a/cam": one, "b/cam": two}))
    with pytest.raises(UsageError, match=r"a/cam and b/cam .* could both be"):
        teacher.read("clip", "cam")
    np.testing.assert_array_equal(teacher.read("b/cam", "cam").numpy(), two)  # the id says which


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    bad = {
        "nan": np.full((8, 6), np.nan, np.float32),
        "integers": np.ones((8, 6), np.int64),
        "wide": np.ones((8, 7), np.float32),
        "short": np.ones((7, 6), np.float32),
        "empty": np.ones((0, 6), np.float32),
        "huge": np.full((8, 6), 1e300),
        "scalar": np.float32(1),
    }
    write_npy(folder, {**values(), **bad})
    (folder / "cut.npy").write_bytes((folder / "clip00.npy").read_bytes()[:150])
    (folder / "none.npy").touch()
    np.save(folder / "code.npy", np.array([object()]), allow_pickle=True)
    teacher = build(f"dir:{folder}")
    for name in [*bad, "cut", "none", "code"]:
        reason, message = failure(teacher, name)
        assert reason == "unreadable", message
        assert f"{name}" in message
    assert "shape [8, 7], but [8, 6] as in clip00" in failure(teacher, "wide")[1]
    (folder / "clip01.npy").unlink()
    assert failure(teacher, "clip01")[0] == "missing"


def test_shape_comes_from_the_first_that_can_be_read(tmp_path: Path) -> None:
    write_npy(tmp_path / "f", {"aaa": np.full((3, 3), np.inf, np.float32), **values()})
    assert build(f"dir:{tmp_path / 'f'}").dim == 6
    write_npy(tmp_path / "g", {"aaa": np.full((3, 3), np.inf, np.float32)})
    with pytest.raises(WeightsError, match=r"none of 1 entries can be read.*not finite"):
        build(f"dir:{tmp_path / 'g'}")


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_zeros_mean_missing_in_the_released_layout_alone(tmp_path: Path, layout: str) -> None:
    weights = LAYOUTS[layout](tmp_path / "features", {**values(), "zero": np.zeros((8, 6), np.float32)})
    usual, kept, dropped = (build(weights, zero_is_missing=choice) for choice in (None, False, True))
    assert kept.read("zero", None).abs().max() == 0
    assert failure(dropped, "zero")[0] == "missing"
    assert usual.fingerprint()["preprocessing"]["zero_is_missing"] is (layout == "npy")
    assert usual.describe()["zero_is_missing"] is (layout == "npy")
    assert kept.fingerprint() != dropped.fingerprint()


def test_transposed_and_flattened_files(tmp_path: Path) -> None:
    (value,) = values(1).values()
    write_npy(tmp_path / "f", {"a": value.T, "b": value, "c": value.reshape(2, 4, 6), "d": np.ones((8, 5))})
    teacher = build(f"dir:{tmp_path / 'f'}", dim=6)
    for name in "abc":
        np.testing.assert_array_equal(teacher.read(name, None).numpy(), value)
    assert "width 5, but dim is 6" in failure(teacher, "d")[1]


def test_rows_are_picked_as_the_released_loader_does(tmp_path: Path) -> None:
    entries = {str(length): np.arange(length * 2, dtype=np.float32).reshape(length, 2) + 1 for length in (3, 8, 21)}
    teacher = build(write_npy(tmp_path / "f", entries), rows=8)
    for name, value in entries.items():
        picks = np.linspace(0, len(value) - 1, 8).astype(int)
        np.testing.assert_array_equal(teacher.read(name, None).numpy(), value[picks])


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_fingerprint_follows_the_content(tmp_path: Path, layout: str) -> None:
    entries = values(SAMPLED // 2)
    variants = {
        "same": entries,
        "again": dict(entries),
        "changed": {**entries, "clip07": entries["clip07"] + 1},
        "renamed": {("new" if name == "clip07" else name): value for name, value in entries.items()},
        "fewer": {name: value for name, value in entries.items() if name != "clip07"},
    }
    hashes = {name: build(LAYOUTS[layout](tmp_path / name, value)).weights_hash for name, value in variants.items()}
    assert hashes["same"] == hashes["again"]
    assert len(set(hashes.values())) == 4


def test_of_many_entries_a_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = open_stored(Path(write_npy(tmp_path / "f", values(SAMPLED + 50, (2,))).removeprefix("dir:")), "exo_dino")
    before, read = stored.identity(), []
    monkeypatch.setattr(stored, "read", lambda name: read.append(name) or np.zeros(2))
    assert stored.identity() != before
    assert len(read) == SAMPLED
    assert {read[0], read[-1]} == {stored.names[0], stored.names[-1]}


def test_blocks_of_a_zarr_array(tmp_path: Path) -> None:
    entries = values(7)
    teacher = build(write_zarr(tmp_path / "x.zarr", entries, chunk=3))
    for name in reversed(list(entries)):
        np.testing.assert_array_equal(teacher.read(name, None).numpy(), entries[name])


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.ones((8, 6), np.float32))
        file.create_dataset("b", data=np.arange(4800, dtype=np.float32).reshape(8, 600), fletcher32=True, chunks=True)
    raw = path.read_bytes()
    at = raw.index(np.arange(100, 110, dtype=np.float32).tobytes())
    path.write_bytes(raw[:at] + b"\xff" + raw[at + 1 :])
    assert failure(build(f"file:{path}"), "b")[0] == "unreadable"
    cut = tmp_path / "cut.h5"
    cut.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(WeightsError, match="cannot be opened"):
        build(f"file:{cut}")


def test_what_is_no_store_of_features(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.h5").write_text("no")
    zarr.create_group(tmp_path / "bare.zarr")
    group = zarr.create_group(tmp_path / "twice.zarr")
    group.create_array("features", data=np.ones((2, 3), np.float32))
    group.create_array("ids", data=np.array(["a", "a"], dtype=np.dtypes.StringDType()))
    zarr.create_array(tmp_path / "array.zarr", data=np.ones((2, 3), np.float32))
    write_hdf5(tmp_path / "one.h5", {"exo_dino": np.ones((2, 3), np.float32)})
    for weights, message in {
        "dir:array.zarr": "a single Zarr array; a Zarr group of features holds",
        "file:one.h5": r"exo_dino is one data set \(2, 3\); expected a data set for each clip",
        "dir:absent": "no such file or folder",
        "dir:empty": "holds no features; expected <clip id",
        "file:text.h5": "no HDF5 file",
        "dir:bare.zarr": r"arrays ids \[N\] and features",
        "dir:twice.zarr": "2 entries, 1 different",
    }.items():
        kind, name = weights.split(":")
        with pytest.raises(WeightsError, match=message):
            build(f"{kind}:{tmp_path / name}")
    with pytest.raises(WeightsError, match=r"set teachers\.exo_dino\.weights to dir:<folder of \.npy"):
        build_teacher("exo_dino", TeacherConfig(network="precomputed"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "hub:a/b"}, "precomputed loads from dir:"),
        ({"weights": "random:1", "allow_random": True}, "precomputed reads dir:"),
        ({"feature": "cls"}, "only what the files hold"),
        ({"image_size": 224}, "reads files"),
        ({"options": {"a": 1}}, "teacher of your own"),
        ({"network": "dinov2", "rows": 2}, "network precomputed"),
        ({"network": "dinov2", "zero_is_missing": True}, "network precomputed"),
    ],
)
def test_settings_that_cannot_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TeacherConfig(**{"network": "precomputed", **fields})
