"""Resize, crop, flip and normalise: uint8 frames in, the network's float32 input out.

Resizing is bilinear with half-pixel centres and no antialiasing, the long side rounded down, as in the released
UNIEGO code (arXiv 2606.20559). Resize and crop are one step that reads only the source pixels the crop needs, so
that the cost goes with the crop and not with the frame.
"""

# ruff: noqa: PT028 (`test_clip` makes a test view; it is no test)

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrainDraw:
    """What chance decides about a training view, the same for all frames of a clip.

    `scale`, `y`, `x`: fractions in [0, 1) of the range of the short side and of the crop's vertical and horizontal
    offsets; `flip`: mirror left and right.
    """

    scale: float
    y: float
    x: float
    flip: bool

    def __post_init__(self) -> None:
        for name in ("scale", "y", "x"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"TrainDraw.{name} must lie in [0, 1), not {getattr(self, name)}")


def draw_train(rng: np.random.Generator, flip_probability: float = 0.5) -> TrainDraw:
    """Draw a training view; always four numbers of the stream, whatever they decide."""
    scale, y, x, flip = (float(value) for value in rng.random(4))
    return TrainDraw(scale, y, x, flip < flip_probability)


def train_clip(
    frames: Frames,
    draw: TrainDraw,
    *,
    short_side: tuple[int, int] = (256, 320),
    size: int = 224,
    mean: float = 0.45,
    std: float = 0.225,
) -> Tensor:
    """A training view, float32 [3, T, size, size], of frames uint8 [T, H, W, 3].

    The short side becomes round(low + scale * (high - low)) pixels. An offset is floor(fraction * n) with n the
    resized side minus `size`: like the released code, which draws from 0..n-1, the very last position is never
    taken. Raises `UsageError` if a crop of `size` does not fit.
    """
    low, high = short_side
    height, width = _resized(frames, round(low + draw.scale * (high - low)), size)
    top, left = int(draw.y * (height - size)), int(draw.x * (width - size))
    return _crop_resized(frames, (height, width), (top, left), size, draw.flip, mean, std)


def test_clip(
    frames: Frames,
    *,
    crop: int | None = None,
    crops: int = 1,
    size: int = 224,
    single_short_side: int | None = None,
    mean: float = 0.45,
    std: float = 0.225,
) -> Tensor:
    """Crop number `crop` of a protocol of `crops`, float32 [3, T, size, size], of frames uint8 [T, H, W, 3].

    One crop: short side `single_short_side` (default round(256 / 224 * size)), the centre; `crop` is None or 0.
    Three crops: short side `size`; 0, 1, 2 are left, centre, right, or top, centre, bottom of portrait frames.
    Raises `UsageError` for another protocol, or if a crop of `size` does not fit.
    """
    if crops not in (1, 3):
        raise UsageError(f"test views have 1 or 3 crops, not {crops}")
    place = 0 if crop is None and crops == 1 else crop
    if place is None or not 0 <= place < crops:
        raise UsageError(f"crop must be one of 0..{crops - 1}, not {crop}")
    single = round(256 / 224 * size) if single_short_side is None else single_short_side
    height, width = _resized(frames, size if crops == 3 else single, size)
    return _crop_resized(
        frames, (height, width), _test_offset(height, width, size, place if crops == 3 else 1), size, False, mean, std
    )


def _test_offset(height: int, width: int, size: int, place: int) -> tuple[int, int]:
    """Top and left of a crop: begin, centre or end (0, 1, 2) along the long side, centre across."""
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if height > width:
        return (0, top, height - size)[place], left
    return top, (0, left, width - size)[place]


def _resized(frames: Frames, short: int, size: int) -> tuple[int, int]:
    """Height and width after resizing so that the short side is `short`; the long side is rounded down."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise UsageError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if short < size:
        raise UsageError(f"a crop of {size} does not fit a short side of {short} pixels")
    _, height, width, _ = frames.shape
    if width < height:
        return math.floor(height / width * short), short
    return short, math.floor(width / height * short)


def _crop_resized(
    frames: Frames,
    resized: tuple[int, int],
    offset: tuple[int, int],
    size: int,
    flip: bool,
    mean: float,
    std: float,
) -> Tensor:
    """The crop [size, size] at `offset` of frames resized to `resized`, normalised: float32 [3, T, size, size]."""
    if not std > 0:
        raise UsageError(f"std must be positive, not {std}")
    _, height, width, _ = frames.shape
    rows, row_weight = _taps(height, resized[0], offset[0], size)
    columns, column_weight = _taps(width, resized[1], offset[1], size)
    if flip:
        columns, column_weight = columns.flip(1), column_weight.flip(0)
    blended = _blend(frames, (rows, row_weight), (columns, column_weight))  # [T, size, size, 3], 0..255
    blended.mul_(1 / (255 * std)).sub_(mean / std)
    return blended.permute(3, 0, 1, 2).contiguous()


def shrink(frames: Frames, short_side: int) -> Frames:
    """Frames uint8 [T, H, W, 3] resized to a short side of `short_side`; smaller ones stay as they are.

    Bilinear with half-pixel centres and no antialiasing as in training, but to whole levels and by torch's own resize
    for bytes, which is within one level of that; the long side is rounded.
    """
    _, height, width, _ = frames.shape
    short = min(height, width)
    if short <= short_side:
        return frames
    size = [round(side * short_side / short) for side in (height, width)]
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # [T, 3, H, W]
    small: Frames = F.interpolate(planes, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(small)


def _blend(frames: Frames, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """The pixels at the taps of rows [2, h] and columns [2, w], blended by their weights: float32 [T, h, w, 3]."""
    source = torch.from_numpy(np.ascontiguousarray(frames))  # [T, H, W, 3]
    across = columns[1].view(1, 1, -1, 1)
    used, place = torch.unique(rows[0], return_inverse=True)
    if len(used) < 1.5 * rows[0].shape[1]:  # upper and lower taps share most lines: blend each of them once
        lines = _blend_columns(source.index_select(1, used), columns[0], across)
        upper, lower = (lines.index_select(1, taps) for taps in place)
    else:
        upper, lower = (_blend_columns(source.index_select(1, taps), columns[0], across) for taps in rows[0])
    return torch.lerp(upper, lower, rows[1].view(1, -1, 1, 1))


def _blend_columns(lines: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
    """Columns of uint8 [T, size, W, 3] taken and blended: float32 [T, size, size, 3]."""
    left, right = (lines.index_select(2, taps).float() for taps in columns)
    return torch.lerp(left, right, weight)


def _taps(length: int, resized: int, offset: int, size: int) -> tuple[Tensor, Tensor]:
    """Where output pixels offset..offset+size read the source: two neighbours int64 [2, size], weight of the second.

    Positions are computed in float32 with a float32 scale, as torch's own bilinear resize does.
    """
    scale = np.float32(length) / np.float32(resized)
    centres = np.arange(offset, offset + size) + 0.5
    position = np.maximum(np.float64(scale) * centres - 0.5, 0.0).astype(np.float32)
    first = np.minimum(position.astype(np.int64), length - 1)
    taps = np.stack([first, np.minimum(first + 1, length - 1)])
    return torch.from_numpy(taps), torch.from_numpy((position - first).astype(np.float32))
