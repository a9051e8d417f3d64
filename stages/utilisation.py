"""How much of a device's arithmetic a training uses (MFU), where the peak is known; nothing where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

BACKWARD = 2  # times the forward pass

_PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 and fp16 operations per second by a part of the device's name, as the data sheets have them."""


def forward_flops(geometry: Mapping[str, Any]) -> float:
    """Operations (a multiplication and an addition are two) of one clip's forward pass, matrix products alone."""
    frames, width, patch = geometry["num_frames"], geometry["width"], geometry["patch_size"]
    patches = (geometry["image_size"] // patch) ** 2
    tokens, with_cls = frames * patches, frames * (patches + 1)
    temporal = tokens * (10 * width**2 + 4 * frames * width)  # qkv, proj, temporal_fc; scores and mixture
    spatial = with_cls * (8 * width**2 + 4 * (patches + 1) * width)
    mlp = (tokens + 1) * 16 * width**2
    return float(geometry["depth"] * (temporal + spatial + mlp) + tokens * 6 * patch**2 * width)


def peak(device_name: str, precision: str) -> float | None:
    """Operations per second that the device can do at most; None: not known."""
    if precision == "fp32":
        return None  # it depends on whether TF32 is allowed, and on the clock
    return next((value for name, value in _PEAKS.items() if name in device_name), None)


def describe(rate: float, flops_per_clip: float | None, device: torch.device, precision: str) -> str:
    """ "MFU 41 % of 989 TFLOP/s (data sheet)" at `rate` clips per second; "" where the peak is not known."""
    if flops_per_clip is None or device.type != "cuda":
        return ""
    most = peak(torch.cuda.get_device_name(device), precision)
    return told(rate * flops_per_clip, most) if most is not None else ""


def told(used: float, most: float) -> str:
    """The share in words."""
    return f"MFU {used / most:.0%} of {most / 1e12:.0f} TFLOP/s (data sheet)"
