"""From decoded frames to network input: crop, resize, normalise. Frames stay uint8 up to the device.

Resizing is PyTorch's antialiased interpolation of uint8 images, which agrees with Pillow (the reference of
all these networks) within one grey level, but for about one value in 100,000 that is two off. In floating
point it would be off by up to nineteen where cubic filters overshoot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UsageError

Fit = Literal["crop", "stretch", "keep_aspect"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
KINETICS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its images.

    `fit`: `crop` resizes the short side to `resize` pixels and cuts the central square of `size`; `stretch`
    resizes to the square, whatever the aspect; `keep_aspect` scales so that one side is `size`, the one that
    changes the image less, both sides rounded to a multiple of `multiple` (Depth Anything). `mean` and `std`
    are per channel, of values in 0..1.
    """

    fit: Fit
    size: int
    resize: int
    mode: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple: int = 1

    def frames(self, frames: Tensor) -> Tensor:
        """Resize and crop: uint8 [T, H, W, 3] -> uint8 [T, 3, h, w]."""
        check_frames(frames)
        images = frames.permute(0, 3, 1, 2)  # [T, 3, H, W], its memory is channels-last
        height, width = images.shape[2:]
        if self.fit == "stretch":
            return resize(images, (self.size, self.size), self.mode)
        if self.fit == "keep_aspect":
            return resize(images, aspect_size(height, width, self.size, self.multiple), self.mode)
        return centre_crop(resize(images, short_side(height, width, self.resize), self.mode), self.size)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] on any device -> float32, (x / 255 - mean) / std."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return (images.float() / 255 - mean) / std

    def fingerprint(self) -> dict[str, Any]:
        """The settings, JSON-able."""
        return {
            "fit": self.fit,
            "size": self.size,
            "resize": self.resize,
            "mode": self.mode,
            "mean": list(self.mean),
            "std": list(self.std),
            "multiple": self.multiple,
        }


def for_network(network: str, size: int, patch: int) -> Preprocess:
    """The published preprocessing of a network, for a square of `size` pixels and patches of `patch` pixels.

    DINOv2 resizes the short side to 256/224 of the square first, as at its 224.
    """
    if network == "dinov2":
        return Preprocess("crop", size, round(size * 256 / 224), "bicubic", *IMAGENET)
    if network == "siglip":
        return Preprocess("stretch", size, size, "bicubic", *HALF)
    if network == "depth_anything":
        return Preprocess("keep_aspect", size, size, "bicubic", *IMAGENET, multiple=patch)
    if network == "clip":
        return Preprocess("crop", size, size, "bicubic", *CLIP)
    return Preprocess("crop", size, size, "bilinear", *KINETICS)


def check_frames(frames: Tensor) -> None:
    """Raise `UsageError` unless `frames` is uint8 [T, H, W, 3]."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise UsageError(f"frames are uint8 [T, H, W, 3]; got {frames.dtype} {list(frames.shape)}")


def resize(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased resize of uint8 [n, 3, H, W] to (height, width) `size`.

    On a GPU through float32, since there is no other way there: rounded once and not after each direction, values
    differ by a level, and by more where sharp edges overshoot.
    """
    if tuple(images.shape[2:]) == size:
        return images.contiguous()
    if images.device.type != "cpu":
        return resize_float(images, size, mode)
    images = images.contiguous(memory_format=torch.channels_last)
    out = F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False)
    return out.contiguous()


def resize_float(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """`resize` computed in float32, on any device."""
    out = F.interpolate(images.float(), size=size, mode=mode, antialias=True, align_corners=False)
    return out.round_().clamp_(0, 255).to(torch.uint8)


def short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the short side at `side` and the long side in proportion, rounded down."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def aspect_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """(height, width) after the scaling to `side` that changes the image less, rounded to multiples."""
    by_height, by_width = side / height, side / width
    scale = by_width if abs(1 - by_width) < abs(1 - by_height) else by_height

    def rounded(length: int) -> int:
        return max(multiple, round(scale * length / multiple) * multiple)

    return rounded(height), rounded(width)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The central square of [n, 3, H, W]."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size].contiguous()


def crop_squares(frames: Tensor, squares: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Cut (top, left, side) in pixels out of each frame: [T, H, W, 3] -> T of [1, side, side, 3]."""
    return [
        frame[None, top : top + side, left : left + side]
        for frame, (top, left, side) in zip(frames, squares, strict=True)
    ]
