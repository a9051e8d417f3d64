"""Do teachers pull a student apart? Cosines between the gradients of their losses on the parameters they share.

A negative cosine is a conflict: a step along one gradient undoes a part of the other. Gradients are those of a global
batch, as a training step has them. Shared is the backbone; the classifier and the projections are left out, since with
naive distillation every teacher has a projection of its own and none touches the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UniegoError
from ..models import TimeSformer, TimeSformerOutput
from ..pipeline.config import SPDConfig
from .batches import Batch
from .spd import spd_loss, token_distance
from .targets import Bank, Targets

Losses = Callable[[TimeSformerOutput, Batch], Mapping[str, Tensor]]
"""What teachers ask of a micro-batch: each one's loss, summed over the clips it teaches, 0-dim; left out (or without a
graph) where it teaches none. A positive factor changes no cosine, so nothing is averaged."""


@dataclass(frozen=True)
class Conflicts:
    """Cosines of M global batches, float64 [M, R, R]; NaN where a teacher of the pair taught no clip of the batch."""

    teachers: tuple[str, ...]
    cosines: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean cosine per pair, float64 [R, R]; NaN where there is none."""
        return self.cosines.nanmean(0)

    @property
    def negative(self) -> Tensor:
        """How often a pair's cosine was negative, int64 [R, R]."""
        return (self.cosines < 0).sum(0)

    @property
    def counts(self) -> Tensor:
        """Of how many cosines, int64 [R, R]."""
        return (~self.cosines.isnan()).sum(0)

    def total(self) -> tuple[int, int]:
        """Negative cosines and all cosines, over the pairs of different teachers, each pair once."""
        return int(self.negative.triu(1).sum()), int(self.counts.triu(1).sum())

    @property
    def without_gradient(self) -> int:
        """Pairs of a global batch of which one asks for nothing: neither conflict nor agreement."""
        size = len(self.teachers)
        return len(self.cosines) * size * (size - 1) // 2 - self.total()[1]


def shared_parameters(model: TimeSformer) -> list[torch.nn.Parameter]:
    """The backbone's: all but those of classifier and projections."""
    return [p for name, p in model.named_parameters() if not name.startswith(("head.", "proj_layer"))]


def measure(
    model: TimeSformer, teachers: Sequence[str], losses: Losses, global_batches: Iterable[Sequence[Batch]]
) -> Conflicts:
    """Conflicts of teachers on a network in eval mode, over global batches given as their micro-batches.

    One gradient per teacher is held: R times the network's size. Raises `UniegoError` for one that is not finite.
    """
    parameters = shared_parameters(model)
    found = []
    for batches in global_batches:
        gradients = _gradients(model, parameters, teachers, losses, batches)
        for teacher, parts in zip(teachers, gradients, strict=True):
            if parts is not None and not all(part.isfinite().all() for part in parts):
                raise UniegoError(f"the gradient of {teacher} is not finite: the network or its targets are broken")
        found.append(_cosines(gradients))
    size = len(teachers)
    return Conflicts(tuple(teachers), torch.stack(found) if found else torch.empty(0, size, size, dtype=torch.float64))


def _gradients(
    model: TimeSformer,
    parameters: Sequence[Tensor],
    teachers: Sequence[str],
    losses: Losses,
    batches: Sequence[Batch],
) -> list[list[Tensor] | None]:
    """Each teacher's gradient of a global batch; None: it teaches no clip of it."""
    sums: dict[str, list[Tensor]] = {}
    for batch in batches:
        if not batch.rows:
            continue
        asked = losses(model(batch.videos), batch)
        for teacher in teachers:
            if teacher in asked and asked[teacher].requires_grad:
                parts = torch.autograd.grad(
                    asked[teacher], parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                known = sums.setdefault(teacher, [torch.zeros_like(p) for p in parameters])
                for total, part in zip(known, parts, strict=True):
                    total += part
    return [sums.get(teacher) for teacher in teachers]


def _cosines(gradients: Sequence[list[Tensor] | None]) -> Tensor:
    """float64 [R, R]; NaN for a gradient that is not there, or zero."""
    size = len(gradients)
    products = torch.full((size, size), torch.nan, dtype=torch.float64)
    for i, one in enumerate(gradients):
        for j, other in enumerate(gradients[: i + 1]):
            if one is not None and other is not None:
                parts = [(a * b).sum(dtype=torch.float64) for a, b in zip(one, other, strict=True)]
                products[i, j] = products[j, i] = torch.stack(parts).sum().cpu()
    lengths = products.diagonal().sqrt()
    lengths = torch.where(lengths > 0, lengths, torch.nan)
    return products / (lengths[:, None] * lengths[None, :])


def naive_losses(targets: Mapping[str, Targets], distance: str = "cosine") -> Losses:
    """Naive distillation: a teacher's feature against the network's projection of its name, over clips that have one.

    `targets`: per teacher, with a row per clip (`Batch.indices`).
    """

    def losses(out: TimeSformerOutput, batch: Batch) -> dict[str, Tensor]:
        found = {}
        for teacher, (values, present) in targets.items():
            there = present[batch.indices.to(present.device)].to(batch.indices.device)
            if there.any():
                wanted = values[batch.indices.to(values.device)].to(batch.indices.device)[there].float()
                found[teacher] = token_distance(out.projected[teacher][there].float(), wanted, distance).sum()
        return found

    return losses


def spd_losses(
    teachers: Sequence[str], bank: Bank, labels: Tensor, config: SPDConfig, projection: str, draws: Tensor | None = None
) -> Losses:
    """Selective Proxy Distillation, taken apart: what each proxy asks of the clips that it teaches. The sum over the
    proxies is the two distillation terms times the number of clips with a selection.

    `bank` (proxies in the order of `teachers`), `labels` int64 and `draws` int64 [N, S] (of `select="random"`) have a
    row per clip (`Batch.indices`), on the network's device.
    """

    def losses(out: TimeSformerOutput, batch: Batch) -> dict[str, Tensor]:
        rows, token = batch.indices, out.projected[projection]
        chosen = spd_loss(
            out.logits,
            token,
            labels[rows],
            proxy_logits=bank.logits[rows],
            proxy_tokens=bank.tokens[rows],
            present=bank.present[rows],
            config=config.model_copy(update={"normalise_over": "micro_batch"}),
            selection=None if draws is None else (draws[rows], None),
        )
        slots = F.one_hot(chosen.selected, len(teachers)) * chosen.valid[..., None]  # [b,S,R]
        weights = slots.sum(1) / chosen.valid.sum(1, keepdim=True).clamp(min=1)  # [b,R]
        teaches = (weights > 0)[..., None]
        tokens = torch.where(teaches, bank.tokens[rows], 0.0)  # [b,R,D]
        logits = torch.where(teaches, bank.logits[rows], 0.0)  # [b,R,C]
        distance = token_distance(token.float().unsqueeze(1), tokens, config.feature_distance)  # [b,R]
        target = F.log_softmax(logits, dim=-1)
        student = F.log_softmax(out.logits.float(), dim=-1).unsqueeze(1)
        divergence = (target.exp() * (target - student)).sum(-1)  # [b,R]
        per_proxy = (weights * (config.feature_weight * distance + config.logit_weight * divergence)).sum(0)  # [R]
        taught = teaches[..., 0].any(0).tolist()
        return {key: loss for key, loss, any_clip in zip(teachers, per_proxy.unbind(), taught, strict=True) if any_clip}

    return losses
