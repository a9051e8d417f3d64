"""The frame table: which frames a video shows, when, and where decoding must start for each. No decoding.

Frame i is the i-th in order of presentation among the frames that are shown. Packets that an edit list discards are
decoded but not shown. All times are presentation times (pts): an index of the file, or dts, has another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

_VP8_SHOWN = 0x10


@dataclass(frozen=True, eq=False)
class FrameTable:
    """Shown frames in order of presentation, N of them; a packet's place is its number in order of decoding.

    pts: int64 [N], unique. place: int64 [N]. start: int64 [N], the place of the key frame from which decoding gives
    the frame whole: the latest one that is neither decoded nor shown after it (a picture decoded after a key
    frame but shown before it may lean on the group before). key_pts, key_dts: by place of the key frame.
    ordered: False if presentation times are absent or repeat: then frame i is the i-th that a decoder puts out,
    and all other arrays count 0..N-1. damaged: whether any packet is marked as incomplete.
    """

    pts: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    key_pts: dict[int, int]
    key_dts: dict[int, int]
    ordered: bool
    damaged: bool

    def __len__(self) -> int:
        return len(self.pts)

    def times(self, time_base: Fraction) -> npt.NDArray[np.float64]:
        """Seconds since the first shown frame, float64 [N]."""
        return (self.pts - self.pts[0]) * float(time_base)


def scan(packets: Iterable[Any], codec: str) -> FrameTable:
    """The table of a stream, from its packets (`av.Packet`) in order of decoding."""
    rows = [
        (packet.pts, packet.dts, packet.is_keyframe, _is_shown(packet, codec), packet.is_corrupt)
        for packet in packets
        if packet.size
    ]
    damaged = any(row[4] for row in rows)
    every = [row[0] for row in rows]
    if None in every or len(set(every)) != len(every):
        return unordered(sum(row[3] for row in rows), damaged)
    keys = {place: (pts, pts if dts is None else min(dts, pts)) for place, (pts, dts, key, _, _) in enumerate(rows) if key}
    shown = sorted((pts, place) for place, (pts, _, _, is_shown, _) in enumerate(rows) if is_shown)
    pts = np.array([row[0] for row in shown], dtype=np.int64)
    place = np.array([row[1] for row in shown], dtype=np.int64)
    return FrameTable(
        pts=pts,
        place=place,
        start=_starts(pts, place, keys),
        key_pts={key: times[0] for key, times in keys.items()},
        key_dts={key: times[1] for key, times in keys.items()},
        ordered=True,
        damaged=damaged,
    )


def unordered(count: int, damaged: bool = False) -> FrameTable:
    """A table of `count` frames known only by their order."""
    order = np.arange(count, dtype=np.int64)
    return FrameTable(order, order, np.zeros_like(order), {0: 0}, {0: 0}, ordered=False, damaged=damaged)


def _starts(
    pts: npt.NDArray[np.int64], place: npt.NDArray[np.int64], keys: dict[int, tuple[int, int]]
) -> npt.NDArray[np.int64]:
    """For each frame the place of the latest key frame neither decoded nor shown after it; 0 if there is none."""
    key_places = np.array(sorted(keys), dtype=np.int64)
    starts = np.zeros(len(pts), dtype=np.int64)
    for i, latest in enumerate(np.searchsorted(key_places, place, side="right") - 1):
        while latest >= 0 and keys[int(key_places[latest])][0] > pts[i]:
            latest -= 1
        starts[i] = key_places[latest] if latest >= 0 else 0
    return starts


def _is_shown(packet: Any, codec: str) -> bool:
    """False for packets that give no picture: discarded by an edit list, or VP8's hidden reference frames."""
    if packet.is_discard:
        return False
    return codec != "vp8" or bool(bytes(packet)[0] & _VP8_SHOWN)
