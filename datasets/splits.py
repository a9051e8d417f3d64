"""Splits in which what belongs together stays together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..errors import UsageError
from .building import Row


def disjoint(rows: Sequence[Row], group: Callable[[Row], str], test_share: float, seed: int) -> list[Row]:
    """The rows with new splits: whole groups go to `test`, in an order drawn from (seed, group), until it has
    about `test_share` of the clips; the others are `train`.

    At least one group is on either side. Raises `UsageError` for a share that is not in (0, 1), or a single group.
    """
    if not 0.0 < test_share < 1.0:
        raise UsageError(f"--test-share {test_share}: a share between 0 and 1 is wanted, such as 0.3")
    sizes = Counter(group(row) for row in rows)
    if len(sizes) < 2:
        raise UsageError(f"all clips belong to {', '.join(sizes) or 'nothing'}: that cannot be split")
    test, count = set[str](), 0
    for name in sorted(sizes, key=lambda name: (_draw(seed, name), name)):
        if count + sizes[name] / 2 <= test_share * len(rows):
            test.add(name)
            count += sizes[name]
    if not test:
        test.add(min(sizes, key=lambda name: (sizes[name], name)))
    if len(test) == len(sizes):
        test.discard(max(sizes, key=lambda name: (sizes[name], name)))
    return [replace(row, split="test" if group(row) in test else "train") for row in rows]


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"split\0{seed}\0{name}".encode(), digest_size=8).digest()
