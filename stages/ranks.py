"""The processes of one training (torchrun): who this one is, and sums over all of them.

Without an initialised process group there is one process, and a sum is the value itself.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this one, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value
