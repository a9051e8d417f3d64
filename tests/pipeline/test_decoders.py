"""Decoder processes: the same frames in the same order, whatever becomes of the processes; nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from uniego.errors import UniegoError
from uniego.pipeline import files
from uniego.pipeline.decode import Decoded, DecodeJob, decode
from uniego.pipeline.decoder_process import Closed
from uniego.pipeline.decoders import Decoders

MakeVideo = Callable[..., Path]
Children = Callable[[], list[psutil.Process]]
AtWork = Callable[..., AbstractContextManager[list[int]]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> list[DecodeJob]:
    """Jobs of different lengths, a bad file in their midst, and one that wants no frames."""
    folder = tmp_path_factory.mktemp("videos")
    made = [DecodeJob(str(make_video(folder / f"{n}.mp4", frames=10 + 7 * n)), None, None, (8, 3)) for n in range(6)]
    made[2] = replace(made[2], start_s=0.5, end_s=1.5)
    (folder / "text.mp4").write_text("no video" * 100)
    return [*made[:3], DecodeJob(str(folder / "text.mp4"), None, None, (8,)), *made[3:], replace(made[0], counts=())]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, make_video: MakeVideo) -> DecodeJob:
    """A job of about a second."""
    path = make_video(tmp_path_factory.mktemp("slow") / "slow.mp4", frames=300, size=(960, 540), gop=300)
    return DecodeJob(str(path), None, None, (64,))


def same(one: Decoded, other: Decoded) -> bool:
    assert (one.shape, one.length, str(one.error)) == (other.shape, other.length, str(other.error))
    if one.frames is None or other.frames is None:
        return one.frames is other.frames
    return np.array_equal(one.numbers, other.numbers) and np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_results_in_the_same_order(workers: int, jobs: list[DecodeJob], children: Children) -> None:
    with Decoders(jobs, 0) as decoders:
        inline = list(decoders)
    with Decoders(jobs, workers) as decoders:
        results = list(decoders)
    assert [result.error is not None for result in inline] == [n == 3 for n in range(len(jobs))]
    assert inline[-1].shape == (10.0, 48, 64)
    assert all(same(one, other) for one, other in zip(inline, results, strict=True))
    assert not children()


def test_places_are_those_of_each_count(jobs: list[DecodeJob]) -> None:
    both, one = decode(jobs[0]), decode(replace(jobs[0], counts=(3,)))
    assert both.frames is not None
    assert one.frames is not None
    assert np.array_equal(both.frames[both.places(3)], one.frames[one.places(3)])
    assert len(both.places(8)) == 8


def test_a_decoder_process_is_small(jobs: list[DecodeJob], children: Children) -> None:
    with Decoders(jobs, 1) as decoders:
        next(decoders)
        (process,) = children()
        assert not any("torch" in entry.path for entry in process.memory_maps())
        assert process.memory_info().rss < 200e6


@pytest.mark.fault
def test_fault_22_a_hanging_decoder_is_replaced(jobs: list[DecodeJob], slow: DecodeJob, at_work: AtWork) -> None:
    with (
        at_work(slow.path, lambda p: p.suspend(), 1) as seen,
        Decoders([jobs[0], slow, jobs[1]], 1, timeout_s=5.0) as decoders,
    ):
        results = list(decoders)
    assert seen
    assert all(same(result, decode(job)) for result, job in zip(results, [jobs[0], slow, jobs[1]], strict=True))


@pytest.mark.fault
def test_fault_22_a_file_that_hangs_decoders_is_refused(
    jobs: list[DecodeJob], slow: DecodeJob, children: Children, at_work: AtWork
) -> None:
    with at_work(slow.path, lambda p: p.suspend(), 3) as seen:
        with Decoders([jobs[0], slow, jobs[1]], 1, timeout_s=2.0) as decoders:
            results = list(decoders)
        assert not children()  # those that hung were killed
    assert len(seen) >= 2  # the third, which wants the length alone, may be over before it is seen
    error = results[1].error
    assert error is not None
    assert error.reason == "decoder_timeout"
    assert slow.path in str(error)
    assert same(results[0], decode(jobs[0]))
    assert same(results[2], decode(jobs[1]))


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_fault_22_a_crash_is_tried_again_once(
    number: int, jobs: list[DecodeJob], slow: DecodeJob, at_work: AtWork
) -> None:
    for crashes, reason in ((1, None), (2, "decoder_crash")):
        kill = at_work(slow.path, lambda p: p.send_signal(number), crashes)
        with kill as seen, Decoders([slow, *jobs], 2) as decoders:
            results = list(decoders)
        assert len(seen) == crashes
        assert all(same(result, decode(job)) for result, job in zip(results[1:], jobs, strict=True))
        if reason is None:
            assert same(results[0], decode(slow))
        else:
            error = results[0].error
            assert error is not None
            assert error.reason == reason
            assert signal.Signals(number).name in str(error)
            assert results[0].shape == (10.0, 540, 960)  # a skeleton's teacher may still go on


@pytest.mark.fault
def test_fault_22_memory_stays_bounded_and_nothing_is_left(
    jobs: list[DecodeJob], full: bool, children: Children
) -> None:
    """Processes are replaced after their share of jobs; descriptors and memory do not grow."""
    count, pids, most = 10_000 if full else 300, set[int](), 0
    before = psutil.Process().num_fds(), shared_files(psutil.Process())
    with Decoders((jobs[n % 3] for n in range(count)), 2, recycle=count // 6) as decoders:
        for number, result in enumerate(decoders):
            assert result.frames is not None
            if number % 25 == 0:
                running = children()
                pids |= {process.pid for process in running}
                with suppress(psutil.Error):
                    most = max([most, *(process.memory_info().rss for process in running)])
                if number == 100:
                    begun = psutil.Process().memory_info().rss
    del result  # its frames are the last memory shared
    assert 6 <= len(pids) <= 8
    assert most < 200e6
    assert psutil.Process().memory_info().rss < begun + 50e6
    assert (psutil.Process().num_fds(), shared_files(psutil.Process())) == before


def test_decoders_pause_when_enough_waits(jobs: list[DecodeJob]) -> None:
    taken = []

    def each() -> Iterator[DecodeJob]:
        for number in range(100):
            taken.append(number)
            yield jobs[0]

    one = decode(jobs[0]).nbytes
    with Decoders(each(), 2, waiting_bytes=3 * one) as decoders:
        next(decoders)
        time.sleep(1.0)
        assert 3 <= len(taken) <= 1 + 3 + 2
        assert sum(result is not None for result in decoders) == 99


@pytest.mark.fault
def test_fault_07_errors_of_the_machine_are_tried_again_and_raised(
    jobs: list[DecodeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading one's own memory at address 0 is a real EIO."""
    monkeypatch.setattr(files, "PAUSES", (0.01, 0.01))
    failing = DecodeJob("/proc/self/mem", None, None, (8,))
    for workers in (0, 1):
        with Decoders([jobs[0], failing], workers) as decoders:
            assert next(decoders).error is None
            with pytest.raises(OSError, match="Input/output error") as caught:
                next(decoders)
            assert caught.value.errno == errno.EIO


def test_a_decoder_that_cannot_start_is_not_the_files_fault(
    jobs: list[DecodeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with Decoders(jobs, 1) as decoders, pytest.raises(UniegoError, match="could be started"):
        next(decoders)


def test_closing_ends_whoever_waits(slow: DecodeJob, children: Children) -> None:
    decoders = Decoders([slow] * 3, 1)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            for _ in decoders:
                pass
        except Closed as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.5)
    begin = time.monotonic()
    decoders.close()
    thread.join(5)
    assert caught
    assert time.monotonic() - begin < 3
    assert not children()


_PARENT = """
import sys, time
from uniego.pipeline.decode import DecodeJob
from uniego.pipeline.decoders import Decoders
decoders = Decoders([DecodeJob(sys.argv[1], None, None, (64,))] * 1000, 2)
for result in decoders:
    print(result.error or "ok", flush=True)
"""


def shared_files(process: psutil.Process) -> set[str]:
    """What a process has mapped of the machine's shared memory, under names that outlive it."""
    return {region.path for region in process.memory_maps() if region.path.startswith("/dev/shm/")}


@pytest.fixture
def parent(slow: DecodeJob) -> Iterator[subprocess.Popen[str]]:
    """A process of its own group that decodes with two decoders."""
    command = [sys.executable, "-c", _PARENT, slow.path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.fault
def test_fault_02_decoders_leave_signals_to_their_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ok\n"
    decoders = psutil.Process(parent.pid).children()
    assert len(decoders) == 2
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        for decoder in decoders:
            decoder.send_signal(number)
    assert [parent.stdout.readline() for _ in range(3)] == ["ok\n"] * 3
    assert psutil.Process(parent.pid).children() == decoders


@pytest.mark.fault
def test_decoders_die_with_a_killed_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ok\n"
    decoders = psutil.Process(parent.pid).children()
    shared = set[str]().union(*map(shared_files, [psutil.Process(parent.pid), *decoders]))
    decoders[0].suspend()  # one that hangs cannot notice by itself
    parent.kill()
    _, alive = psutil.wait_procs(decoders, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not [name for name in shared if Path(name).exists()]
