"""Work that a run took in instead of doing it: what its record says, and whether it fits the run's present settings.

The fingerprint of such work names no training: it holds the content that was taken in, and what could be compared.
`ORIGIN` in its folder says where that came from and what nobody can verify.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FingerprintMismatch
from ..pipeline import files
from ..pipeline.rundir import Run, TaskFolder
from .rows import RunRows

ORIGIN = "origin.json"
_NETWORK = ("image_size", "patch_size", "num_frames", "width", "depth", "heads")
_FIELD = "imported"


def imported(folder: TaskFolder) -> dict[str, Any] | None:
    """What was taken in, by content, where the work in a folder is imported and whole; else None."""
    record = folder.record
    if record is None or record["state"] != "done":
        return None
    found: dict[str, Any] | None = record["fingerprint"].get(_FIELD)
    return found


def imported_proxies(run: Run) -> list[str]:
    """Teachers whose proxies were imported."""
    return [key for key in run.config.teachers if imported(run.proxy_folder(key)) is not None]


def import_fingerprint(
    run: Run, content: Mapping[str, Any], rows: RunRows, *, clips: bool, network: bool = True
) -> dict[str, Any]:
    """What imported work depends on: its content, the classes, with `network` the student's sizes, with `clips` the
    train clips."""
    return {
        _FIELD: dict(content),
        "num_classes": rows.classes,
        **({"student": run.config.student.model_dump(include=set(_NETWORK))} if network else {}),
        **({"train_clips": rows.train_clips} if clips else {}),
    }


def fingerprint_now(run: Run, folder: TaskFolder, rows: RunRows) -> dict[str, Any] | None:
    """What the record of an imported piece of work would say under the present settings; None where it is none."""
    content, record = imported(folder), folder.record
    if content is None or record is None:
        return None
    known = record["fingerprint"]
    return import_fingerprint(run, content, rows, clips="train_clips" in known, network="student" in known)


def accept(run: Run, folder: TaskFolder, rows: RunRows) -> str | None:
    """How imported work is called in messages, None where it is none.

    Raises `FingerprintMismatch` where it does not fit the run's present settings.
    """
    wanted = fingerprint_now(run, folder, rows)
    if wanted is None:
        return None
    different = folder.differences(wanted)
    if different:
        advice = "Restore those settings, or import it anew with --overwrite."
        raise FingerprintMismatch(f"{folder.title} in {folder.path}", different, advice, "was imported for others")
    return f"{folder.title} was imported; how it was trained cannot be verified (see {folder.path / ORIGIN})"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, as others publish it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_origin(folder: TaskFolder, sources: Sequence[Path], content: Mapping[str, Any], unverified: str) -> None:
    """Keep with the work where it came from: absolute paths, the content as the fingerprint has it, what is open."""
    origin = {
        "from": [str(path.resolve()) for path in sources],
        "content": dict(content),
        "not_verified": unverified,
    }
    files.write_json(folder.path / ORIGIN, origin)
