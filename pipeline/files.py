"""Durable files: whole or not at all, and on the disk before anything says so.

A file is written beside its destination under a temporary name, fsynced, renamed, and the folder fsynced.
Whoever writes a temporary file holds a lock on it, so that a left-over of a dead process can be told from one
in use. Everything that changes the disk goes through `operations`, one small object that a test may replace.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

PARTIAL = ".partial"
_BLOCK = 1 << 20
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}
_TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
PAUSES = (0.1, 0.5, 2.0, 8.0)
"""Seconds before each further try, where the machine may get over an error."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_DIR_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


class Operations:
    """What changes the disk, one system call each."""

    def open(self, path: StrPath, flags: int) -> int:
        return os.open(path, flags, 0o666)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def rename(self, source: StrPath, target: StrPath) -> None:
        os.replace(source, target)  # noqa: PTH105

    def unlink(self, path: StrPath) -> None:
        os.unlink(path)  # noqa: PTH108

    def mkdir(self, path: StrPath) -> None:
        os.mkdir(path)  # noqa: PTH102

    def rmdir(self, path: StrPath) -> None:
        os.rmdir(path)  # noqa: PTH106


operations = Operations()


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write a file whole and durably, replacing an older one; missing folders are made.

    After a crash at any moment the path holds the old bytes or the new ones. Errors that a network file system
    gets over are tried again a few times. Raises OSError; for a full disk its message says how many bytes were
    needed and how many are free.
    """
    path = Path(path)
    _patiently(lambda: _write_once(path, data))


def _write_once(path: Path, data: bytes) -> None:
    make_dir(path.parent)
    fd, temporary = _open_partial(path)
    try:
        _write_all(fd, data, path)
        operations.fsync(fd)
        operations.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            operations.unlink(temporary)
        raise
    finally:
        os.close(fd)
    sync_dir(path.parent)


def write_json(path: StrPath, obj: Any) -> None:
    """Write `to_json` of an object by `write_bytes`."""
    write_bytes(path, to_json(obj))


def to_json(obj: Any) -> bytes:
    """An object as JSON: UTF-8, sorted keys, two spaces, final newline, no NaN."""
    return json.dumps(obj, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def append_line(path: StrPath, text: str) -> None:
    """Append one line durably, by one write and one fsync; the file and its folders are made if missing.

    A torn last line, left by a crash, is cut off first; where the file system has no locks it is ended by a
    newline instead, and stays as a line that is no JSON. Where writing is tried again, a line may stand there
    twice. Raises ValueError if the text has a newline.
    """
    if "\n" in text:
        raise ValueError("a line to append must not contain a newline")
    _patiently(lambda: _append_once(Path(path), text))


def _append_once(path: Path, text: str) -> None:
    make_dir(path.parent)
    fd = operations.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        locked = _lock(fd, wait=True)
        size = os.fstat(fd).st_size
        whole = _end_of_lines(fd, size)
        data = text.encode() + b"\n"
        if size == 0:
            sync_dir(path.parent)
        if whole < size and locked:
            operations.truncate(fd, whole)
        elif whole < size:
            data = b"\n" + data
        _write_all(fd, data, path)
        operations.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: StrPath) -> list[str]:
    """Complete lines of a UTF-8 text file, without their newlines; a torn last line is ignored."""
    return Path(path).read_bytes().decode(errors="replace").split("\n")[:-1]


def read_json_lines(path: StrPath) -> tuple[list[Any], int]:
    """(objects, lines that are torn or no JSON) of a file of JSON lines; empty lines do not count."""
    *lines, last = Path(path).read_bytes().decode(errors="replace").split("\n")
    records: list[Any] = []
    torn = 1 if last else 0
    for line in filter(None, lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            torn += 1
    return records, torn


def hash_bytes(data: bytes | memoryview) -> str:
    """blake2b of 16 bytes, as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_file(path: StrPath) -> str:
    """`hash_bytes` of a file's content, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_dir(path: StrPath) -> None:
    """Make a folder's entries durable; nothing happens where folders cannot be synced."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        operations.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIR_SYNC:
            raise
    finally:
        os.close(fd)


def sync_tree(path: StrPath) -> None:
    """Make a file durable that something else wrote, or a folder with all in it."""
    path = Path(path)
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if entry.is_dir():
            sync_dir(entry)
            continue
        fd = os.open(entry, os.O_RDONLY)
        try:
            operations.fsync(fd)
        finally:
            os.close(fd)


def make_dir(path: StrPath) -> None:
    """Make a folder and its missing parents durably; an existing folder is fine."""
    path = Path(path)
    if path.is_dir():
        return
    if path.parent != path:
        make_dir(path.parent)
    with suppress(FileExistsError):
        operations.mkdir(path)
    sync_dir(path.parent)


def remove_partials(folder: StrPath) -> list[Path]:
    """Remove temporary files directly in `folder` whose writer is dead; those removed are returned.

    Files in use stay, and where the file system has no locks all of them stay.
    """
    return [path for path in _partials(folder) if _if_dead(path, operations.unlink)]


def dead_partials(folder: StrPath) -> list[Path]:
    """Temporary files directly in `folder` that `remove_partials` would remove."""
    return [path for path in _partials(folder) if _if_dead(path, lambda _: None)]


def _partials(folder: StrPath) -> list[Path]:
    if not Path(folder).is_dir():
        return []
    names = sorted(os.listdir(folder))  # noqa: PTH208
    return [Path(folder) / name for name in names if name.startswith(".") and name.endswith(PARTIAL)]


def remove_tree(path: StrPath) -> None:
    """Remove a folder and all in it durably; a missing folder is fine, links in it are not followed."""
    path = Path(path)
    if not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            operations.unlink(entry)
    operations.rmdir(path)
    sync_dir(path.parent)


@contextmanager
def locked(path: StrPath) -> Iterator[None]:
    """Hold an exclusive lock on a lock file (made if missing, left in place) for the length of a with block.

    Waits for other processes. The kernel drops the lock when its holder dies. On a file system without locks
    the block runs unprotected.
    """
    make_dir(Path(path).parent)
    fd = operations.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _lock(fd, wait=True)
        yield
    finally:
        os.close(fd)


def _patiently(act: Callable[[], None]) -> None:
    """Do it, and where a network file system fails for a moment, again after a pause, up to four times."""
    for pause in PAUSES:
        try:
            return act()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            _log.warning("%s: trying again in %.1f s", error, pause)
            time.sleep(pause * random.SystemRandom().uniform(1.0, 1.5))  # workers do not come back all at once
    return act()


def _open_partial(path: Path) -> tuple[int, Path]:
    """A new temporary file beside `path`, locked by us: (descriptor, its path)."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
        fd = operations.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        _lock(fd, wait=True)
        if _is_at(fd, temporary):
            return fd, temporary
        os.close(fd)  # a sweep took it for a left-over in the moment before we held the lock


def _if_dead(path: Path, act: Callable[[Path], None]) -> bool:
    """Do something with a temporary file under its lock, unless its writer lives; whether it was done."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        dead = _lock(fd, wait=False) and _is_at(fd, path)
        if dead:
            act(path)
        return dead
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _lock(fd: int, *, wait: bool) -> bool:
    """Take the exclusive lock of an open file; False if another holds it, or if there are no locks here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _write_all(fd: int, data: bytes, path: Path) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[operations.write(fd, rest) :]
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        free = shutil.disk_usage(path.parent).free
        reason = f"{error.strerror}: {len(data)} bytes needed, {free} free; free some and run again to continue"
        raise OSError(error.errno, reason, str(path)) from error


def _end_of_lines(fd: int, size: int) -> int:
    """Bytes up to and including the last newline."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
