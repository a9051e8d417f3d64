"""Random numbers as functions of (seed, epoch, clip): no process state, no order of calls.

Micro-batch size, number of workers, ranks and resuming therefore change no draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


def _digest(purpose: str, seed: int, epoch: int, clip_id: str) -> bytes:
    return blake2b(f"{purpose}\0{seed}\0{epoch}\0{clip_id}".encode(), digest_size=16).digest()


def clip_stream(seed: int, epoch: int, clip_id: str, purpose: str) -> np.random.Generator:
    """The stream of one clip in one epoch for one purpose ("augment", "drop_path", …).

    Streams of different purposes are independent, so that adding a draw to one changes no other.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(purpose, seed, epoch, clip_id))))


def order(seed: int, epoch: int, clip_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Positions of the clips in the order of one epoch, int64 [N].

    Every clip's place comes from its own draw: the order does not depend on how the table is sorted.
    """
    keys = [(_digest("order", seed, epoch, clip_id), clip_id) for clip_id in clip_ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
