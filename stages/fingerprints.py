"""What a piece of training depends on: begun under other settings, it is refused and not mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ..models.teachers import parse_source
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.rundir import Run
from .clip_source import source_fingerprint

if TYPE_CHECKING:
    from .rows import RunRows


def clips_hash(clips: Sequence[Clip]) -> str:
    """Hash of clips (as the table names them) and labels, whatever order the table has them in."""
    lines = sorted(json.dumps([c.clip_id, c.sources, c.start_s, c.end_s, c.label], sort_keys=True) for c in clips)
    return files.hash_bytes("\n".join(lines).encode())


def init_path(run: Run, init: str) -> Path:
    """Where the weights lie that a network starts from; a name that stands for no place here gives none that exists."""
    shipped = init.startswith("demo:")
    return Path(parse_source(init).location) if shipped else run.base / init


def init_hash(run: Run, init: str | None) -> str | None:
    """Hash of the file of weights that a network starts from, or of all in its folder; None: random, or a hub's id."""
    if init is None:
        return None
    path = init_path(run, init)
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return files.hash_bytes("".join(_file_hash(p, p.stat().st_mtime_ns) for p in found).encode()) if found else None


@lru_cache(maxsize=64)
def _file_hash(path: Path, _mtime_ns: int) -> str:
    return files.hash_file(path)


def settings_of(section: BaseModel) -> dict[str, Any]:
    """Settings of a stage without those that do not change what comes out."""
    settings = section.model_dump()
    for part in (settings, settings.get("train", {})):
        for name in ("checkpoint", "memory", "snapshots"):
            part.pop(name, None)
    return settings


def training_fingerprint(
    run: Run, section: BaseModel, inputs: Mapping[str, Any], rows: RunRows | None = None
) -> dict[str, Any]:
    """Settings that decide about trained weights, and `inputs`: what the training reads besides the clips.

    How often checkpoints are written and how many workers decode are not among them. With `rows`, the run's, the
    table is not read.
    """
    config = run.config
    train_clips = clips_hash(run.table().split("train")) if rows is None else rows.train_clips
    return {
        "seed": config.seed,
        "train_clips": train_clips,
        "num_classes": run.table().num_classes if rows is None else rows.classes,
        "student": config.student.model_dump(),
        "init": init_hash(run, config.student.init),
        "sampling": config.sampling.model_dump(),
        "augment": config.augment.model_dump(),
        "video": config.video.model_dump(),
        "precision": config.compute.precision,
        "settings": settings_of(section),
        "inputs": dict(inputs),
        **source_fingerprint(config),
    }
