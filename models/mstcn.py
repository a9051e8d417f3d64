"""MS-TCN++: temporal action segmentation of a sequence of features (arXiv 2006.09220), written from the paper.

A prediction stage of dual dilated layers gives class scores for every step; each refinement stage reads the
probabilities of the stage before and corrects them. All stages are trained, the last one is used.

Shape legend: B sequences, D width of a feature, T steps, C classes, W channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRUNCATION = 4.0  # tau: a jump of log-probability counts no more than this


class MSTCN(nn.Module):
    """Class scores of every stage for features [B, D, T]: float [stages, B, C, T].

    In layer l of `layers` the first stage joins two convolutions of three taps, of dilation 2^l and 2^(layers-1-l);
    the `refinements` further stages have layers of dilation 2^l. Weights are drawn from `seed`; the global random state
    is not changed.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        layers: int = 11,
        refinements: int = 3,
        refinement_layers: int = 10,
        width: int = 64,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dual = [_Dual(width, 2**layer, 2 ** (layers - 1 - layer), dropout) for layer in range(layers)]
            self.first = _Stage(features, classes, width, dual)
            self.others = nn.ModuleList(
                _Stage(
                    classes, classes, width, [_Dilated(width, 2**layer, dropout) for layer in range(refinement_layers)]
                )
                for _ in range(refinements)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Scores [stages, B, C, T], the last stage's last."""
        scores = [self.first(features)]
        for stage in self.others:
            scores.append(stage(scores[-1].softmax(1)))
        return torch.stack(scores)


class _Stage(nn.Module):
    """1x1 convolution, layers, 1x1 convolution."""

    def __init__(self, features: int, classes: int, width: int, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.enter = nn.Conv1d(features, width, 1)
        self.layers = nn.Sequential(*layers)
        self.leave = nn.Conv1d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, C, T]."""
        out: Tensor = self.leave(self.layers(self.enter(x)))
        return out


class _Dual(nn.Module):
    """x + W ReLU([near(x), far(x)]): a small and a large receptive field in one layer."""

    def __init__(self, width: int, near: int, far: int, dropout: float) -> None:
        super().__init__()
        self.near, self.far = _conv(width, near), _conv(width, far)
        self.join = nn.Conv1d(2 * width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, W, T] -> the same shape."""
        both = torch.cat((self.near(x), self.far(x)), dim=1).relu()
        out: Tensor = x + self.dropout(self.join(both))
        return out


class _Dilated(nn.Module):
    """x + W ReLU(conv(x))."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv, self.join = _conv(width, dilation), nn.Conv1d(width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, W, T] -> the same shape."""
        out: Tensor = x + self.dropout(self.join(self.conv(x).relu()))
        return out


def _conv(width: int, dilation: int) -> nn.Conv1d:
    return nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)


def mstcn_loss(scores: Tensor, labels: Tensor, smoothing: float = 0.15) -> tuple[Tensor, Tensor]:
    """Cross-entropy and smoothing loss of scores [stages, B, C, T] and labels int64 [B, T], each summed over stages.

    Smoothing is the mean of min(|log p_t - log p_(t-1)|, 4)^2 over classes and steps, where log p_(t-1) is taken as a
    constant, times `smoothing`; 0 for a single step.
    """
    stages = len(scores)
    entropy = F.cross_entropy(scores.flatten(0, 1), labels.repeat(stages, 1)) * stages
    if scores.shape[-1] < 2:
        return entropy, scores.new_zeros(())
    log = scores.log_softmax(2)
    jumps = (log[..., 1:] - log[..., :-1].detach()).abs().clamp(max=TRUNCATION)
    return entropy, smoothing * jumps.square().mean() * stages
