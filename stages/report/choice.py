"""Which clips a report shows: the same for the same run and seed, spread over classes."""

from __future__ import annotations

from collections.abc import Sequence

from ...pipeline.clips import Clip
from ...pipeline.randomness import order

_EPOCH = -1  # of no training


def spread(clips: Sequence[Clip], count: int, seed: int) -> list[Clip]:
    """`count` of the clips (all, if they are fewer): drawn by (seed, clip), one of each class before a second one."""
    drawn = [clips[place] for place in order(seed, _EPOCH, [clip.clip_id for clip in clips])]
    turns: dict[int, int] = {}
    turn_of = {}
    for clip in drawn:
        turn_of[clip.clip_id] = turns[clip.label] = turns.get(clip.label, -1) + 1
    return sorted(drawn, key=lambda clip: turn_of[clip.clip_id])[:count]


def hits_and_misses(right: Sequence[Clip], wrong: Sequence[Clip], count: int, seed: int) -> list[Clip]:
    """`count` clips, half of them right, half wrong, right ones first; of the other where one kind has too few."""
    misses = spread(wrong, max(count // 2, count - len(right)), seed)
    return spread(right, count - len(misses), seed) + misses
