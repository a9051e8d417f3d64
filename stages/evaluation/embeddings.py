"""Embeddings of a network over clips: one deterministic pass, kept in parts, so that tasks share it and it resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import IntegrityError, UniegoError
from ...models import TimeSformer
from ...pipeline import files
from ...pipeline.clips import Clip
from ...pipeline.progress import say
from ...pipeline.rundir import Run, TaskFolder
from ...pipeline.signals import StopFlag
from ..batches import Batch, ClipFailure, ClipReader, Protocol
from ..checkpoints import tensor_bytes
from ..fingerprints import clips_hash
from ..recognition import by_clip, outputs

PART = 256  # clips of a part: what a kill makes undone, at most


@dataclass(frozen=True)
class Embeddings:
    """N clips that could be looked at, and the others.

    tokens float32 [N, D]: means over views and crops. logits float32 [N, C]: sums over them; None of what has no
    classifier. projections: means float32 [N, E] by the name of the projection.
    """

    clips: tuple[Clip, ...]
    tokens: Tensor
    logits: Tensor | None = None
    projections: dict[str, Tensor] = field(default_factory=dict)
    failures: tuple[ClipFailure, ...] = ()

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        return torch.tensor([clip.label for clip in self.clips], dtype=torch.int64)


def embed(
    run: Run,
    model: TimeSformer,
    clips: Sequence[Clip],
    protocol: Protocol,
    reader: ClipReader,
    folder: TaskFolder,
    fingerprint: dict[str, Any],
    flag: StopFlag,
) -> Embeddings:
    """The embeddings of `clips`, computed or taken from `folder`, where they are kept in parts of 256 clips.

    `fingerprint`: what they depend on; those of something else are made anew. Raises `Stopped` when asked to stop
    (whole parts are kept), `IntegrityError` for a damaged part, `UniegoError` for tokens that are not finite or
    where no clip could be decoded.
    """
    changed = bool(folder.differences(fingerprint))
    with folder.work(fingerprint, overwrite=changed, incomplete=_whole(folder.path) < _parts(clips)) as needed:
        if needed:
            _compute(run, model, clips, protocol, reader, folder, flag)
            folder.finish({"clips": len(clips), "parts": _parts(clips)})
    return _load(folder.path, clips)


def _parts(clips: Sequence[Clip]) -> int:
    return -(-len(clips) // PART)


def _path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.safetensors"


def _whole(folder: Path) -> int:
    """How many parts are there from the first on."""
    part = 0
    while _path(folder, part).exists():
        part += 1
    return part


def _compute(
    run: Run,
    model: TimeSformer,
    clips: Sequence[Clip],
    protocol: Protocol,
    reader: ClipReader,
    folder: TaskFolder,
    flag: StopFlag,
) -> None:
    part = _whole(folder.path)
    if part:
        say(f"{folder.title}: {min(part * PART, len(clips))} of {len(clips)} clips are there")
    left = clips[part * PART :]
    results: list[tuple[Batch, dict[str, Tensor]]] = []
    seen = 0
    for batch, out in outputs(run, model, left, protocol, flag, reader=reader, title=folder.title):
        results.append((batch, {} if out is None else _tensors(out, protocol)))
        seen += len(batch.rows) + len(batch.failures)
        if seen % PART == 0 or seen == len(left):
            files.write_bytes(_path(folder.path, part), _encode(results))
            part, results = part + 1, []


def _tensors(out: Any, protocol: Protocol) -> dict[str, Tensor]:
    """Token, logits and projections of a batch per clip, on the CPU."""
    found = {
        "tokens": by_clip(out.token, protocol).mean(1),
        "logits": by_clip(out.logits, protocol).sum(1),
        **{f"projections.{name}": by_clip(value, protocol).mean(1) for name, value in out.projected.items()},
    }
    if any(not value.isfinite().all() for value in found.values()):
        raise UniegoError("the network's class scores or tokens are not finite numbers: its training has failed")
    return {name: value.cpu() for name, value in found.items()}


def _encode(results: list[tuple[Batch, dict[str, Tensor]]]) -> bytes:
    """A part: its tensors, ids of the clips in their order, and failures."""
    made = [tensors for _, tensors in results if tensors]
    joined = {name: torch.cat([tensors[name] for tensors in made]) for name in made[0]} if made else {}
    failures = [list(failure) for batch, _ in results for failure in batch.failures]
    return tensor_bytes(joined, {"failures": json.dumps(failures)})


def clips_order(clips: Sequence[Clip]) -> str:
    """Hash of the clips' ids in their order, which the parts go by."""
    return files.hash_bytes(json.dumps([clip.clip_id for clip in clips]).encode())


def kept_embeddings(folder: TaskFolder, clips: Sequence[Clip], wanted: Sequence[Clip]) -> Embeddings | None:
    """Those of `wanted` out of what `embed` kept of `clips` in `folder`; None where it kept none, or other clips.

    Only the parts that are needed are read. Raises `IntegrityError` for a damaged one.
    """
    known = (folder.record or {}).get("fingerprint", {})
    if not folder.done or (known.get("clips"), known.get("order")) != (clips_hash(clips), clips_order(clips)):
        return None
    ids = {clip.clip_id for clip in wanted}
    parts = {place // PART for place, clip in enumerate(clips) if clip.clip_id in ids}
    found = _load(folder.path, clips, sorted(parts)) if parts else None
    if found is None:
        return None
    keep = [place for place, clip in enumerate(found.clips) if clip.clip_id in ids]
    return Embeddings(
        tuple(found.clips[place] for place in keep),
        found.tokens[keep],
        None if found.logits is None else found.logits[keep],
        {name: values[keep] for name, values in found.projections.items()},
        tuple(failure for failure in found.failures if failure.clip_id in ids),
    )


def _load(folder: Path, clips: Sequence[Clip], only: Sequence[int] | None = None) -> Embeddings:
    """The parts, or some of them."""
    parts = range(_parts(clips)) if only is None else only
    clips = [clip for part in parts for clip in clips[part * PART : (part + 1) * PART]]
    tensors: dict[str, list[Tensor]] = {}
    failures: list[ClipFailure] = []
    for part in parts:
        try:
            with safe_open(_path(folder, part), "pt") as file:
                failures += [ClipFailure(*entry) for entry in json.loads(file.metadata()["failures"])]
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    tensors.setdefault(name, []).append(file.get_tensor(name))
        except SafetensorError as error:
            raise IntegrityError(f"{_path(folder, part)} is damaged ({error}): begin anew with --overwrite") from error
    if not tensors:
        raise UniegoError(f"none of the {len(clips)} {clips[0].split} clips could be decoded")
    joined = {name: torch.cat(values) for name, values in tensors.items()}
    lost = {failure.clip_id for failure in failures}
    projections = {k.removeprefix("projections."): v for k, v in joined.items() if k.startswith("projections.")}
    kept = tuple(clip for clip in clips if clip.clip_id not in lost)
    return Embeddings(kept, joined["tokens"], joined["logits"], projections, tuple(failures))
