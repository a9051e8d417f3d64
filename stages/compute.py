"""Where things are computed."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from ..pipeline.config import ComputeConfig


def resolve_device(config: ComputeConfig) -> torch.device:
    """The device of a run. Raises `ConfigError` for one that is not there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"compute.device {name!r} is no device: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"compute.device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("compute.precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return device


def prepare(config: ComputeConfig) -> torch.device:
    """Set the number of threads and return the device."""
    device = resolve_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return device
