"""What a piece of training depends on: begun under other settings, it is refused and not mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.rundir import Run
from .targets import row_keys


def clips_hash(clips: Sequence[Clip]) -> str:
    """Hash of clips and labels, whatever order the table has them in."""
    lines = sorted(f"{key.clip_id}\t{key.identity}\t{c.label}" for key, c in zip(row_keys(clips), clips, strict=True))
    return files.hash_bytes("\n".join(lines).encode())


def training_fingerprint(run: Run, section: BaseModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide about trained weights, and `inputs`: what the training reads besides the clips.

    How often checkpoints are written and how many workers decode are not among them.
    """
    config = run.config
    settings = section.model_dump()
    for part in (settings, settings.get("train", {})):
        part.pop("checkpoint", None)
    return {
        "seed": config.seed,
        "train_clips": clips_hash(run.table().split("train")),
        "num_classes": run.table().num_classes,
        "student": config.student.model_dump(),
        "sampling": config.sampling.model_dump(),
        "augment": config.augment.model_dump(),
        "video": config.video.model_dump(),
        "precision": config.compute.precision,
        "settings": settings,
        "inputs": dict(inputs),
    }
