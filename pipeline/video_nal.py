"""The first slice header of an H.264 or HEVC packet: what its two bytes say about seeking and skipping.

Bit layouts: ITU-T H.264 (7.3.1) and H.265 (7.3.1.2); length-prefixed units: ISO/IEC 14496-15 (avcC, hvcC).
"""

from __future__ import annotations

from collections.abc import Iterator

_H264_SLICES = range(1, 6)
_H264_IDR = 5
_HEVC_SLICES = range(32)
_START_CODE = b"\x00\x00\x01"


def is_instant_refresh(packet: bytes, extradata: bytes | None) -> bool:
    """Whether an H.264 key frame packet is an IDR picture: nothing after it leans on anything before it."""
    for unit in _units(packet, _length_size(extradata, 4)):
        if packet[unit] & 0x1F in _H264_SLICES:
            return packet[unit] & 0x1F == _H264_IDR
    return False


def temporal_layer(packet: bytes, extradata: bytes | None) -> int:
    """Temporal layer of an HEVC packet's picture; 0 if it has no slice."""
    for unit in _units(packet, _length_size(extradata, 21)):
        if packet[unit] >> 1 & 0x3F in _HEVC_SLICES and unit + 1 < len(packet):
            return (packet[unit + 1] & 7) - 1
    return 0


def _length_size(extradata: bytes | None, place: int) -> int:
    """Bytes of the length before each unit, from the container's configuration record; 0: start codes."""
    if not extradata or extradata[0] != 1 or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


def _units(packet: bytes, length_size: int) -> Iterator[int]:
    """Offsets of the first byte of each unit."""
    if length_size == 0:
        at = packet.find(_START_CODE)
        while 0 <= at < len(packet) - 3:
            yield at + 3
            at = packet.find(_START_CODE, at + 3)
        return
    at = 0
    while at + length_size < len(packet):
        yield at + length_size
        at += length_size + int.from_bytes(packet[at : at + length_size], "big")
