"""Drop-path masks, and the network with and without them against a slow, literal rewrite."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from uniego.models import TimeSformer, draw_drop_masks, drop_mask_shapes
from uniego.models.droppath import BlockMasks

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "width": 48,
    "depth": 3,
    "heads": 4,
    "num_classes": 7,
}


def lively(model: TimeSformer, seed: int = 5) -> TimeSformer:
    """Every parameter random, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def video(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A literal rewrite: one tube, one frame, one head at a time, with no shared code.


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(state: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    query, key, value = linear(state, f"{name}.qkv", x).chunk(3, dim=-1)  # [L, D]
    size = x.shape[-1] // heads
    parts = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        scores = query[:, cut] @ key[:, cut].T / math.sqrt(size)
        parts.append(scores.softmax(-1) @ value[:, cut])
    return linear(state, f"{name}.proj", torch.cat(parts, -1))


def mlp(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = linear(state, f"{name}.fc1", x)
    return linear(state, f"{name}.fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def slow_clip(model: TimeSformer, clip: Tensor, masks: Sequence[BlockMasks | None], b: int) -> tuple[Tensor, Tensor]:
    """Logits and token of one clip [3, T, H, W], `masks` row b."""
    state = dict(model.state_dict())
    size, patch = model.geometry["width"], model.geometry["patch_size"]
    frames, h, w = clip.shape[1], clip.shape[2] // patch, clip.shape[3] // patch
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    x = torch.zeros(h * w, frames, size, dtype=clip.dtype)
    for i in range(h):
        for j in range(w):
            position = state["pos_embed"][0, 1 + (i * side // h) * side + j * side // w]
            for t in range(frames):
                pixels = clip[:, t, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                embedded = (state["patch_embed.proj.weight"] * pixels).sum((1, 2, 3)) + state["patch_embed.proj.bias"]
                time = state["time_embed"][0, t * state["time_embed"].shape[1] // frames]
                x[i * w + j, t] = embedded + position + time
    cls = state["cls_token"][0, 0] + state["pos_embed"][0, 0]
    for index, rate in enumerate(model.drop_rates):
        block, entry, keep = f"blocks.{index}", masks[index], 1 - rate
        scale = (
            (torch.ones(h * w), torch.ones(frames), torch.ones(()))
            if entry is None
            else tuple(mask[b].double() / keep for mask in entry)
        )
        heads = model.geometry["heads"]
        for n in range(h * w):
            mixed = attention(state, f"{block}.temporal_attn", norm(state, f"{block}.temporal_norm1", x[n]), heads)
            x[n] = x[n] + linear(state, f"{block}.temporal_fc", scale[0][n] * mixed)
        before, after, shares = torch.cat((cls.expand(frames, 1, -1), x.transpose(0, 1)), 1), x.clone(), []
        for t in range(frames):
            mixed = scale[1][t] * attention(state, f"{block}.attn", norm(state, f"{block}.norm1", before[t]), heads)
            shares.append(mixed[0])
            after[:, t] += mixed[1:]
        cls, x = cls + sum(shares) / frames, after
        cls = cls + scale[2] * mlp(state, f"{block}.mlp", norm(state, f"{block}.norm2", cls))
        x = x + scale[2] * mlp(state, f"{block}.mlp", norm(state, f"{block}.norm2", x))
    token = norm(state, "norm", cls)
    return linear(state, "head", token), token


@pytest.mark.parametrize("shape", [(4, 32, 32), (3, 24, 40), (8, 16, 64), (1, 37, 33)])
def test_drop_path_and_sizes_equal_a_literal_rewrite(shape: tuple[int, int, int]) -> None:
    """16 x 64 pixels have as many patches as 32 x 32 has positions, in another grid."""
    model = lively(TimeSformer(**{**TINY, "drop_path": 0.6})).double()
    x = video(2, 3, *shape)
    h, w = model.grid(*shape[1:])
    for masks in (
        [None] * 3,
        draw_drop_masks(model.drop_rates, h * w, shape[0], [np.random.default_rng(i) for i in (1, 2)]),
    ):
        out = model.eval()(x, drop_masks=masks)
        for b in range(2):
            logits, token = slow_clip(model, x[b], masks, b)
            torch.testing.assert_close(out.logits[b], logits, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(out.token[b], token, atol=1e-9, rtol=1e-9)


def test_dropped_tubes_still_get_the_bias_of_temporal_fc() -> None:
    block = lively(TimeSformer(**TINY, drop_path=0.5)).double().blocks[1]
    bias = block.temporal_fc.bias
    patches, cls = video(1, 4, 6, 48), video(1, 48)
    none_kept = (
        torch.zeros(1, 6, dtype=torch.bool),
        torch.zeros(1, 4, dtype=torch.bool),
        torch.zeros(1).bool(),
    )
    after_cls, after_patches = block(cls, patches, none_kept)
    torch.testing.assert_close(after_cls, cls, atol=0, rtol=0)
    torch.testing.assert_close(after_patches, patches + bias)


def test_a_clips_masks_do_not_depend_on_its_batch() -> None:
    rates = (0.0, 0.2, 0.5)
    together = draw_drop_masks(rates, 6, 4, [np.random.default_rng(seed) for seed in (7, 8, 9)])
    alone = draw_drop_masks(rates, 6, 4, [np.random.default_rng(8)])
    shapes = drop_mask_shapes(rates, 3, 6, 4)
    assert together[0] is None
    assert shapes[0] is None
    for block, single, shape in zip(together[1:], alone[1:], shapes[1:], strict=True):
        assert tuple(mask.shape for mask in block) == shape
        for mask, one in zip(block, single, strict=True):
            assert mask.dtype == torch.bool
            assert torch.equal(mask[1:2], one)


def test_masks_keep_the_stated_share() -> None:
    masks = draw_drop_masks((0.0, 0.1, 0.4), 200, 100, [np.random.default_rng(i) for i in range(100)])
    for block, rate in zip(masks[1:], (0.1, 0.4), strict=True):
        for mask in block[:2]:
            assert abs(mask.double().mean() - (1 - rate)) < 0.02
    assert not torch.equal(masks[1][0], masks[2][0])


def test_training_draws_from_the_modules_own_generator() -> None:
    first, second = (lively(TimeSformer(**TINY, drop_path=0.5, seed=3)).double().train() for _ in range(2))
    x = video(4, 3, 4, 32, 32)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = first(x).logits
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(2)
    assert torch.equal(one, second(x).logits)
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]  # noqa: S301
    again = first(x).logits
    assert not torch.equal(again, one)
    for model in (*copies, second):
        assert torch.equal(again, model(x).logits)
    assert torch.equal(first.eval()(x).logits, second.eval()(x).logits)


def test_refuses_bad_masks() -> None:
    model = TimeSformer(**TINY)
    x = torch.zeros(1, 3, 4, 32, 32)
    good = draw_drop_masks(model.drop_rates, 16, 4, [np.random.default_rng(0)])
    model(x, good)
    with pytest.raises(ValueError, match="2 entries for 3 blocks"):
        model(x, good[:2])
    with pytest.raises(ValueError, match=r"drop_masks\[2\] must be bool"):
        model(x, [*good[:2], tuple(mask.float() for mask in good[2])])
    with pytest.raises(ValueError, match=r"\(1, 16\)"):
        model(x, draw_drop_masks(model.drop_rates, 15, 4, [np.random.default_rng(0)]))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        draw_drop_masks((0.0, 1.0), 2, 2, [np.random.default_rng(0)])
    with pytest.raises(ValueError, match="at least one"):
        draw_drop_masks((0.0, 0.5), 2, 2, [])
