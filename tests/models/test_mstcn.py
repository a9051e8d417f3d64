"""The segmentation head: reach of its layers, its loss by hand, draws that are its own."""

from __future__ import annotations

import math

import pytest
import torch
from uniego.models.mstcn import MSTCN, mstcn_loss


def tiny(**options: int) -> MSTCN:
    shape = {"layers": 3, "refinements": 2, "refinement_layers": 2, "width": 8, **options}
    return MSTCN(5, 4, **shape).eval()  # type: ignore[arg-type]


def test_shapes_and_a_single_step() -> None:
    assert tiny()(torch.randn(2, 5, 30)).shape == (3, 2, 4, 30)
    assert tiny(refinements=0)(torch.randn(1, 5, 1)).shape == (1, 1, 4, 1)


def test_each_layer_looks_near_and_far() -> None:
    head = tiny(layers=4)
    dilations = [(layer.near.dilation[0], layer.far.dilation[0]) for layer in head.first.layers]  # type: ignore[union-attr]
    assert dilations == [(1, 8), (2, 4), (4, 2), (8, 1)]
    head = tiny(layers=3, refinements=0)
    x = torch.randn(1, 5, 41, requires_grad=True)
    head(x)[-1, 0, :, 20].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (20 - 10, 20 + 10)  # 4 + 2 + 4


def test_the_loss_by_hand() -> None:
    scores = torch.tensor([[[[0.0, 2.0, 9.0], [0.0, 0.0, -9.0]]]], requires_grad=True)  # [1, 1, 2, 3]
    labels = torch.tensor([[0, 0, 1]])
    entropy, smoothing = mstcn_loss(scores, labels, smoothing=1.0)
    log = scores.detach()[0, 0].log_softmax(0)
    assert entropy.item() == pytest.approx(-float(log[0, 0] + log[0, 1] + log[1, 2]) / 3)
    jumps = [min(abs(float(log[c, t] - log[c, t - 1])), 4.0) ** 2 for c in (0, 1) for t in (1, 2)]
    assert smoothing.item() == pytest.approx(sum(jumps) / 4)
    smoothing.backward()
    assert scores.grad is not None
    assert scores.grad[..., 0].abs().max() == 0  # the earlier step is a constant
    two = torch.cat([scores.detach()] * 2)
    assert mstcn_loss(two, labels)[0].item() == pytest.approx(2 * entropy.item())
    assert mstcn_loss(scores[..., :1], labels[:, :1])[1].item() == 0.0
    assert not math.isnan(mstcn_loss(scores[..., :1], labels[:, :1])[0].item())


def test_weights_come_from_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (MSTCN(5, 4, layers=2, refinements=1, refinement_layers=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.first.enter.weight, other.first.enter.weight)
