"""What torchrun tells each of the processes that train together, in their environment."""

from __future__ import annotations

import os
from typing import NamedTuple

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """One process among `world`: its number `rank`, and `local_rank` among those of its machine, both from 0."""

    rank: int
    world: int
    local_rank: int


def place() -> Place:
    """This process's place; (0, 1, 0) where torchrun did not start it."""
    if any(name not in os.environ for name in _NAMES):
        return Place(0, 1, 0)
    rank, world, local_rank = (int(os.environ[name]) for name in _NAMES[:3])
    return Place(rank, world, local_rank)
