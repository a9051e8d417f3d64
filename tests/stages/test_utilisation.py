"""The count of operations, and no share of a peak that is not known."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from uniego.models import TimeSformer
from uniego.stages.utilisation import describe, forward_flops, peak, told


def test_the_count_is_the_profilers() -> None:
    model = TimeSformer(32, 8, 4, 48, 3, 4, 7, drop_path=0.0).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 4, 32, 32))
    heads = 2 * 48 * 7
    assert forward_flops(model.geometry) == pytest.approx(counter.get_total_flops() - heads, rel=1e-3)


def test_vit_b_on_eight_frames() -> None:
    assert forward_flops(TimeSformer().geometry) == pytest.approx(391.7e9, rel=2e-3)


def test_only_a_known_peak_gives_a_share() -> None:
    assert peak("NVIDIA H200", "bf16") == 989e12
    assert peak("NVIDIA H200", "fp32") is None
    assert peak("NVIDIA GeForce", "bf16") is None
    assert describe(1.0, 1e9, torch.device("cpu"), "bf16") == ""
    assert told(495e12, 990e12) == "MFU 50% of 990 TFLOP/s (data sheet)"
