"""Compiled blocks: the same numbers and names, few compilations, and training goes on where it cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from uniego.models import TimeSformer, draw_drop_masks
from uniego.stages.compiling import compile_blocks

GEOMETRY: dict[str, Any] = {"image_size": 16, "patch_size": 8, "num_frames": 2, "width": 16, "depth": 3, "heads": 2}


@pytest.fixture(autouse=True)
def _forget_compilations() -> Iterator[None]:
    yield
    torch.compiler.reset()


def network() -> TimeSformer:
    model = TimeSformer(**GEOMETRY, num_classes=3, projections={"teacher": 8}, drop_path=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".temporal_fc.weight" in name:
                parameter.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return model.train()


def step(model: TimeSformer, clips: int, seed: int) -> dict[str, Tensor]:
    """Gradients of one micro-batch."""
    video = torch.randn(clips, 3, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    rngs = [np.random.default_rng((seed, clip)) for clip in range(clips)]
    out = model(video, drop_masks=draw_drop_masks(model.drop_rates, 4, 2, rngs))
    (out.logits.square().sum() + out.projected["teacher"].sum()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_gradients_and_names_and_few_compilations(recompute: bool) -> None:
    plain, compiled = network(), network()
    plain.recompute = compiled.recompute = recompute
    graphs = 0

    def counting(graph: Any, inputs: list[Any]) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    assert compile_blocks(compiled, 4, "fp32", backend=counting)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert graphs == 2  # without masks (the first block) and with them
    for seed, clips in enumerate((4, 3, 2, 4)):  # clips that cannot be read are left out
        ours, theirs = step(compiled, clips, seed), step(plain, clips, seed)
        assert list(ours) == list(theirs)
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert graphs <= 4  # once more for any number of clips
    with torch.no_grad():
        compiled.eval()(torch.zeros(1, 3, 2, 16, 16))
    assert graphs <= 4


def test_a_compiler_that_fails_is_told_and_left_aside(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(graph: Any, inputs: list[Any]) -> Any:
        raise FileNotFoundError("no C++ compiler here")

    model = network()
    assert not compile_blocks(model, 2, "fp32", backend=broken)
    said = capsys.readouterr().err
    assert "trained without" in said
    assert "no C++ compiler here" in said
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, gradient in step(network(), 2, 0).items():
        assert torch.equal(step(model, 2, 0)[name], gradient)


@pytest.mark.slow
def test_the_compiler_of_this_machine() -> None:
    plain, compiled = network(), network()
    if not compile_blocks(compiled, 4, "fp32"):
        pytest.skip("no compiler that torch.compile can use")
    ours, theirs = step(compiled, 4, 0), step(plain, 4, 0)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
