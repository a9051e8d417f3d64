"""Drop-path (stochastic depth): which residual branches of which clip are kept.

A block of the divided space-time transformer has three branches, each with its own unit of dropping: the
temporal branch drops tubes (one position over all frames), the spatial branch drops frames, the MLP drops
the whole clip. A mask is True where the branch is kept; a kept branch is scaled by 1 / keep probability
(stochastic depth, arXiv 1603.09382).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError

BlockMasks = tuple[Tensor, Tensor, Tensor]
"""Of one block: temporal [B, h*w], spatial [B, T], mlp [B]; bool, True = kept."""

DropMasks = Sequence[BlockMasks | None]
"""One entry per block; None where the block drops nothing."""


def drop_rates(drop_path: float, depth: int) -> tuple[float, ...]:
    """Drop probability of each of `depth` blocks, rising linearly from 0 to `drop_path`."""
    return tuple(float(rate) for rate in np.linspace(0.0, drop_path, depth))


def drop_mask_shapes(
    rates: Sequence[float], batch: int, num_patches: int, num_frames: int
) -> list[tuple[tuple[int, int], tuple[int, int], tuple[int]] | None]:
    """Shapes of the masks that a network with these rates takes, None for a block with rate 0."""
    shapes = ((batch, num_patches), (batch, num_frames), (batch,))
    return [shapes if rate > 0 else None for rate in rates]


def draw_drop_masks(
    rates: Sequence[float],
    num_patches: int,
    num_frames: int,
    rngs: Sequence[np.random.Generator],
    device: torch.device | str | None = None,
) -> list[BlockMasks | None]:
    """Draw the masks of a batch, one Generator per clip.

    A clip's masks depend on its Generator alone, never on the other clips of its batch or on their number:
    each Generator is asked once, for the `h*w + T + 1` uniform numbers of every block that drops something.

    Returns, per block, None (rate 0) or bool (temporal [B, num_patches], spatial [B, num_frames], mlp [B]),
    True = kept, on `device` (default: CPU; all masks travel in one copy). UsageError for a rate outside
    [0, 1), a size below 1 or an empty `rngs`.
    """
    if num_patches < 1 or num_frames < 1 or not rngs:
        raise UsageError(
            "drop masks need at least one patch, one frame and one Generator, got "
            f"{num_patches} patches, {num_frames} frames, {len(rngs)} Generators"
        )
    bad = [rate for rate in rates if not 0.0 <= rate < 1.0]
    if bad:
        raise UsageError(f"drop-path rates must lie in [0, 1), got {bad}")
    per_block = num_patches + num_frames + 1
    active = np.array([rate for rate in rates if rate > 0], dtype=np.float64)  # [A]
    if not len(active):
        return [None] * len(rates)
    uniform = np.stack([rng.random(len(active) * per_block) for rng in rngs])  # [B, A * per_block]
    drawn = uniform.reshape(len(rngs), len(active), per_block) >= active[:, None]  # [B, A, per_block]
    blocks = to_device(torch.from_numpy(drawn.transpose(1, 0, 2).copy()), device)  # [A, B, per_block]
    kept = iter(blocks.unbind(0))
    return [_parts(next(kept), num_patches, num_frames) if rate > 0 else None for rate in rates]


def to_device(drawn: Tensor, device: torch.device | str | None) -> Tensor:
    """What was drawn on the CPU, on `device`; a GPU is not waited for."""
    if device is None or torch.device(device).type != "cuda":
        return drawn.to(device=device)
    return drawn.pin_memory().to(device=device, non_blocking=True)


def _parts(kept: Tensor, num_patches: int, num_frames: int) -> BlockMasks:
    """[B, num_patches + num_frames + 1] -> the block's three masks."""
    split = num_patches + num_frames
    return kept[:, :num_patches], kept[:, num_patches:split], kept[:, split]


def check_drop_masks(masks: DropMasks, rates: Sequence[float], batch: int, num_patches: int, num_frames: int) -> None:
    """UsageError unless `masks` has one entry per block: None, or three bool masks of the right shapes."""
    if len(masks) != len(rates):
        raise UsageError(f"drop_masks has {len(masks)} entries for {len(rates)} blocks; give one per block")
    wanted = ((batch, num_patches), (batch, num_frames), (batch,))
    for index, block in enumerate(masks):
        if block is None:
            continue
        shapes = tuple(tuple(mask.shape) for mask in block)
        if shapes != wanted or any(mask.dtype != torch.bool for mask in block):
            raise UsageError(
                f"drop_masks[{index}] must be bool masks (temporal, spatial, mlp) of shapes {wanted}, got "
                f"{shapes} of {[str(mask.dtype) for mask in block]}"
            )
