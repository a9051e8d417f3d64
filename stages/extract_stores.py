"""The teachers as they are built, and the stores that their features go to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..cache import ArraySpec, ClipIndex, FeatureStore
from ..cache import remove as remove_store
from ..errors import FingerprintMismatch, WeightsError, fingerprint_difference
from ..models.teachers import Teacher, build_teacher
from ..pipeline.progress import warn
from ..pipeline.rundir import Run
from ..pipeline.video import backend_identity
from .compute import maker
from .targets import teacher_path
from .train_teacher import in_force

_OTHERS = ("the other teachers can be extracted by naming them with --teacher",)


def build_teachers(run: Run, keys: Sequence[str]) -> dict[str, Teacher]:
    """Load all networks; say at once which of them are not ready."""
    built, problems = {}, []
    for key in keys:
        try:
            built[key] = build_teacher(key, in_force(run, key))
        except WeightsError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise WeightsError("\n".join(["not ready:", *problems, *(_OTHERS if len(problems) < len(keys) else ())]))
    random = [key for key, teacher in built.items() if teacher.is_random]
    if random:
        warn(f"RANDOM teachers, for trying things out only, they know nothing: {', '.join(random)}")
    return built


def open_store(
    run: Run,
    index: ClipIndex,
    teacher: Teacher,
    made: Mapping[str, Any],
    cosine: float | None,
    overwrite: bool,
    task: str,
) -> FeatureStore:
    """Make or open the store of a teacher; `task` names this writer's ledger. Raises `FingerprintMismatch`.

    `cosine`: of its features to those in fp32 where that was measured.
    """
    path = teacher_path(run, teacher.key)
    if overwrite and path.exists():
        remove_store(path)
    reduced = {} if cosine is None else {"precision": {"dtype": teacher.precision, "cosine_to_fp32": cosine}}
    attributes = {**_attributes(teacher), "made_with": {**made, **reduced}}
    return FeatureStore.create(
        path, index, _arrays(run, teacher), fingerprint(run, teacher), attributes, task, maker(made)
    )


def existing_store(run: Run, index: ClipIndex, teacher: Teacher) -> FeatureStore | None:
    """The store of a teacher if there is one; nothing is written. Raises `FingerprintMismatch`."""
    path = teacher_path(run, teacher.key)
    if not path.exists():
        return None
    store = FeatureStore.open(path, index)
    different = fingerprint_difference(store.fingerprint, fingerprint(run, teacher))
    if different:
        raise FingerprintMismatch(f"feature store {path}", different, "Use another cache.root, or --overwrite.")
    return store


def row_bytes(run: Run, teacher: Teacher) -> int:
    """Bytes of one clip's feature in the cache, before it is compressed."""
    specs = _arrays(run, teacher).values()
    return sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs)


def fingerprint(run: Run, teacher: Teacher) -> dict[str, Any]:
    """What decides about a teacher's stored features: weights, preparation, picks, decoder, arithmetic, dtype.

    fp32 goes without saying, as in caches that are older than the choice.
    """
    videos = (clip.video(teacher.view) for clip in run.table().clips)
    decoder = backend_identity(run.config.video.backend, videos) if teacher.reads in {"frames", "clip"} else {}
    return {
        "teacher": teacher.fingerprint(),
        "picks": "as stored" if teacher.reads == "stored" else "centres of equal parts of the clip",
        "decoder": decoder,
        "dtype": run.config.cache.dtype,
        **({} if teacher.precision == "fp32" else {"precision": teacher.precision}),
    }


def _arrays(run: Run, teacher: Teacher) -> dict[str, ArraySpec]:
    description = "one feature per picked frame" if teacher.rows > 1 else "one feature per clip"
    shape = (teacher.rows, teacher.dim)
    return {"features": ArraySpec(shape, run.config.cache.dtype, ("time", "feature"), description)}


def _attributes(teacher: Teacher) -> dict[str, Any]:
    return {
        "teacher": teacher.key,
        "view": teacher.view,
        "random": teacher.is_random,
        **teacher.describe(),
    }
