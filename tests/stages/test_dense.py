"""Dense features: which frames a window sees, the same tokens as the network gives clip by clip, continuing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from uniego.errors import UsageError
from uniego.models import TimeSformer
from uniego.pipeline.augment import test_clip as look
from uniego.pipeline.signals import StopFlag
from uniego.pipeline.sliding import Sliding
from uniego.pipeline.video import open_video
from uniego.stages import dense
from uniego.stages.batches import ClipReader
from uniego.stages.dense import Slider, write_dense

READER = ClipReader(4, 16, "fit", 32, (16, 20), 0.5, 0.45, 0.225, 18, "pyav", 0)


@pytest.fixture(scope="module")
def model() -> TimeSformer:
    return TimeSformer(image_size=16, patch_size=8, num_frames=4, width=16, depth=1, heads=2, seed=3).eval()


def test_frames_of_the_windows(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    with open_video(make_video(tmp_path / "v.mp4", frames=20, fps=10)) as video:
        picks = Sliding(0.8, 0.4).picks(video.info, 4)
        assert picks.tolist() == [[0, 1, 3, 5], [3, 5, 7, 9], [7, 9, 11, 13], [11, 13, 15, 17], [15, 17, 19, 19]]
        np.testing.assert_array_equal(Sliding(0.8, every=4).picks(video.info, 4), picks)
        assert Sliding(0.8, 0.3).steps(1.9, 10) == 7
        assert Sliding(5.0, 99.0).picks(video.info, 2).tolist() == [[19, 19]]
        assert Sliding(0.1, 0.1).picks(video.info, 1)[:, 0].tolist() == list(range(20))
    with open_video(make_video(tmp_path / "one.mp4", frames=1)) as video:
        assert Sliding(0.8, 0.4).picks(video.info, 4).tolist() == [[0, 0, 0, 0]]
    times = [0, 100, 900, 1000]
    with open_video(make_video(tmp_path / "vfr.mkv", frames=4, times=times)) as video:
        assert Sliding(0.2, 0.2).picks(video.info, 1)[:, 0].tolist()[:6] == [1, 1, 1, 1, 2, 3]
    with pytest.raises(UsageError, match="positive"):
        Sliding(0.0, 1.0)
    with pytest.raises(UsageError, match="give one"):
        Sliding(1.0)


def tokens(model: TimeSformer, path: Path, sliding: Sliding, workers: int = 0) -> np.ndarray:
    with StopFlag() as flag:
        ((name, found),) = Slider(model, READER, sliding, workers=workers).tokens({"v": path}, flag)
    assert name == "v"
    assert isinstance(found, np.ndarray)
    return found


def test_tokens_are_those_of_each_window_alone_whatever_the_stretches(
    tmp_path: Path, make_video: Callable[..., Path], model: TimeSformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sliding = make_video(tmp_path / "v.mp4", frames=90, fps=10, gop=7), Sliding(1.3, 0.2)
    found = tokens(model, path, sliding)
    for workers, room in ((0, 1), (2, 70_000), (2, 1 << 18)):
        monkeypatch.setattr(dense, "_STRETCH", room)
        np.testing.assert_array_equal(tokens(model, path, sliding, workers), found)
    assert found.shape == (45, 16)
    with open_video(path) as video, torch.inference_mode():
        picks = sliding.picks(video.info, 4)
        for step in (0, 17, 44):
            frames = video.frames(picks[step])
            alone = model(look(frames, size=16, single_short_side=18)[None]).token[0]
            np.testing.assert_allclose(found[step], alone.numpy(), atol=1e-5)


def test_each_frame_is_taken_once(
    tmp_path: Path, make_video: Callable[..., Path], model: TimeSformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken = make_video(tmp_path / "v.mp4", frames=90, fps=10), []
    monkeypatch.setattr(dense, "_STRETCH", 1 << 18)
    once = dense.test_clip

    def noted(*arguments: object, **options: object) -> torch.Tensor:
        taken.append(1)
        return once(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(dense, "test_clip", noted)
    tokens(model, path, Sliding(1.3, 0.2))
    with open_video(path) as video:
        assert len(taken) == len(np.unique(Sliding(1.3, 0.2).picks(video.info, 4)))


def test_what_is_there_is_kept_and_what_does_not_decode_is_told(
    tmp_path: Path, make_video: Callable[..., Path], model: TimeSformer
) -> None:
    videos = {name: make_video(tmp_path / f"{name}.mp4", hue=i) for i, name in enumerate("ab")}
    videos["bad"] = tmp_path / "bad.mp4"
    videos["bad"].write_text("no video")
    out = tmp_path / "out"
    with StopFlag() as flag:
        (failure,) = write_dense(Slider(model, READER, Sliding(1.0, 0.5)), videos, out, flag)
        assert (failure.clip_id, failure.reason) == ("bad", "unreadable")
        first = (out / "features" / "a.npy").stat().st_mtime_ns, (out / "features" / "b.npy").read_bytes()
        (out / "features" / "b.npy").unlink()
        write_dense(Slider(model, READER, Sliding(1.0, 0.5)), videos, out, flag)
    assert ((out / "features" / "a.npy").stat().st_mtime_ns, (out / "features" / "b.npy").read_bytes()) == first
    assert np.load(out / "features" / "a.npy").shape == (16, 4)


def test_tokens_that_are_no_numbers_are_a_failure_of_their_video(
    tmp_path: Path, make_video: Callable[..., Path], model: TimeSformer
) -> None:
    videos = {name: make_video(tmp_path / f"{name}.mp4", frames=20 + 20 * i) for i, name in enumerate("ab")}
    spoiled = model.register_forward_hook(
        lambda _, __, out: out._replace(token=out.token / 0 * 0) if len(out.token) == 2 else out
    )
    try:
        with StopFlag() as flag:
            found = write_dense(Slider(model, READER, Sliding(1.0, 1.0)), videos, tmp_path / "out", flag)
    finally:
        spoiled.remove()
    assert [failure[:2] for failure in found] == [("a", "non_finite")]
    assert [p.name for p in (tmp_path / "out" / "features").iterdir()] == ["b.npy"]
