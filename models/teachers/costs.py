"""What a teacher costs: operations of one clip, counted from the shapes of its network.

A multiplication with its addition counts as two operations. Matrix products, convolutions and attention are counted;
norms, activations and resizing are not: they are well below one per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ViT(NamedTuple):
    """The shapes of a vision transformer; `mlp` is the hidden width of its MLP, `extra` its tokens beside patches."""

    width: int
    depth: int
    mlp: int
    patch: int
    extra: int = 1
    projection: int = 0
    pooled_by_attention: bool = False


def vit_flops(net: ViT, height: int, width: int) -> int:
    """Operations of one image of `height` x `width` pixels."""
    patches = (height // net.patch) * (width // net.patch)
    tokens, d = patches + net.extra, net.width
    macs = patches * 3 * net.patch**2 * d
    macs += net.depth * (4 * tokens * d * d + 2 * tokens * tokens * d + 2 * tokens * d * net.mlp)
    macs += net.projection * d
    if net.pooled_by_attention:  # one query over all tokens, then an MLP
        macs += 2 * d * d + 2 * tokens * d * d + 2 * tokens * d + 2 * d * net.mlp
    return 2 * macs


def timesformer_flops(width: int, depth: int, patch: int, image: int, frames: int) -> int:
    """Operations of one clip through divided space-time attention, the classifier left out."""
    patches, d = (image // patch) ** 2, width
    seen, spatial = patches * frames, (patches + 1) * frames
    time = 4 * seen * d * d + 2 * patches * frames**2 * d + seen * d * d
    space = 4 * spatial * d * d + 2 * frames * (patches + 1) ** 2 * d
    mlp = 2 * (seen + 1) * d * 4 * d
    return 2 * (seen * 3 * patch**2 * d + depth * (time + space + mlp))


def stgcn_flops(
    widths: Sequence[int],
    strides: Sequence[int],
    joints: int,
    channels: int,
    frames: int,
    *,
    persons: int = 2,
    plus: bool = False,
) -> int:
    """Operations of one clip through ST-GCN, or ST-GCN++ (`plus`); `widths` and `strides` are the blocks'."""
    macs, before = 0, channels
    for index, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        after = (frames - 1) // stride + 1
        macs += frames * joints * (before * 3 * width + joints * 3 * width)
        if plus:
            macs += _multi_scale(width, frames, after) * joints
            macs += frames * joints * before * width * (before != width)
        else:
            macs += after * joints * 9 * width * width
        if index and (before != width or stride > 1):
            macs += after * joints * before * width
        before, frames = width, after
    return 2 * persons * macs


def _multi_scale(width: int, frames: int, after: int) -> int:
    """Multiplications per joint of ST-GCN++'s six temporal branches and what joins them."""
    part = width // 6
    first = width - 5 * part
    into = frames * width * (first + 4 * part) + after * width * part
    return into + after * 3 * (first**2 + 3 * part**2) + after * width * width
