"""The bytes of stored clips: images one after the other, and headers that say where each of them lies.

A shard's file is a directory, then a record per clip; a record is a header and the clip's images. All numbers are
little-endian. Directory, headers and images carry a CRC-32 each, so that a reader checks all that it reads and
nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

VERSION = 1
SHARD_MAGIC = b"uniegoS1"
CLIP_MAGIC = b"uniegoC1"

_SHARD = struct.Struct("<8sI")  # magic, crc of the rows' places
_CLIP = struct.Struct("<8sIIIIIId")  # magic, crc of the rest, images, length, height, width, has_duration, fps
_CHECKED = 12  # bytes of a clip's header before what its crc covers
_IMAGE = np.dtype([("frame", "<u4"), ("size", "<u4"), ("crc", "<u4")])
_PLACE = np.dtype([("start", "<u8"), ("header", "<u8")])


class DamagedError(ValueError):
    """Bytes that are not what was written."""


class ClipHeader(NamedTuple):
    """What is known of a stored clip without decoding an image.

    `length`: frames of the clip in its video; `fps`, `has_duration`: the video's, see `VideoInfo`; `height`, `width`:
    of the images, pixels; `frames`: int64 [n], which of the clip's frames 0..length-1 are stored, in order; `ends`:
    int64 [n], bytes from the end of the header to the end of each image; `crcs`: uint32 [n].
    """

    length: int
    fps: float
    has_duration: bool
    height: int
    width: int
    frames: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    crcs: npt.NDArray[np.uint32]

    def nearest(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Places int64 [m] of the stored frames nearest to `frames`; the earlier of two as near."""
        after = np.searchsorted(self.frames, frames).clip(0, len(self.frames) - 1)
        before = (after - 1).clip(0)
        closer = np.abs(self.frames[before] - frames) <= np.abs(self.frames[after] - frames)
        chosen: npt.NDArray[np.int64] = np.where(closer, before, after)
        return chosen

    def span(self, place: int) -> tuple[int, int]:
        """Where an image lies: bytes from the end of the header."""
        return int(self.ends[place - 1]) if place else 0, int(self.ends[place])

    def check(self, place: int, data: bytes) -> None:
        """Raises DamagedError unless these are the bytes of that image."""
        if zlib.crc32(data) != int(self.crcs[place]):
            raise DamagedError(f"the image of frame {int(self.frames[place])} differs from what was written")


class Place(NamedTuple):
    """Where a clip's record lies in its shard's file, and how long its header is, in bytes; 0, 0 for no clip."""

    start: int
    header: int


def pack_clip(
    images: Sequence[bytes],
    frames: npt.NDArray[np.int64],
    *,
    length: int,
    fps: float,
    has_duration: bool,
    size: tuple[int, int],
) -> bytes:
    """A clip's record; `size` is (height, width), the other arguments are as in `ClipHeader`."""
    table = np.zeros(len(images), _IMAGE)
    table["frame"], table["size"] = frames, [len(image) for image in images]
    table["crc"] = [zlib.crc32(image) for image in images]
    fields = (len(images), length, *size, int(has_duration), fps)
    rest = _CLIP.pack(CLIP_MAGIC, 0, *fields)[_CHECKED:] + table.tobytes()
    return b"".join([CLIP_MAGIC, struct.pack("<I", zlib.crc32(rest)), rest, *images])


def repack(header: ClipHeader, images: Sequence[bytes]) -> bytes:
    """The record that a header and all of its images were read from."""
    size = header.height, header.width
    return pack_clip(
        images, header.frames, length=header.length, fps=header.fps, has_duration=header.has_duration, size=size
    )


def header_size(record: bytes) -> int:
    """Bytes of a record's header."""
    return _CLIP.size + int(_CLIP.unpack_from(record)[2]) * _IMAGE.itemsize


def unpack_header(data: bytes) -> ClipHeader:
    """The header of a record. Raises DamagedError."""
    if len(data) < _CLIP.size or data[:8] != CLIP_MAGIC or zlib.crc32(data[_CHECKED:]) != _CLIP.unpack_from(data)[1]:
        raise DamagedError("a clip's header differs from what was written")
    _, _, images, length, height, width, has_duration, fps = _CLIP.unpack_from(data)
    table = np.frombuffer(data, _IMAGE, images, _CLIP.size)
    ends = np.cumsum(table["size"], dtype=np.int64)
    frames = table["frame"].astype(np.int64)
    return ClipHeader(length, fps, bool(has_duration), height, width, frames, ends, table["crc"])


def pack_shard(records: Sequence[bytes]) -> bytes:
    """A shard's file; a row without a clip has an empty record."""
    places = np.zeros(len(records), _PLACE)
    at = _SHARD.size + places.nbytes
    for row, record in enumerate(records):
        if record:
            places[row] = at, header_size(record)
        at += len(record)
    directory = places.tobytes()
    return b"".join([_SHARD.pack(SHARD_MAGIC, zlib.crc32(directory)), directory, *records])


def directory_size(rows: int) -> int:
    """Bytes of a shard's directory."""
    return _SHARD.size + rows * _PLACE.itemsize


def unpack_directory(data: bytes) -> list[Place]:
    """The places of a shard's rows. Raises DamagedError."""
    rows = data[_SHARD.size :]
    if data[: _SHARD.size] != _SHARD.pack(SHARD_MAGIC, zlib.crc32(rows)):
        raise DamagedError("the directory differs from what was written")
    return [Place(int(start), int(header)) for start, header in np.frombuffer(rows, _PLACE)]
