"""`uniego encode --dense`: the field's layout, the spans of features, kills, broken files, refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniego
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import UsageError
from uniego.models import TimeSformer
from uniego.pipeline import files
from uniego.pipeline.sliding import Sliding
from uniego.pipeline.video import VideoError
from uniego.stages import encode_dense as module
from uniego.stages.batches import ClipReader, Protocol
from uniego.stages.encode import EncodeOptions
from uniego.stages.encode_dense import encode_dense
from uniego.stages.encoder import write_model
from uniego.stages.video_list import VideoList

WIDTH = 16


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random network that sees four frames through one centre crop."""
    folder = tmp_path_factory.mktemp("model")
    network = TimeSformer(16, 8, 4, width=WIDTH, depth=1, heads=2, num_classes=3)
    reader = ClipReader(4, 16, "fit", 32, (16, 20), 0.5, 0.45, 0.225, 18, "pyav", 0)
    write_model(folder, network, network.state_dict(), reader, Protocol(1, 1), ("lift", "turn", "hold"))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Three videos of 0.3, 4 and 6 s, and a file that is none. Read only."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((3, 40, 60)):
        make_video(folder / f"{number}.mp4", frames=frames, hue=number)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def words(source: Path, out: Path, model: Path, *more: object) -> list[object]:
    return ["encode", source, "--dense", "--out", out, "--model", model, "--workers", 0, "--threads", 1, *more]


SLIDING = ("--window", 2, "--step", 0.5)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_fields_layout_and_how_numbers_map_to_seconds(tmp_path: Path, videos: Path, model: Path) -> None:
    out = tmp_path / "dense"
    result = call(*words(videos, out, model, *SLIDING, "--json"))
    assert result.exit_code == 0, result.output
    assert "3 videos encoded, 1 failed" in result.output
    assert set(everything(tmp_path)) == {f"dense/features/{n}.npy" for n in range(3)} | {
        "dense/dense.json",
        "dense/failures.csv",
    }
    with (out / "failures.csv").open(newline="") as stream:
        (failure,) = csv.DictReader(stream)
    assert (failure["video"], failure["reason"]) == ("broken", "unreadable")
    shapes = [np.load(out / "features" / f"{n}.npy").shape for n in range(3)]
    assert shapes == [(WIDTH, 1), (WIDTH, 8), (WIDTH, 12)]
    note = json.loads((out / "dense.json").read_text())
    assert (note["settings"]["window_s"], note["settings"]["step_s"]) == (2.0, 0.5)
    assert {name: (v["file"], v["fps"], v["features"]) for name, v in note["videos"].items()} == {
        "0": ("0.mp4", 10.0, 1),
        "1": ("1.mp4", 10.0, 8),
        "2": ("2.mp4", 10.0, 12),
    }
    encoder = uniego.load(model)
    features = np.load(out / "features" / "2.npy")
    assert np.allclose(encoder.encode_dense(videos / "2.mp4", window_s=2, step_s=0.5).numpy().T, features, atol=1e-6)
    before = everything(tmp_path)
    assert "1 of 4 videos" in call(*words(videos, out, model, *SLIDING)).output  # the broken one is tried again
    assert everything(tmp_path) == before


def test_a_window_is_what_encode_says_of_its_span(tmp_path: Path, videos: Path, model: Path) -> None:
    """Windows of 2 s that move by 2 s are the clips of `--every 2`."""
    encoder = uniego.load(model)
    dense = encoder.encode_dense(videos / "2.mp4", window_s=2, step_s=2)
    clips = [encoder.encode(videos / "2.mp4", start_s=2.0 * n, end_s=2.0 * n + 2) for n in range(3)]
    assert torch.allclose(dense, torch.stack(clips), atol=1e-6)
    with pytest.raises(VideoError):
        encoder.encode_dense(videos / "broken.mp4", window_s=2, step_s=2)


@pytest.mark.media
def test_a_real_video(media: Path, tmp_path: Path, model: Path) -> None:
    """1394 frames at 10 fps; windows of 2 s that move by as much are its clips of 2 s."""
    path, out = media / "exo_misc" / "one-by-one-person-detection.mp4", tmp_path / "dense"
    result = call(*words(path, out, model, "--window", 2, "--step", 2, "--workers", 1))
    assert result.exit_code == 0, result.output
    features = np.load(out / "features" / f"{path.stem}.npy")
    assert features.shape == (WIDTH, 70)
    encoder = uniego.load(model)
    for step in (0, 30, 68):
        alone = encoder.encode(path, start_s=2.0 * step, end_s=2.0 * step + 2)
        assert np.allclose(features[:, step], alone.numpy(), atol=1e-5)


class Killed(BaseException):
    """Nothing in the program handles it, as nothing handles a kill."""


class _KilledAt(files.Operations):
    """Ends the work at operation number `at`."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name in ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            self.count += 1
            if self.count == self.at:
                raise Killed
        return found


@pytest.mark.fault
def test_killed_anywhere_it_ends_with_the_same_bytes(
    tmp_path: Path, videos: Path, model: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """At every operation on the disk of a whole run (in the short gate at one of six)."""
    counting = _KilledAt(-1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", counting)
        assert call(*words(videos, tmp_path / "plain" / "d", model, *SLIDING)).exit_code == 0
    wanted = everything(tmp_path / "plain")
    for at in range(1, counting.count + 1, 1 if full else max(1, counting.count // 6)):
        out = tmp_path / f"{at}" / "d"
        with monkeypatch.context() as patch:
            patch.setattr(files, "operations", _KilledAt(at))
            with pytest.raises(Killed):
                call(*words(videos, out, model, *SLIDING))
        for path in out.glob("features/*.npy"):  # what is visible is whole
            assert path.read_bytes() == wanted[f"d/features/{path.name}"]
        assert call(*words(videos, out, model, *SLIDING)).exit_code == 0
        assert everything(out.parent) == wanted, at


@pytest.mark.fault
def test_a_stop_keeps_what_is_finished(
    tmp_path: Path, videos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d"
    once = module.segmentation.write_features

    def and_stop(*arguments: Any) -> None:
        once(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(module.segmentation, "write_features", and_stop)
        assert call(*words(videos, out, model, *SLIDING)).exit_code == 75
    first = (out / "features" / "0.npy").stat().st_mtime_ns
    assert not (out / "features" / "2.npy").exists()
    assert "of 4 videos" in call(*words(videos, out, model, *SLIDING)).output
    assert (out / "features" / "0.npy").stat().st_mtime_ns == first
    assert (out / "features" / "2.npy").exists()


@pytest.mark.slow
@pytest.mark.fault
def test_fault_22_a_video_that_crashes_decoders_is_reported(
    tmp_path: Path,
    videos: Path,
    model: Path,
    make_video: Callable[..., Path],
    at_work: Callable[..., AbstractContextManager[list[int]]],
) -> None:
    both = tmp_path / "both"
    shutil.copytree(videos, both)
    slow = make_video(both / "slow.mp4", frames=100, size=(960, 540), gop=100)
    options = EncodeOptions(workers=1)
    with at_work(str(slow), lambda p: p.send_signal(signal.SIGSEGV), 1_000):
        encode_dense(VideoList(both), tmp_path / "d", model, Sliding(2.0, 0.5), options)
    with (tmp_path / "d" / "failures.csv").open(newline="") as stream:
        assert [(f["video"], f["reason"]) for f in csv.DictReader(stream)] == [
            ("broken", "unreadable"),
            ("slow", "decoder_crash"),
        ]
    encode_dense(VideoList(both), tmp_path / "d", model, Sliding(2.0, 0.5), options)  # tried again
    assert np.load(tmp_path / "d" / "features" / "slow.npy").shape == (WIDTH, 20)


def test_refusals(tmp_path: Path, videos: Path, model: Path, clip_table: Path) -> None:
    out = tmp_path / "d"
    for more, told in (
        ((), "--dense needs --window and --step"),
        (("--window", 2), "--dense needs --window and --step"),
        (("--window", 0, "--step", 1), "must be positive"),
        ((*SLIDING, "--every", 2), "--every cuts videos"),
        ((*SLIDING, "--logits"), "--logits are of clips"),
    ):
        result = call(*words(videos, out, model, *more))
        assert (result.exit_code, told in result.output) == (2, True), result.output
    assert "writes a folder" in call(*words(videos, tmp_path / "d.npy", model, *SLIDING)).output
    result = call("encode", videos, "--out", tmp_path / "e.npy", "--model", model, "--step", 1)
    assert (result.exit_code, "belong to --dense" in result.output) == (2, True)
    assert not list(tmp_path.iterdir())
    table = call(*words(clip_table, out, model, *SLIDING))  # twelve clips of eleven files
    assert "11 videos encoded" in table.output
    assert call(*words(clip_table, out, model, "--window", 2, "--step", 1)).exit_code == 5
    before = everything(out)
    assert call(*words(videos / "broken.mp4", tmp_path / "b", model, *SLIDING)).exit_code == 3
    assert everything(out) == before
    (out / "dense.json").unlink()
    result = call(*words(clip_table, out, model, *SLIDING))
    assert (result.exit_code, "unknown origin" in result.output) == (2, True)
    assert call(*words(videos, tmp_path / "c", model, *SLIDING, "--min-coverage", 0.9)).exit_code == 3


def test_another_video_of_the_same_name_is_refused(
    tmp_path: Path, model: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "v" / "a.mp4", hue=1)
    out = tmp_path / "d"
    assert call(*words(tmp_path / "v", out, model, *SLIDING)).exit_code == 0
    make_video(tmp_path / "v" / "b.mp4", hue=2)  # one that has come since
    assert call(*words(tmp_path / "v", out, model, *SLIDING)).exit_code == 0
    make_video(tmp_path / "v" / "a.mp4", hue=3)
    before = everything(out)
    result = call(*words(tmp_path / "v", out, model, *SLIDING))
    assert (result.exit_code, "videos.a" in result.output) == (5, True), result.output
    assert everything(out) == before
    assert call(*words(tmp_path / "v", out, model, *SLIDING, "--overwrite")).exit_code == 0
    assert everything(out)["features/a.npy"] != before["features/a.npy"]
    assert everything(out)["features/b.npy"] == before["features/b.npy"]
    make_video(tmp_path / "v" / "sub" / "a.mp4")
    with pytest.raises(UsageError, match=r"features/a\.npy"):
        encode_dense(VideoList(tmp_path / "v"), out, model, Sliding(1.0, 1.0), EncodeOptions(workers=0))
