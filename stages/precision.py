"""In which arithmetic teachers run: decided once per cache, and compared with fp32 before it is relied on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache.manifest import Manifest
from ..errors import ConfigError, MissingInputError
from ..models.teachers import Precision, Teacher
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .compute import least_cosine
from .shard_work import ShardWork
from .targets import teacher_path

LEAST_COSINE = 0.999
"""Of a feature in reduced precision to the same in fp32."""

_COMPARED = 4  # clips per teacher
_LOOKED_AT = 64  # clips among which they are sought


def settle_precision(
    run: Run, teachers: Sequence[Teacher], device: torch.device, flag: StopFlag, *, overwrite: bool = False
) -> dict[str, float]:
    """Set the precision of every teacher by `extract.precision`; {key: cosine to fp32} of those compared now.

    A teacher with features in the cache goes on in their precision under `auto` and is not compared again. For the
    others reduced precision (asked for, or bf16 by `auto` on a GPU) is compared with fp32 on a few clips. Where the
    cosine is below `LEAST_COSINE`, or no clip can be read to tell, `auto` warns and takes fp32, and a precision asked
    for is refused: `ConfigError` naming the teachers. Raises `Stopped` when asked to stop.
    """
    asked = run.config.extract.precision
    new: list[Teacher] = []
    for teacher in teachers:
        before = None if overwrite else _precision_before(run, teacher.key)
        if asked != "auto":
            teacher.precision = asked
        else:
            teacher.precision = before or ("bf16" if device.type == "cuda" else "fp32")
        if teacher.reads == "stored":
            teacher.precision = "fp32"
        elif teacher.precision != "fp32" and before is None:
            new.append(teacher.to(device))
    cosines = _cosines(run, new, flag) if new else {}
    bad = [teacher for teacher in new if not cosines.get(teacher.key, 0.0) >= LEAST_COSINE]
    if bad:
        what = f"{bad[0].precision} is too far from fp32 (least cosine {LEAST_COSINE}): " + ", ".join(
            f"{t.key} {cosines[t.key]:.5f}" if t.key in cosines else f"{t.key}: no clip to tell by" for t in bad
        )
        if asked != "auto":
            raise ConfigError(f"extract.precision {what}; set extract.precision=fp32 or auto")
        warn(f"{what}; these teachers are run in fp32")
    for teacher in bad:
        teacher.precision = "fp32"
    good = {teacher.key: cosines[teacher.key] for teacher in new if teacher not in bad}
    if good:
        listed = ", ".join(f"{key} {cosine:.5f}" for key, cosine in good.items())
        say(f"extract-teachers: in {new[0].precision}; cosine to fp32: {listed}")
    return good


def precision_of(fingerprint: Mapping[str, Any]) -> Precision:
    """The precision that features of a fingerprint were computed in; without a word of it: fp32."""
    precision: Precision = fingerprint.get("precision", "fp32")
    return precision


def _precision_before(run: Run, key: str) -> Precision | None:
    try:
        return precision_of(Manifest.read(teacher_path(run, key)).fingerprint)
    except MissingInputError:
        return None


def _cosines(run: Run, teachers: Sequence[Teacher], flag: StopFlag) -> dict[str, float]:
    """The least cosine of each teacher over the first few clips that it has an input of."""
    clips = dict(enumerate(run.table().clips[:_LOOKED_AT]))
    least: dict[str, float] = {}
    compared: Counter[str] = Counter()
    with ShardWork(run.config, clips) as work:
        for _, prepared in work.inputs(range(len(clips)), teachers, flag):
            for teacher in teachers:
                item = prepared[teacher.key]
                if not isinstance(item, Tensor) or compared[teacher.key] >= _COMPARED:
                    continue
                exact, reduced = _features(teacher, item, "fp32"), _features(teacher, item, teacher.precision)
                if np.isfinite(exact).all():  # if not, extraction will say so
                    cosine = least_cosine(exact, reduced) if np.isfinite(reduced).all() else 0.0
                    least[teacher.key] = min(least.get(teacher.key, 1.0), cosine)
                    compared[teacher.key] += 1
            if all(compared[teacher.key] >= _COMPARED for teacher in teachers):
                break
    return least


def _features(teacher: Teacher, item: Tensor, precision: Precision) -> npt.NDArray[np.float32]:
    """Features of one clip, float32 [T, D]."""
    before, teacher.precision = teacher.precision, precision
    try:
        features: npt.NDArray[np.float32] = teacher.features([item])[0].cpu().numpy()
        return features
    finally:
        teacher.precision = before
