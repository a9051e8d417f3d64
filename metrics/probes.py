"""What frozen embeddings know: a linear classifier, the vote of the nearest neighbours, a map to another space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UsageError
from .retrieval import sort_keys

_BLOCK = 1 << 24  # similarities of neighbour_vote that are in memory at once


class LinearProbe(NamedTuple):
    """Multinomial logistic regression, float64: scores = (x - mean) / scale @ weight.T + bias."""

    mean: Tensor  # [D]
    scale: Tensor  # [D]
    weight: Tensor  # [C, D]
    bias: Tensor  # [C]
    gradient: float  # largest entry of the objective's gradient where the fit ended
    steps: int

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int, *, l2: float = 1e-3, steps: int = 200) -> LinearProbe:
        """Minimise mean CE + l2/2 |weight|^2 (the bias is free) by L-BFGS from zero, at most `steps` iterations.

        features: float [N, D], labels int64 [N] in 0..classes-1. Mean and scale (standard deviation; 1 for a constant
        feature) are those of `features`. The objective is convex, so its minimum does not depend on a start or a
        seed. Raises `UsageError` for N = 0 or features that are not finite.
        """
        if features.ndim != 2 or not len(features) or not features.isfinite().all():
            raise UsageError(f"a probe needs finite features [N, D], N > 0; got {[*features.shape]}")
        features = features.double()
        mean, scale = features.mean(0), _scale(features)
        x = (features - mean) / scale
        weight = torch.zeros(classes, x.shape[1], device=x.device, dtype=x.dtype, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, dtype=x.dtype, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, weight, bias), labels) + l2 / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(objective)  # type: ignore[no-untyped-call]
            objective()
        assert weight.grad is not None
        assert bias.grad is not None
        gradient = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
        done = int(optimizer.state[weight].get("n_iter", 0))
        return cls(mean, scale, weight.detach(), bias.detach(), gradient, done)

    def __call__(self, features: Tensor) -> Tensor:
        """Raw scores float64 [N, C] of features [N, D]."""
        return F.linear((features.double() - self.mean) / self.scale, self.weight, self.bias)


class RidgeMap(NamedTuple):
    """A linear map between two spaces, float64: (x - mean) / scale @ weights is the target less `offset`."""

    mean: Tensor  # [D]
    scale: Tensor  # [D]
    weights: Tensor  # [D, E]
    offset: Tensor  # [E]

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, ridge: float) -> RidgeMap:
        """Minimise the mean squared error plus `ridge` * |weights|^2, of standardised features [N, D], to [N, E]."""
        features, targets = features.double(), targets.double()
        mean, scale, offset = features.mean(0), _scale(features), targets.mean(0)
        x = (features - mean) / scale
        damped = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return cls(mean, scale, torch.linalg.lstsq(damped, x.T @ (targets - offset)).solution, offset)

    def __call__(self, features: Tensor) -> Tensor:
        """Features [N, D] in the target's space, less its mean: float64 [N, E]."""
        return (features.double() - self.mean) / self.scale @ self.weights


def _scale(features: Tensor) -> Tensor:
    """Standard deviations [D]; 1 for a constant feature, whose rounding is no variation."""
    scale, mean = features.std(0, correction=0), features.mean(0)
    return torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0)


@torch.inference_mode()
def neighbour_vote(queries: Tensor, gallery: Tensor, labels: Tensor, classes: int, *, k: int = 20) -> Tensor:
    """Scores float64 [Q, C]: each query's k nearest items of the gallery by cosine vote for their class.

    A vote counts 1, and its cosine breaks ties between classes with as many votes; of items that are as near the first
    in the gallery votes. queries [Q, D], gallery [G, D],
    labels int64 [G]. A gallery of fewer than k items votes whole.
    """
    if not len(gallery):
        raise UsageError("no neighbours to ask: the gallery is empty")
    items, k = F.normalize(gallery.float(), dim=1), min(k, len(gallery))
    scores = torch.zeros(len(queries), classes, dtype=torch.float64, device=gallery.device)
    rows = max(1, _BLOCK // len(gallery))
    for at in range(0, len(queries), rows):
        cosines = F.normalize(queries[at : at + rows].float(), dim=1) @ items.T
        places = len(items) - 1 - (sort_keys(cosines).topk(k).values & 0xFFFFFFFF)
        votes = 1.0 + (cosines.gather(1, places).double() + 1) / (4 * k)  # all cosines together: half a vote at most
        scores[at : at + rows].scatter_add_(1, labels[places], votes)
    return scores
