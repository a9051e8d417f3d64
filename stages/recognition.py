"""Recognition of clips by a trained network: views x crops, raw logits summed, top-1, top-5, mean class accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UniegoError
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .batches import ClipFailure, ClipReader, Protocol, Reader, load, protocol_order
from .loop import autocast


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
            return {"top1": None, "top5": None, "mean_class_accuracy": None, **counts}
        ranked = self.logits.argsort(dim=1, descending=True, stable=True)  # [N,C]
        hits = ranked == self.labels.unsqueeze(1)
        first, five = hits[:, 0], hits[:, :5].any(1)
        classes = sorted(set(self.labels.tolist()))
        per_class = torch.stack([first[self.labels == label].float().mean() for label in classes])
        return {
            "top1": 100.0 * first.float().mean().item(),
            "top5": 100.0 * five.float().mean().item(),
            "mean_class_accuracy": 100.0 * per_class.mean().item(),
            **counts,
        }


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
    compute = run.config.compute
    device = next(model.parameters()).device
    summed: list[Tensor] = []
    kept: list[Clip] = []
    failures: list[ClipFailure] = []
    looks = protocol.views * protocol.crops
    batches = load(
        reader or ClipReader.from_config(run.config),
        clips,
        protocol_order(len(clips), max(1, 8 // looks)),
        protocol=protocol,
        workers=compute.workers,
        pin_memory=device.type == "cuda",
    )
    with Meter(title, len(clips)) as meter:
        for batch in batches:
            flag.check()
            for failure in batch.failures:
                warn(f"clip {failure.clip_id} left out: {failure.message}")
            failures.extend(batch.failures)
            if batch.rows:
                videos = batch.videos.to(device, non_blocking=True).flatten(0, 1)  # [b*looks,…]
                with autocast(device, compute.precision):
                    logits = model(videos).logits
                summed.append(logits.float().unflatten(0, (-1, looks)).sum(1).cpu())
                kept.extend(clips[i] for i in batch.rows)
            meter.advance(len(batch.rows) + len(batch.failures))
    if any(not part.isfinite().all() for part in summed):
        raise UniegoError("the network's class scores are not finite numbers: its training has failed")
    labels = torch.tensor([clip.label for clip in kept], dtype=torch.int64)
    logits = torch.cat(summed) if summed else torch.empty(0, run.table().num_classes)
    return Recognition(tuple(kept), logits, labels, tuple(failures))
