"""Durable files: order of operations, torn lines, left-overs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uniego.pipeline import files


class Recorder(files.Operations):
    """Passes everything on, and notes names of calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in ("open", "write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            self.calls.append(name)
        return super().__getattribute__(name)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(files, "operations", recorder)
    return recorder


def failing(name: str, error: BaseException) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    fail.__name__ = name
    return fail


def test_write_is_synced_before_and_after_the_rename(tmp_path: Path, recorder: Recorder) -> None:
    files.write_bytes(tmp_path / "a", b"text")
    assert recorder.calls == ["open", "write", "fsync", "rename", "fsync"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_new_folders_are_synced_into_their_parents(tmp_path: Path, recorder: Recorder) -> None:
    files.make_dir(tmp_path / "a" / "b")
    assert recorder.calls == ["mkdir", "fsync"] * 2
    files.make_dir(tmp_path / "a" / "b")
    assert len(recorder.calls) == 4


def test_append_is_one_write_and_one_sync(tmp_path: Path, recorder: Recorder) -> None:
    files.append_line(tmp_path / "log", "one")
    assert recorder.calls == ["open", "fsync", "write", "fsync"]  # the first sync: the new file's folder
    recorder.calls.clear()
    files.append_line(tmp_path / "log", "two")
    assert recorder.calls == ["open", "write", "fsync"]
    assert files.read_lines(tmp_path / "log") == ["one", "two"]


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", float("nan"))


@pytest.mark.parametrize("name", ["write", "fsync", "rename"])
def test_a_failure_keeps_the_old_file_and_no_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files.write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(files.operations, name, failing(name, OSError(errno.EROFS, "broken")))
    with pytest.raises(OSError, match="broken"):
        files.write_bytes(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_fault_06_a_full_disk_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(files.operations, "write", failing("write", OSError(code, "No space left")))
    with pytest.raises(OSError, match=r"1000 bytes needed, \d+ free") as caught:
        files.write_bytes(tmp_path / "a", bytes(1000))
    assert caught.value.errno == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("times", [1, 4, 5])
def test_fault_07_what_a_network_file_system_gets_over_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, times: int
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("uniego.pipeline.files.time.sleep", pauses.append)
    for write in (files.write_bytes, lambda path, data: files.append_line(path, data.decode())):
        failures = iter([OSError(code, "for a moment")] * times)

        def fsync(fd: int, failures: Iterator[OSError] = failures) -> None:
            for failure in failures:
                raise failure
            os.fsync(fd)

        pauses.clear()
        path = tmp_path / f"a{times}"
        with monkeypatch.context() as patch:
            patch.setattr(files.operations, "fsync", fsync)
            if times < 5:
                write(path, b"new")
            else:
                with pytest.raises(OSError, match="for a moment"):
                    write(path, b"new")
        assert len(pauses) == min(times, 4)
        assert pauses == sorted(pauses)
        if times < 5:
            assert path.read_text().rstrip() == "new"
        path.unlink(missing_ok=True)
        assert not list(tmp_path.iterdir())


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.operations, "write", lambda fd, data: os.write(fd, data[:3]))
    files.write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_fault_04_a_torn_line_is_ignored_and_cut_off_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a":1}\n{"a":')
    assert files.read_lines(path) == ['{"a":1}']
    assert files.read_json_lines(path) == ([{"a": 1}], 1)
    files.append_line(path, '{"a":2}')
    assert path.read_bytes() == b'{"a":1}\n{"a":2}\n'


def test_without_locks_a_torn_line_is_ended_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.fcntl, "flock", failing("flock", OSError(errno.ENOLCK, "no locks")))
    path = tmp_path / "log"
    path.write_bytes(b'{"a":1}\n{"a":')
    files.append_line(path, '{"a":2}')
    assert files.read_json_lines(path) == ([{"a": 1}, {"a": 2}], 1)


def test_a_line_with_a_newline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="newline"):
        files.append_line(tmp_path / "log", "a\nb")


@given(st.lists(st.text(st.characters(blacklist_characters="\n", codec="utf-8"))), st.binary(max_size=5))
def test_lines_come_back_whatever_was_torn(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    path.write_bytes(torn.replace(b"\n", b""))
    for line in lines:
        files.append_line(path, line)
    assert files.read_lines(path) == lines


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    assert files.hash_file(tmp_path / "a") == files.hash_bytes(bytes(3 << 20))
    assert files.hash_bytes(b"") == "cae66941d9efbd404e4d88758ea67670"


HOLDER = """
import sys
from uniego.pipeline import files
fd, path = files._open_partial(__import__("pathlib").Path(sys.argv[1]) / "a")
print(path.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.fault
def test_left_overs_of_the_dead_are_removed_and_files_in_use_are_not(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"kept")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    name = holder.stdout.readline().strip()
    assert files.remove_partials(tmp_path) == []
    holder.kill()
    holder.communicate()
    assert files.remove_partials(tmp_path) == [tmp_path / name]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert files.remove_partials(tmp_path / "none") == []


def test_a_writer_whose_new_file_was_swept_away_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, swept = files._lock, []

    def sweep_first(fd: int, *, wait: bool) -> bool:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        return lock(fd, wait=wait)

    monkeypatch.setattr(files, "_lock", sweep_first)
    files.write_bytes(tmp_path / "a", b"text")
    assert swept
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"text"}


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "outside" / "kept", b"1")
    files.write_bytes(tmp_path / "tree" / "deep" / "file", b"1")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    files.remove_tree(tmp_path / "tree")
    files.remove_tree(tmp_path / "tree")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "outside"]


LOCKER = """
import sys, time
from pathlib import Path
from uniego.pipeline import files
with files.locked(sys.argv[1] + "/.lock"):
    value = int(Path(sys.argv[1], "n").read_text())
    time.sleep(0.05)
    Path(sys.argv[1], "n").write_text(str(value + 1))
"""


def test_the_lock_excludes_other_processes(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("0")
    holders = [subprocess.Popen([sys.executable, "-c", LOCKER, str(tmp_path)]) for _ in range(3)]
    assert [holder.wait(60) for holder in holders] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "3"
