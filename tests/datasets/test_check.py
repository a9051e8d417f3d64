"""`uniego data check`: samples, sheets, balance, and clips that stand in two splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from uniego.datasets.leakage import NEAR, overlaps, perceptual_hash
from uniego.pipeline.clips import read_clip_table

Call = Callable[..., Any]


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["clip_id,split,label,ego_path,exo_path,start_s,end_s", *lines]) + "\n")
    return path


def test_a_sound_table(clip_table: Path, tmp_path: Path, call: Call) -> None:
    result = call("check", clip_table, "--sheets", tmp_path / "look")
    assert result.exit_code == 0, result.output
    assert "train: 2 classes of 4 to 4 clips each; without exo video: 1" in result.output
    assert "clips of 2 to 2 s, median 2 s" in result.output
    assert "decoded: 12 clips of the table, both views; 0 errors" in result.output
    sheets = sorted((tmp_path / "look").iterdir())
    assert [sheet.name for sheet in sheets] == ["sheet-001.jpg", "sheet-002.jpg"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.width > 1000
        assert np.asarray(sheet).std() > 10
    before = [sheet.read_bytes() for sheet in sheets]
    assert call("check", clip_table, "--sheets", tmp_path / "look").exit_code == 0
    assert [sheet.read_bytes() for sheet in sheets] == before


def test_of_a_run(clip_table: Path, tmp_path: Path, call: Call) -> None:
    from typer.testing import CliRunner
    from uniego import cli

    run = tmp_path / "run"
    made = CliRunner().invoke(cli.app, ["init", str(run), "--data", str(clip_table), "--preset", "tiny"])
    assert made.exit_code == 0
    report = json.loads(call("check", "--run", run, "--json", "--sample", 2, "--look-alikes", 2).stdout)
    assert report["by_split"]["test"]["clips"] == 4
    assert report["decoded"] == {"clips": 2, "errors": []}
    for arguments in ((), (clip_table, "--run", run), ("--run", run, "--root", tmp_path)):
        assert call("check", *arguments).exit_code == 2
    assert call("check", clip_table, "--quick", "--sheets", tmp_path / "s").exit_code == 2


def test_the_same_moment_in_two_splits(make_video: Any, tmp_path: Path, call: Call) -> None:
    make_video(tmp_path / "a.mp4", frames=60)
    make_video(tmp_path / "b.mp4", frames=60)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    lines = ("a,train,0,a.mp4,b.mp4,0,2", "b,test,0,a.mp4,,2.02,3", "c,train,0,a.mp4,,5,6", "d,test,0,a.mp4,,1,1.5")
    found = overlaps(read_clip_table(table(tmp_path / "t.csv", *lines)))
    assert [(o.view, o.clip, o.other) for o in found] == [("ego", "d", "a")]
    whole = overlaps(read_clip_table(table(tmp_path / "t.csv", *lines[:3], "e,val,0,link.mp4,,,")))
    assert {(o.clip, o.other_split) for o in whole} == {("e", "train"), ("b", "val")}
    exo = table(
        tmp_path / "t.csv", "a,train,0,a.mp4,b.mp4,0,2", "b,test,0,a.mp4,b.mp4,2,3", "c,test,0,b.mp4,b.mp4,1,1.5"
    )
    result = call("check", exo, "--sample", 0, "--look-alikes", 0)
    assert result.exit_code == 0  # the exo view alone is told, not refused
    assert "leakage: 1 times a clip shares more than 0.05 s of an exo video with another split" in result.output
    result = call("check", table(tmp_path / "t.csv", *lines), "--sample", 0, "--look-alikes", 0)
    assert result.exit_code == 1
    assert "  d (test) and a (train)" in result.output


def test_a_copy_under_another_name_looks_alike(tmp_path: Path, make_video: Any, call: Call) -> None:
    """Smaller and of another codec; another video of the same kind does not."""
    import av

    rng = np.random.default_rng(3)
    blurred = [Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)) for _ in range(2)]

    def film(name: str, scene: Image.Image, size: tuple[int, int], codec: str) -> None:
        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for number in range(12):
                picture = scene.resize((160, 120), Image.Resampling.BICUBIC).rotate(number * 4).resize(size)
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())

    film("a.mp4", blurred[0], (160, 120), "libx264")
    film("copy.avi", blurred[0], (80, 64), "mpeg4")
    film("other.mp4", blurred[1], (160, 120), "libx264")
    Image.new("RGB", (32, 32)).save(tmp_path / "1.jpg")
    (tmp_path / "black.frames").write_text('{"folder": ".", "fps": 5}')
    lines = ("a,train,0,a.mp4,,,", "b,test,0,copy.avi,,,", "c,test,0,other.mp4,,,", "d,test,0,black.frames,,,")
    found = json.loads(call("check", table(tmp_path / "t.csv", *lines), "--json").stdout)["look_alikes"]
    assert [(pair["clip"], pair["other"], pair["same_file"]) for pair in found["pairs"]] == [("b", "a", False)]
    assert (found["compared"], found["flat"]) == ({"train": 1, "test": 2}, 1)
    result = call("check", tmp_path / "t.csv")
    assert result.exit_code == 0  # it looks so: a person decides
    assert "look-alikes between splits: 1 pairs, in a sample (1 of train, 2 of test; not all clips)" in result.output


def test_hashes_outlast_scale_and_noise() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        np.asarray(Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((320, 240))) for _ in range(20)
    ]
    hashes = [perceptual_hash(picture) for picture in pictures]
    for picture, bits in zip(pictures, hashes, strict=True):
        noisy = np.clip(picture[::2, ::2] + rng.normal(6, 4, (120, 160, 3)), 0, 255).astype(np.uint8)
        assert int((perceptual_hash(noisy) != bits).sum()) <= NEAR
    apart = [int((a != b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 2 * NEAR
    assert perceptual_hash(np.full((10, 10, 3), 7, np.uint8)) is None


def test_what_does_not_decode_or_is_not_there(tmp_path: Path, make_video: Any, call: Call) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"text")
    path = table(tmp_path / "t.csv", "a,train,0,a.mp4,bad.mp4,,", "b,train,0,gone.mp4,,,")
    result = call("check", path, "--sheets", tmp_path / "look")
    assert result.exit_code == 1
    assert "decoded: 1 clips of the table, both views; 1 errors" in result.output
    assert "a, exo:" in result.output
    assert "b: ego_path" in result.output
    report = json.loads(call("check", path, "--json").stdout)
    assert report["decoded"]["errors"][0]["reason"] == "unreadable"
    assert [entry["clip_id"] for entry in report["missing"]] == ["b"]


@pytest.mark.media
def test_real_videos(media: Path, tmp_path: Path, call: Call) -> None:
    videos = sorted((media / "intel_asl").glob("*.mkv"))[:6]
    lines = [
        f"{video.stem},{'test' if i % 3 == 2 else 'train'},{video.stem},{video},,," for i, video in enumerate(videos)
    ]
    result = call("check", table(tmp_path / "t.csv", *lines), "--sheets", tmp_path / "look")
    assert "0 errors" in result.output
    assert len(list((tmp_path / "look").iterdir())) == 1
