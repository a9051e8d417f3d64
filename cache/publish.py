"""Between a mirror and the object storage it mirrors: the clip index and the metadata of stores.

Whoever changes them holds the mirror's lock, brings the copies up to date, and puts each object on condition that it is
still what was brought: of two who change the same, on whatever machines, one is refused and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UniegoError
from ..pipeline import objects
from ..pipeline.files import hash_bytes
from ..pipeline.objects import Found, Objects

_CHUNK = re.compile(r"/c\.[0-9.]+$")


def is_chunk(name: str) -> bool:
    """Whether an object holds features; all others are small and have copies."""
    return _CHUNK.search(name) is not None


def bring(remote: Objects, root: Path, *parts: str) -> dict[str, Found]:
    """Bring the copies in a mirror up to date, or those of a store, or of the index: {name: what it is}."""
    return objects.bring(remote, root, lambda name: not is_chunk(name), parts)


def put_generation(remote: Objects, name: str, data: bytes) -> str:
    """Put the rows of a generation; the name it got, another one where a planner that was refused left other rows."""
    if remote.put_over(name, data, None):
        return name
    name = f"{name.removesuffix('.tsv')}-{hash_bytes(data)}.tsv"
    remote.put(name, data)
    return name


def put(remote: Objects, root: Path, name: str, data: bytes, seen: Found | None) -> None:
    """Put an object that was seen so. Raises UniegoError if it has changed since; the copies are then brought again."""
    if not remote.put_over(name, data, seen):
        bring(remote, root)
        raise UniegoError(
            f"{remote.url}/{name}: another process planned at the same moment, and it was first; nothing was replaced: "
            "run the same command again"
        )


def publish_store(remote: Objects, root: Path, store: str, seen: Mapping[str, Found]) -> None:
    """Put the metadata of a store that differ from what was seen; what others refer to goes first."""
    names = [path.relative_to(root).as_posix() for path in (root / store).rglob("*.json") if path.name[0] != "."]
    for name in sorted(names, key=lambda name: -name.count("/")):
        data = (root / name).read_bytes()
        if name not in seen or remote.find(name) != data:
            put(remote, root, name, data, seen.get(name))
