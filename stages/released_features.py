"""Teachers' features in the released layout, DIR/<teacher>/<clip>.npy, taken into a run's cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cache import FeatureStore
from ..cache.coverage import Coverage, count_rows
from ..errors import CoverageError, UsageError
from ..models.release import listed
from ..models.teachers import PrecomputedTeacher, TeacherConfig, teacher_view
from ..models.teachers.config import PRECOMPUTED
from ..models.teachers.facts import TEACHERS
from ..models.teachers.stored import FeatureFileError, open_stored
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run
from .extract_checks import check_shared
from .extract_options import ExtractOptions
from .extract_teachers import extract_teachers
from .targets import open_index, row_keys, teacher_path


class ImportedFeatures(NamedTuple):
    """What became of the run's clips of one teacher; `unused`: files that are no clip's."""

    teacher: str
    coverage: Coverage
    unused: int


def import_features(
    run: Run,
    path: Path,
    teachers: Sequence[str] | None = None,
    *,
    rows: int | None = None,
    zeros_are_values: bool = False,
    overwrite: bool = False,
    options: ExtractOptions | None = None,
) -> list[ImportedFeatures]:
    """Take `path`/<teacher>/<clip>.npy into the cache, for the named teachers or all that the run and the folder have.

    As extraction with `network: precomputed` does it, whatever the run's settings say computes these teachers: the
    store's fingerprint and manifest name the files, and the run takes them for what its settings ask for. `rows`: as
    many rows are kept of each file, where their number differs; `zeros_are_values`: a feature of zeros is one, where
    for the released code it means that there is none. Raises `UsageError` where there is nothing to take,
    `FingerprintMismatch` for features that are there already, unless `overwrite`; what `extract_teachers` raises.
    """
    keys = folders_of(run, path, teachers)
    configs = {key: _config(key, path, run.config.teachers[key], rows, zeros_are_values) for key in keys}
    taken = Run(run.root, run.config.model_copy(update={"teachers": {**run.config.teachers, **configs}}), run.origin)
    clips, unused = run.table().clips, {}
    for key, config in configs.items():
        view = teacher_view(key, config)
        teacher = PrecomputedTeacher(key, view, config)
        used = check_shared(teacher.find, view, f"teacher {key!r}", clips)
        if not used:
            raise UsageError(
                f"{path / key}: none of {teacher.entries} files is called like a clip of the table, by its id or the "
                f"stem of its {view} video"
            )
        unused[key] = teacher.entries - len(used)
        _tell_loss(key, teacher, _first(path / key, key)[1], run.config.cache.dtype)
    short: CoverageError | None = None
    try:
        extract_teachers(taken, keys, overwrite=overwrite, options=options)
    except CoverageError as error:
        short = error
    finally:
        for key in keys:  # also where too few clips have features: they are there then
            record = taken.extraction_record(key)
            if record is not None and record["settings"] == taken.extraction_settings(key):
                run.record_extraction(key, record["fingerprint"])
    index = open_index(run)
    places = index.rows(row_keys(run, clips))
    done = [
        ImportedFeatures(key, count_rows(FeatureStore.open(teacher_path(run, key), index), places), unused[key])
        for key in keys
    ]
    for entry in done:
        c = entry.coverage
        say(
            f"{entry.teacher}: {c.done} of {c.clips} clips imported ({c.failed} failed, {c.missing} without its "
            f"input); {entry.unused} files are no clip's. `uniego cache coverage --failed` says why"
        )
    if short is not None:
        raise short
    say(f"next: {run.command('train-proxies')}")
    return done


def folders_of(run: Run, path: Path, teachers: Sequence[str] | None) -> list[str]:
    """Teachers that have a folder. Raises `UsageError`."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder")
    there = [key for key in run.choose(teachers) if (path / key).is_dir()]
    lacking = [key for key in teachers or () if key not in there]
    if lacking or not there:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise UsageError(
            f"{path} has no folder of {', '.join(lacking or run.config.teachers)}; it has {listed(names)}. Each "
            "teacher's files lie in a folder called like it"
        )
    left = [key for key in run.config.teachers if key not in there and not teachers]
    if left:
        say(f"{path} has nothing of {', '.join(left)}")
    return there


def _first(folder: Path, key: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of the first file that can be read."""
    stored = open_stored(folder, key)
    for name in stored.names:
        with suppress(FeatureFileError):
            values = stored.read(name)
            return values.shape, str(values.dtype)
    return (), "float32"


def _config(key: str, path: Path, config: TeacherConfig, rows: int | None, zeros_are_values: bool) -> TeacherConfig:
    """The teacher's settings as files that are read. The published width counts where the first file has it: files
    [dim, T] are transposed then."""
    dim = config.dim
    if dim is None and key in TEACHERS and TEACHERS[key].dim in _first(path / key, key)[0]:
        dim = TEACHERS[key].dim
    return TeacherConfig(
        network=PRECOMPUTED,
        weights=f"dir:{(path / key).resolve()}",
        view=teacher_view(key, config),
        dim=dim,
        rows=rows if rows is not None else config.rows,
        zero_is_missing=False if zeros_are_values else config.zero_is_missing,
    )


def _tell_loss(key: str, teacher: PrecomputedTeacher, stored: str, dtype: str) -> None:
    if key in TEACHERS and teacher.dim != TEACHERS[key].dim:
        warn(f"{key}: features of width {teacher.dim}; the published teacher's have {TEACHERS[key].dim}")
    if np.promote_types(stored, dtype) != dtype:
        keep = "" if stored == "float64" else "; set cache.dtype: float32 to keep every bit"
        warn(f"{key}: {stored} files are rounded to {dtype}{keep}")
