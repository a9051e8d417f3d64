"""Object storage (s3://, gs://, az://, …) by obstore; and a mirror, a folder that holds copies of its small objects.

A put is whole or not there, and durable when it returns: no temporary name, no fsync. There are no locks; a put may be
made on condition that the object is still what was seen.
Credentials and end points come from the usual environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UniegoError, UsageError
from . import files

STATE = ".objects.json"
MIRROR_LOCK = ".objects.lock"
"""Held by whoever changes copies in a mirror; taken after any other lock."""
_AT_ONCE = 16


class Found(NamedTuple):
    """An object: size in bytes, a mark that changes with its content, and its version where the storage counts them."""

    size: int
    mark: str
    version: str | None = None


class Objects:
    """All objects whose names start with a URL. Names are relative to it, with slashes.

    Raises UniegoError without obstore, OSError for what the storage says; FileNotFoundError for a missing object.
    """

    def __init__(self, url: str) -> None:
        try:
            from obstore.store import from_url
        except ImportError as error:
            raise UniegoError(f"{url}: object storage needs obstore: pip install 'uniego[s3]'") from error
        self.url = url.rstrip("/")
        with _told(self.url):
            self.store: Any = from_url(self.url)

    def list(self, prefix: str = "") -> dict[str, Found]:
        """{name: what it is} of all objects below a folder."""
        import obstore

        with _told(self.url):
            pages = obstore.list(self.store, prefix or None)
            return {entry["path"]: _found(entry) for page in pages for entry in page}

    def head(self, name: str) -> Found | None:
        """What an object is, None if there is none."""
        import obstore

        try:
            with _told(f"{self.url}/{name}"):
                return _found(obstore.head(self.store, name))
        except FileNotFoundError:
            return None

    def get(self, name: str) -> bytes:
        """Content of an object."""
        import obstore

        with _told(f"{self.url}/{name}"):
            return bytes(obstore.get(self.store, name).bytes())

    def find(self, name: str) -> bytes | None:
        """Content of an object, None if there is none (any more)."""
        try:
            return self.get(name)
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        import obstore

        with _told(f"{self.url}/{name}"):
            obstore.put(self.store, name, data)

    def put_over(self, name: str, data: bytes, seen: Found | None) -> bool:
        """Write an object if it is still what was seen, None for not there; else False, and nothing is changed.

        True also if it holds these bytes already. A storage that knows no such condition (file://) is asked first.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        mode: Any = "create"
        if seen is not None:
            mode = {"e_tag": seen.mark, **({"version": seen.version} if seen.version else {})}
        try:
            with _told(f"{self.url}/{name}", AlreadyExistsError, PreconditionError, NotSupportedError):
                obstore.put(self.store, name, data, mode=mode)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            return self.find(name) == data
        except (NotSupportedError, NotImplementedError):
            if self.head(name) != seen:
                return self.find(name) == data
            self.put(name, data)
        return True

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is fine."""
        import obstore

        try:
            with _told(f"{self.url}/{name}"):
                obstore.delete(self.store, name)
        except FileNotFoundError:
            pass


def is_url(location: str) -> bool:
    """Whether a location is object storage, and no folder."""
    return "://" in location


def mirror(url: str, folder: Path, small: Callable[[str], bool], lock: str = ".lock") -> Path:
    """Make `folder` hold exactly the objects whose names are `small`, and return it; what is there already is not
    fetched again. Several processes may use one folder: `lock` is held by those that write into it otherwise.

    Raises as `Objects`, and UsageError for a folder that holds anything else.
    """
    remote = Objects(url)
    others = _other_files(folder, (STATE, MIRROR_LOCK, lock))  # listed first: whose copies these are is written before
    if others and not _state(folder):
        raise UsageError(f"{folder} is wanted for copies of what is in {url}, but holds other files: move them away")
    with files.locked(folder / lock):
        bring(remote, folder, small)
    return folder


def _other_files(folder: Path, own: Collection[str]) -> list[str]:
    """What a folder holds besides a mirror's own files, one of which may be about to get its name."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if name not in own and not name.startswith(f".{STATE}.")]


def bring(remote: Objects, folder: Path, small: Callable[[str], bool], parts: Collection[str] = ()) -> dict[str, Found]:
    """Make a mirror, or these `parts` of its top level, like the storage: {name: what it is} of all copies.

    Copies are replaced by renaming; the lock files and what other processes are about to rename stay.
    """
    with files.locked(folder / MIRROR_LOCK):  # lines of a ledger are put and kept under it: none is newer than the list
        found = {name: entry for name, entry in _listed(remote, parts).items() if small(name)}
        state = _state(folder)
        marks: dict[str, str] = state["marks"] if state.get("url") == remote.url else {}
        if not marks:
            files.write_json(folder / STATE, {"url": remote.url, "marks": {}})
        wanted = [name for name in found if not _is_copy(folder / name, found[name], marks.get(name))]
        wanted.sort(key=lambda name: -name.count("/"))  # what others refer to comes first
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for name, data in zip(wanted, pool.map(remote.find, wanted), strict=True):
                if data is None:
                    del found[name]
                else:
                    _keep(folder / name, data)
        _remove_others(folder, found, parts)
        kept = {name: mark for name, mark in marks.items() if parts and name.split("/")[0] not in parts}
        marks = kept | {name: entry.mark for name, entry in found.items()}
        files.write_json(folder / STATE, {"url": remote.url, "marks": marks})
    return found


def origin(folder: Path) -> Objects | None:
    """The object storage that a folder is a mirror of; None for any other folder."""
    state = _state(folder)
    return Objects(state["url"]) if state else None


def _listed(remote: Objects, parts: Collection[str]) -> dict[str, Found]:
    if not parts:
        return remote.list()
    alone = {part: remote.head(part) for part in parts}
    found = {part: entry for part, entry in alone.items() if entry is not None}
    return found | {name: entry for part in parts if part not in found for name, entry in remote.list(part).items()}


def _is_copy(path: Path, found: Found, mark: str | None) -> bool:
    try:
        return mark == found.mark and path.stat().st_size == found.size
    except FileNotFoundError:
        return False


def _keep(path: Path, data: bytes) -> None:
    """A copy need not be durable, but whole; one that is there already keeps its inode."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{files.PARTIAL}")
    partial.write_bytes(data)
    partial.replace(path)


def _remove_others(folder: Path, found: Collection[str], parts: Collection[str]) -> None:
    """Remove what the storage does not have, and folders that are left empty; at the top level files begin with no dot.

    Temporary files stay: they are a living process's, or are swept with all others of their folder.
    """
    tops = [path for path in folder.iterdir() if path.name[0] != "." and (not parts or path.name in parts)]
    for path in [*tops, *(path for top in tops for path in top.rglob("*"))]:
        if path.is_file() and path.relative_to(folder).as_posix() not in found and path.suffix != files.PARTIAL:
            path.unlink()
    for path in sorted((path for top in tops for path in (top, *top.rglob("*")) if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            path.rmdir()


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    except FileNotFoundError:
        return {}
    return state


def _found(entry: Any) -> Found:
    return Found(int(entry["size"]), str(entry.get("e_tag") or entry["last_modified"]), entry.get("version"))


@contextmanager
def _told(where: str, *apart: type[Exception]) -> Iterator[None]:
    """Errors of the storage as OSError, but for those set apart."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        if isinstance(error, apart):
            raise
        raise OSError(f"{where}: {error}") from error
