"""Recognition of clips by a trained network: views x crops, raw logits summed, top-1, top-5, mean class accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UniegoError
from ..metrics import accuracies, label_ranks
from ..metrics.classification import Accuracies
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .batches import Batch, ClipFailure, ClipReader, Protocol, Reader, load, protocol_order
from .loop import autocast

LOOKS = 8  # views and crops of clips that go through a network together; at least one clip


@dataclass(frozen=True)
class Recognition:
    """Summed raw logits float32 [N, C] and labels int64 [N] of the clips that could be decoded, and the others."""

    clips: tuple[Clip, ...]
    logits: Tensor
    labels: Tensor
    failures: tuple[ClipFailure, ...]

    def metrics(self) -> dict[str, Any]:
        """top1, top5 and mean_class_accuracy in percent; clips counted and left out.

        With fewer than six classes top-5 counts a clip as right wherever its label ranks. The mean over classes
        takes those that have clips. All are None when no clip could be decoded.
        """
        total = len(self.labels)
        counts = {"clips": total, "failed": len(self.failures)}
        if not total:
            return {**dict.fromkeys(Accuracies._fields), **counts}
        ranks = label_ranks(self.logits, self.labels)
        return {**accuracies(ranks, self.labels.numpy())._asdict(), **counts}


@torch.inference_mode()
def recognise(
    run: Run,
    model: nn.Module,
    clips: Sequence[Clip],
    protocol: Protocol,
    flag: StopFlag,
    *,
    reader: Reader | None = None,
    title: str = "evaluate",
) -> Recognition:
    """Look at every clip by the protocol, the way `reader` does (None: the run's, at the ego view).

    `model` gives an output with logits [B, C], and must be in eval mode. Raises `Stopped` when asked to stop,
    `UniegoError` when scores are not finite.
    """
    summed: list[Tensor] = []
    kept: list[Clip] = []
    failures: list[ClipFailure] = []
    for batch, out in outputs(run, model, clips, protocol, flag, reader=reader, title=title):
        failures.extend(batch.failures)
        if out is not None:
            summed.append(by_clip(out.logits, protocol).sum(1).cpu())
            kept.extend(clips[i] for i in batch.rows)
    if any(not part.isfinite().all() for part in summed):
        raise UniegoError("the network's class scores are not finite numbers: its training has failed")
    labels = torch.tensor([clip.label for clip in kept], dtype=torch.int64)
    logits = torch.cat(summed) if summed else torch.empty(0, run.table().num_classes)
    return Recognition(tuple(kept), logits, labels, tuple(failures))


@torch.inference_mode()
def outputs(
    run: Run,
    model: nn.Module,
    clips: Sequence[Clip],
    protocol: Protocol,
    flag: StopFlag,
    *,
    reader: Reader | None = None,
    title: str = "evaluate",
) -> Iterator[tuple[Batch, Any]]:
    """What `model` gives for the clips in their order, a few at a time: the batch, and the output for its looks.

    The output's tensors have b * views * crops rows (see `by_clip`); it is None where no clip of a batch could be
    decoded. Raises `Stopped` when asked to stop.
    """
    compute = run.config.compute
    device = next(model.parameters()).device
    looks = protocol.views * protocol.crops
    batches = load(
        reader or ClipReader.from_config(run.config),
        clips,
        protocol_order(len(clips), max(1, LOOKS // looks)),
        protocol=protocol,
        workers=compute.workers,
        pin_memory=device.type == "cuda",
    )
    with Meter(title, len(clips)) as meter:
        for batch in batches:
            flag.check()
            for failure in batch.failures:
                warn(f"clip {failure.clip_id} left out: {failure.message}")
            out = None
            if batch.rows:
                videos = batch.videos.to(device, non_blocking=True).flatten(0, 1)  # [b*looks,…]
                with autocast(device, compute.precision):
                    out = model(videos)
            yield batch, out
            meter.advance(len(batch.rows) + len(batch.failures))


def by_clip(values: Tensor, protocol: Protocol) -> Tensor:
    """Rows of looks as float32 [b, looks, …]."""
    return values.float().reshape(-1, protocol.views * protocol.crops, *values.shape[1:])
