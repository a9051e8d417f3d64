"""Object storage (s3://, gs://, az://, …) by obstore; and a mirror, a folder that holds copies of its small objects.

A put is whole or not there, and durable when it returns: no temporary name, no fsync. There are no locks.
Credentials and end points come from the usual environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UniegoError, UsageError
from . import files

STATE = ".objects.json"
_AT_ONCE = 16


class Found(NamedTuple):
    """An object: size in bytes, and a mark that changes with its content."""

    size: int
    mark: str


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

    def put(self, name: str, data: bytes) -> None:
        """Write an object, replacing an older one."""
        import obstore

        with _told(f"{self.url}/{name}"):
            obstore.put(self.store, name, data)

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


def mirror(url: str, folder: Path, small: Callable[[str], bool]) -> Path:
    """Make `folder` hold exactly the objects whose names are `small`, and return it; what is there already is not
    fetched again. Raises as `Objects`, and UsageError for a folder that holds anything else."""
    remote = Objects(url)
    found = {name: entry for name, entry in remote.list().items() if small(name)}
    state = _state(folder)
    if not state and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is wanted for copies of what is in {url}, but holds other files: move them away")
    if state.get("url") != remote.url:  # the copies are of another place, or there are none yet
        files.remove_tree(folder)
        state = {"url": remote.url, "marks": {}}
        files.write_json(folder / STATE, state)
    marks: dict[str, str] = state["marks"]
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name not in (STATE, ".lock")]:
        name = path.relative_to(folder).as_posix()
        if name not in found or marks.get(name) != found[name].mark:
            path.unlink()
    wanted = [name for name in found if not (folder / name).exists()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, data in zip(wanted, pool.map(remote.get, wanted), strict=True):
            _keep(folder / name, data)
    files.write_json(folder / STATE, {"url": remote.url, "marks": {name: entry.mark for name, entry in found.items()}})
    return folder


def origin(folder: Path) -> Objects | None:
    """The object storage that a folder is a mirror of; None for any other folder."""
    state = _state(folder)
    return Objects(state["url"]) if state else None


def _keep(path: Path, data: bytes) -> None:
    """A copy need not be durable, but whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{files.PARTIAL}")
    partial.write_bytes(data)
    partial.replace(path)


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    except FileNotFoundError:
        return {}
    return state


def _found(entry: Any) -> Found:
    return Found(int(entry["size"]), str(entry.get("e_tag") or entry["last_modified"]))


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors of the storage as OSError."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise OSError(f"{where}: {error}") from error
