"""The frame table: which frames a video shows, when, and where decoding must start for each. Nothing is decoded.

Frame i is the i-th in order of presentation among the frames that are shown. Packets that an edit list discards are
decoded but not shown. All times are presentation times (pts): a file's own index, and dts, have another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .video_nal import is_instant_refresh, temporal_layer

_VP8_SHOWN = 0x10


@dataclass(frozen=True, eq=False)
class FrameTable:
    """N shown frames in order of presentation; a packet's place is its number in order of decoding.

    `pts`: int64 [N], unique. `place`: int64 [N]. `start`: int64 [N], place of the key frame from which decoding gives
    the frame whole: the latest that is neither decoded nor shown after it (a picture decoded after a key frame but
    shown before it may lean on the group before). `seek`: for the place of each key frame, its pts and the smaller
    of its pts and dts. `ordered`: False if presentation times are absent or repeat; then frame i is the i-th that a
    decoder puts out. `closed`: every group decodes by itself and every picture is shown. `layered`: HEVC temporal
    layers. `cut`: the last packet is incomplete.
    """

    pts: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    seek: dict[int, tuple[int, int]]
    ordered: bool
    closed: bool
    layered: bool
    cut: bool

    def __len__(self) -> int:
        return len(self.pts)


class _Row(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool
    shown: bool
    corrupt: bool
    refreshes: bool
    layer: int


def scan(packets: Iterable[Any], codec: str, extradata: bytes | None = None) -> FrameTable:
    """The table of a stream, from its packets (`av.Packet`) in order of decoding."""
    rows = [_row(packet, codec, extradata) for packet in packets if packet.size]
    cut = bool(rows) and rows[-1].corrupt
    times = [row.pts for row in rows]
    if None in times or len(set(times)) != len(times):
        return replace(unordered(sum(row.shown for row in rows)), cut=cut)
    seek = {
        place: (row.pts, row.pts if row.dts is None else min(row.dts, row.pts))
        for place, row in enumerate(rows)
        if row.pts is not None and (row.key or place == 0)
    }
    shown = sorted((row.pts, place) for place, row in enumerate(rows) if row.shown and row.pts is not None)
    pts = np.array([time for time, _ in shown], dtype=np.int64)
    place = np.array([at for _, at in shown], dtype=np.int64)
    latest, start = _starts(pts, place, {key: at[0] for key, at in seek.items()})
    closed = len(shown) == len(rows) and bool((latest == start).all()) and all(row.refreshes for row in rows)
    layered = any(row.layer for row in rows)
    return FrameTable(pts, place, start, seek, ordered=True, closed=closed, layered=layered, cut=cut)


def unordered(count: int) -> FrameTable:
    """A table of `count` frames known only by their order."""
    order = np.arange(count, dtype=np.int64)
    start = np.zeros_like(order)
    return FrameTable(order, order, start, {0: (0, 0)}, ordered=False, closed=False, layered=False, cut=False)


def seconds(table: FrameTable, time_base: Fraction) -> npt.NDArray[np.float64]:
    """Seconds since the first shown frame, float64 [N]."""
    ticks: npt.NDArray[np.int64] = table.pts - table.pts[0]
    return ticks * time_base.numerator / time_base.denominator


class Run(NamedTuple):
    """A stretch of packets, places `start` to `end` (inclusive), decoded in one go for the frames `wanted`."""

    start: int
    end: int
    wanted: list[int]


def plan_runs(table: FrameTable, frames: Iterable[int]) -> list[Run]:
    """The stretches that give `frames` (numbers in the table): one per key frame, merged where they meet."""
    runs: list[Run] = []
    for start, place, frame in sorted((int(table.start[i]), int(table.place[i]), i) for i in frames):
        if runs and start <= runs[-1].end + 1:
            last = runs.pop()
            runs.append(Run(last.start, max(last.end, place), [*last.wanted, frame]))
        else:
            runs.append(Run(start, place, [frame]))
    return runs


def _starts(
    pts: npt.NDArray[np.int64], place: npt.NDArray[np.int64], keys: dict[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per frame: place of the latest key frame decoded before it, and of the latest that is not shown after it."""
    places = np.array(sorted(keys), dtype=np.int64)
    latest = np.searchsorted(places, place, side="right") - 1
    chosen = latest.copy()
    for i in np.flatnonzero([keys[int(places[at])] > time for at, time in zip(latest, pts, strict=True)]):
        while chosen[i] > 0 and keys[int(places[chosen[i]])] > pts[i]:
            chosen[i] -= 1
    return places[latest], places[chosen]


def _row(packet: Any, codec: str, extradata: bytes | None) -> _Row:
    shown, refreshes, layer = not packet.is_discard, True, 0
    if codec == "vp8":  # hidden reference frames have packets of their own
        shown = shown and bool(bytes(packet)[0] & _VP8_SHOWN)
    elif codec == "h264" and packet.is_keyframe:
        refreshes = is_instant_refresh(bytes(packet), extradata)
    elif codec == "hevc":
        layer = temporal_layer(bytes(packet), extradata)
    return _Row(packet.pts, packet.dts, packet.is_keyframe, shown, packet.is_corrupt, refreshes, layer)
