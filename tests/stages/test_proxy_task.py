"""The proxy's feature loss against the released code's numbers, and a genuine zero feature as a value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from uniego.stages.train_proxies import feature_loss

DATA = Path(__file__).parents[1] / "data"
CASES: list[dict[str, Any]] = json.loads((DATA / "distill_loss_stage1.json").read_text())
ARRAYS = np.load(DATA / "distill_loss_stage1.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_equals_the_release(case: dict[str, Any]) -> None:
    t = {k.split("/")[1]: torch.tensor(ARRAYS[k]) for k in ARRAYS.files if k.startswith(case["name"] + "/")}
    student = t["student"].requires_grad_()
    present = t["teacher"].abs().amax(1) > 1e-6  # the release's rule for "missing"; ours is a stored flag
    loss = feature_loss(student, t["teacher"], present, case["loss_type"], case["loss_weight"])
    torch.testing.assert_close(loss.detach(), t["loss"].squeeze().float(), rtol=1e-4, atol=1e-5)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    grad = student.grad if student.grad is not None else torch.zeros_like(student)
    scale = t["grad_student"].abs().max().clamp(min=1e-6).item()
    torch.testing.assert_close(grad, t["grad_student"], rtol=1e-3, atol=1e-3 * scale)


def test_a_genuine_zero_feature_counts_and_an_absent_one_does_not() -> None:
    projected, target = torch.ones(2, 4), torch.zeros(2, 4)
    target[1] = 1.0
    both = feature_loss(projected, target, torch.tensor([True, True]))
    one = feature_loss(projected, target, torch.tensor([False, True]))
    assert both.item() == pytest.approx(0.5)  # (1 - 0 + 1 - 1) / 2
    assert one.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_absent_rows_may_hold_anything(distance: str) -> None:
    projected = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.full((3, 4), float("nan"))
    target[0] = 1.0
    loss = feature_loss(projected, target, torch.tensor([True, False, False]), distance)
    loss.backward()  # type: ignore[no-untyped-call]
    assert projected.grad is not None
    assert projected.grad.isfinite().all()
    assert (projected.grad[1:] == 0).all()


def test_no_target_at_all_is_exactly_zero() -> None:
    loss = feature_loss(torch.randn(2, 4), torch.full((2, 4), torch.inf), torch.tensor([False, False]))
    assert loss.item() == 0.0
