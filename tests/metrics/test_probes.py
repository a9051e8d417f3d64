"""Linear probe and k-NN on frozen embeddings."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from uniego.errors import UsageError
from uniego.metrics import LinearProbe, neighbour_vote


def clusters(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(90) % 3
    centres = torch.eye(3, 6) * 4
    return centres[labels] + torch.randn(90, 6, generator=g) + 100, labels


def test_the_linear_probe_is_at_the_minimum_and_knows_clusters() -> None:
    x, y = clusters(0)
    x[:, 5] = 7.0  # constant: neither divided by nor used
    probe = LinearProbe.fit(x, y, 4, l2=0.01)
    assert probe.gradient < 1e-6
    other, wanted = clusters(1)
    other[:, 5] = 7.0
    assert (probe(other).argmax(1) == wanted).float().mean() > 0.9
    z = (x.double() - probe.mean) / probe.scale

    def objective(weight: torch.Tensor) -> float:
        return float(F.cross_entropy(F.linear(z, weight, probe.bias), y) + 0.005 * weight.square().sum())

    g = torch.Generator().manual_seed(0)
    moved = [probe.weight + 0.05 * torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(20)]
    assert all(objective(weight) > objective(probe.weight) for weight in moved)
    with pytest.raises(UsageError, match="finite"):
        LinearProbe.fit(x / 0, y, 3)


def test_neighbours_vote() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 1, 1, 2])
    query = torch.tensor([[1.0, 0.05], [0.05, 1.0], [5.0, 5.0]])
    assert neighbour_vote(query, gallery, labels, 3, k=3).argmax(1).tolist() == [0, 1, 2]
    assert neighbour_vote(query[:1], gallery, labels, 3, k=1).count_nonzero() == 1
    assert neighbour_vote(query[:1], gallery, labels, 3, k=99).argmax(1).item() == 0  # a tie in votes: nearer
    with pytest.raises(UsageError, match="empty"):
        neighbour_vote(query, gallery[:0], labels[:0], 3)
