"""A run's teacher features out of the cache into other formats, and back into another run's cache.

npy        OUT/<teacher>/<stem of the video>.npy, float32 [T, D], the layout of released features; read back by a
           teacher with `network: precomputed`
hdf5       one file, safetensors: one folder; both hold all that the cache knows, and `import_features` reads them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from ..cache import ClipIndex, FeatureStore
from ..cache.coverage import Coverage, count_rows
from ..cache.interchange import Contents, Destination, Package, Writer, export_store, import_store
from ..cache.interchange_hdf5 import Hdf5Writer, open_hdf5
from ..cache.interchange_safetensors import SafetensorsWriter, open_safetensors
from ..errors import UsageError
from ..models.teachers import teacher_view
from ..models.teachers.config import View
from ..pipeline.clips import Clip
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run
from .rows import record_rows
from .targets import open_index, open_teacher, row_keys, teacher_path

Format = Literal["npy", "hdf5", "safetensors"]
FORMATS: tuple[Format, ...] = ("npy", "hdf5", "safetensors")
_WRITERS: Mapping[str, Callable[[Path], Writer]] = {"hdf5": Hdf5Writer, "safetensors": SafetensorsWriter}
_SHOWN = 5


class Exchanged(NamedTuple):
    """What became of the run's clips of one teacher; `zeros` of the exported ones are all zeros."""

    teacher: str
    coverage: Coverage
    zeros: int = 0


def export_features(
    run: Run, form: Format, out: Path, teachers: Sequence[str] | None = None, *, by_id: bool = False
) -> list[Exchanged]:
    """Write the features of the run's clips to `out`, which must not exist; it is there whole or not at all.

    In the npy layout a clip's file is called like its video of the teacher's view in the table (`by_id`: like the
    clip), and clips without features have none; the other formats keep statuses and reasons too. Raises `UsageError`
    when two clips would have one name or `out` exists, `MissingInputError` and `FingerprintMismatch` as
    `open_teacher`, `IntegrityError` for damaged shards.
    """
    if out.exists():
        raise UsageError(f"{out} exists: export to another place, or remove it first")
    if by_id and form != "npy":
        raise UsageError("names by clip ids are for the npy layout; the other formats hold the ids anyway")
    index = open_index(run)
    stores = {key: open_teacher(run, index, key) for key in run.choose(teachers)}
    clips = run.table().clips
    rows = index.rows(row_keys(run, clips))
    done: list[Exchanged] = []
    if form == "npy":
        names = {key: _names(store, rows, clips, by_id) for key, store in stores.items()}
        with _NpyFolder(out) as folder:
            for key, store in stores.items():
                zeros = folder.add(store, names[key])
                done.append(Exchanged(key, count_rows(store, rows), zeros))
    else:
        with _WRITERS[form](out) as writer:
            for key, store in stores.items():
                export_store(writer, store, rows[rows >= 0])
                done.append(Exchanged(key, count_rows(store, rows)))
    for entry in done:
        _tell(entry, f"written to {out}")
    return done


class _NpyFolder(Destination):
    """Folders of .npy files."""

    def add(self, store: FeatureStore, names: Mapping[int, str]) -> int:
        """Write one file for each row of {row: name}; how many of them are all zeros."""
        folder = self._partial / store.path.name
        folder.mkdir(parents=True)
        zeros = 0
        for rows in _portions(sorted(names), store.index.rows_per_shard):
            values, _ = store.load("features", rows, np.float32)
            for row, feature in zip(rows, values, strict=True):
                path = folder / f"{names[row]}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, feature)
                zeros += not feature.any()
        return zeros


def _portions(rows: Sequence[int], per_shard: int) -> Iterator[list[int]]:
    shards: dict[int, list[int]] = {}
    for row in rows:
        shards.setdefault(row // per_shard, []).append(row)
    yield from shards.values()


def _names(store: FeatureStore, rows: np.ndarray[Any, Any], clips: Sequence[Clip], by_id: bool) -> dict[int, str]:
    """{row: name} of the clips that have a feature."""
    return file_names(store.path.name, store.attributes["view"], rows, store.status(rows) == 1, clips, by_id)


def file_names(
    key: str, view: View, rows: np.ndarray[Any, Any], there: np.ndarray[Any, Any], clips: Sequence[Clip], by_id: bool
) -> dict[int, str]:
    """{row: name} of the clips that are there, after their video of a view, or after their ids.

    `key` names what is exported. Raises `UsageError` when two clips would have one name.
    """
    names: dict[int, str] = {}
    taken: dict[str, Clip] = {}
    for row, clip, present in zip(rows.tolist(), clips, there.tolist(), strict=True):
        if not present:
            continue
        video = clip.video(view)
        if not by_id and video is None:
            raise UsageError(
                f"{key}: clip {clip.clip_id!r} has a feature but names no {view} video to call the file after; use "
                "--names id"
            )
        name = _safe(clip.clip_id) if by_id or video is None else video.stem
        other = taken.setdefault(name, clip)
        if other is not clip:
            raise UsageError(
                f"{key}: clips {other.clip_id!r} and {clip.clip_id!r} would both be {key}/{name}.npy, being of "
                f"videos {other.video(view)} and {video}; use --names id, or the formats hdf5 or safetensors"
            )
        names[row] = name
    return names


def _safe(clip_id: str) -> str:
    path = PurePosixPath(clip_id)
    if path.is_absolute() or ".." in path.parts or str(path) != clip_id:
        raise UsageError(f"clip id {clip_id!r} cannot be a file's name; use the formats hdf5 or safetensors")
    return clip_id


def import_features(
    run: Run, path: Path, teachers: Sequence[str] | None = None, *, any_source: bool = False
) -> list[Exchanged]:
    """Take the features of an exported file or folder into the run's cache, for the clips of the run's table.

    Clips are found by their ids; those whose files here differ from the ones that the features were made from are
    refused, unless `any_source`. The fingerprint and all stamps are kept; the store says where it was imported from.
    Continues after a kill. Raises `UsageError` for what is no export, does not fit the run, or is in the cache
    already (nothing is overwritten), `IntegrityError` for damaged exports.
    """
    packages = _packages(run, path, teachers)
    contents = {key: Contents.of(package) for key, package in packages.items()}
    with run.extracting(list(packages)):
        run.record_sources()
        clips = run.table().clips
        keys = row_keys(run, clips)
        for key, found in contents.items():
            _check_sources(key, path, found, [(k.clip_id, k.identity) for k in keys], any_source)
        per_shard = run.config.cache.rows_per_shard or next(iter(packages.values())).header.rows_per_block
        index = ClipIndex.plan(run.cache_root, keys, per_shard)
        record_rows(run, index)
        rows = index.rows(keys)
        done = []
        for key, package in packages.items():
            store = _new_store(run, index, package)
            places = np.full(index.num_rows, -1, np.int64)
            places[rows] = [contents[key].places.get(clip.clip_id, -1) for clip in clips]
            import_store(package, contents[key], store, places)
            run.record_extraction(key, store.fingerprint)
            done.append(Exchanged(key, count_rows(store, rows)))
            unused = len(contents[key].places) - int((places >= 0).sum())
            _tell(
                done[-1], f"imported from {path}" + (f"; {unused} clips in it are not in the table" if unused else "")
            )
    return done


def _packages(run: Run, path: Path, teachers: Sequence[str] | None) -> dict[str, Package]:
    """{teacher: package}, checked against the run."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    found = {package.header.name: package for package in (open_safetensors if path.is_dir() else open_hdf5)(path)}
    if not found:
        raise UsageError(
            f"{path} is no export of `uniego cache export --to hdf5` or `--to safetensors`. Features in other files "
            "(.npy, HDF5, Zarr, one per clip) are read as a teacher: set network: precomputed and weights: "
            f"{'dir' if path.is_dir() else 'file'}:{path} for it in run.yaml, then run extract-teachers"
        )
    wanted = run.choose(teachers) if teachers else list(found)
    lacking = [key for key in wanted if key not in found]
    if lacking:
        raise UsageError(f"{path} has no features of {', '.join(lacking)}; it has {', '.join(found)}")
    run.choose(wanted)  # raises for teachers that the run does not have
    for key in wanted:
        _check_fits(run, key, found[key])
    return {key: found[key] for key in wanted}


def _check_fits(run: Run, key: str, package: Package) -> None:
    header, view = package.header, teacher_view(key, run.config.teachers[key])
    if list(header.arrays) != ["features"] or len(header.arrays["features"].shape) != 2:
        raise UsageError(f"{package.source}: {key}: features [time, width] wanted, found {header.arrays}")
    dtype = header.arrays["features"].dtype
    if dtype != run.config.cache.dtype:
        raise UsageError(
            f"{package.source}: features of {key} are {dtype}, this run's are {run.config.cache.dtype}: set "
            f"cache.dtype: {dtype} in run.yaml"
        )
    if header.attributes.get("view") != view:
        raise UsageError(
            f"{package.source}: features of {key} are of the {header.attributes.get('view')} view, this run's {key} "
            f"sees {view}"
        )


def _check_sources(key: str, path: Path, found: Contents, keys: Sequence[tuple[str, str]], any_source: bool) -> None:
    common = [(clip_id, identity) for clip_id, identity in keys if clip_id in found.places]
    if not common:
        raise UsageError(f"{path}: features of {key} are of other clips: none of {len(keys)} ids of the table is there")
    other = [clip_id for clip_id, identity in common if found.identities[found.places[clip_id]] != identity]
    if not other:
        return
    shown = ", ".join(other[:_SHOWN]) + (", …" if len(other) > _SHOWN else "")
    message = (
        f"{key}: {len(other)} of {len(common)} clips here have other files (path, size or content), or another "
        f"segment, than those that the features were made from: {shown}"
    )
    if not any_source:
        raise UsageError(f"{message}\nmend the table, or take the features all the same with --any-source")
    warn(f"{message}; taken all the same")


def _new_store(run: Run, index: ClipIndex, package: Package) -> FeatureStore:
    header, path = package.header, teacher_path(run, package.header.name)
    imported = {"source": package.source, "content": package.content}
    if (path / "manifest.json").exists() and FeatureStore.open(path, index).attributes.get("imported") != imported:
        raise UsageError(
            f"{path} exists and was not imported from {package.source}: nothing is overwritten; set another "
            "cache.root, or remove that folder"
        )
    attributes = {**header.attributes, "imported": imported}
    return FeatureStore.create(path, index, header.arrays, header.fingerprint, attributes)


def _tell(entry: Exchanged, what: str) -> None:
    counts = Counter(entry.coverage._asdict())
    left = ", ".join(f"{counts[name]} {name}" for name in ("failed", "missing", "pending") if counts[name])
    say(f"{entry.teacher}: {counts['done']} of {counts['clips']} clips {what}" + (f" (not: {left})" if left else ""))
    if entry.zeros:
        warn(
            f"{entry.teacher}: {entry.zeros} features are all zeros, which released loaders take for missing; to read "
            "them back as they are, set zero_is_missing: false"
        )
