"""`uniego encode`: the three formats, clips of every kind of source, kills, failures, refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniego
import zarr
from typer.testing import CliRunner
from uniego import cli
from uniego.models import TimeSformer
from uniego.models.pretrained import load_image_weights, read_image_weights
from uniego.pipeline import files
from uniego.pipeline.video import open_video
from uniego.stages import embeddings
from uniego.stages.batches import ClipReader, Protocol
from uniego.stages.encode import EncodeOptions, _Network
from uniego.stages.encoder import Encoder, write_model

pq: Any = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")

WIDTH, CLASSES = 16, ("lift", "turn", "hold")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def tiny_model(folder: Path, crops: int = 1, size: int = 16) -> Path:
    """A folder with a tiny random network."""
    model = TimeSformer(size, 8, 2, width=WIDTH, depth=1, heads=2, num_classes=3)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    reader = ClipReader(2, size, "fit", 32, (size, size), 0.5, 0.45, 0.225, size, "pyav", 0)
    write_model(folder, model, model.state_dict(), reader, Protocol(2, crops), CLASSES)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A folder of 20 videos in two folders, one file that is none, and one that is not looked at. Read only."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(20):
        make_video(folder / f"{number % 2}" / f"{number:02d}.mp4", frames=4 + number, fps=10, hue=number)
    (folder / "1" / "broken.MKV").write_bytes(b"no video at all")
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def words(model: Path, videos: Path) -> list[object]:
    """The command, of the folder and in one process, but for --out."""
    return ["encode", videos, "--model", model, "--workers", 0, "--threads", 1]


@pytest.fixture
def encode(words: list[object]) -> Callable[..., str]:
    """`encode(out, *options)`"""
    return lambda out, *options: good(*words, "--out", out, *options)


def failures(out: Path) -> list[list[str]]:
    with out.with_name(f"{out.name}.failures.csv").open(newline="") as stream:
        return list(csv.reader(stream))[1:]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_formats_agree_with_the_encoder(tmp_path: Path, encode: Callable[..., str], videos: Path, model: Path) -> None:
    for suffix in ("parquet", "npy", "zarr"):
        said = encode(tmp_path / f"e.{suffix}", "--logits")
        assert "20 clips encoded, 1 failed" in said
        assert "by 2 clips tried" in said
        assert failures(tmp_path / f"e.{suffix}")[0][:2] == ["1/broken.MKV", "unreadable"]
        assert not (tmp_path / f"e.{suffix}.work").exists()
        assert "finished, nothing to do" in encode(tmp_path / f"e.{suffix}", "--logits")
    table = pq.read_table(tmp_path / "e.parquet")
    names = table["clip_id"].to_pylist()
    assert names == sorted(p.relative_to(videos).as_posix() for p in videos.rglob("*.mp4"))
    tokens = np.stack(table["embedding"].to_numpy())
    encoder = uniego.load(model)
    assert np.allclose(tokens, encoder.encode([videos / name for name in names]).numpy(), atol=1e-6)
    assert [next(iter(encoder.classify(videos / name))) for name in names] == table["predicted"].to_pylist()
    assert np.array_equal(np.load(tmp_path / "e.npy"), tokens)
    assert np.array_equal(np.load(tmp_path / "e.npy.logits.npy"), np.stack(table["logits"].to_numpy()))
    group: Any = zarr.open_group(tmp_path / "e.zarr", mode="r")
    assert np.array_equal(group["embeddings"][:], tokens)
    for suffix in ("npy", "zarr"):
        with (tmp_path / f"e.{suffix}.clips.csv").open(newline="") as stream:
            assert [row["clip_id"] for row in csv.DictReader(stream)] == names


def test_windows(tmp_path: Path, model: Path, videos: Path) -> None:
    """19 frames at 10 fps: clips of 0.8 s, of which the last has three frames; each is what `encode` says of it."""
    source = videos / "1" / "15.mp4"
    good("encode", source, "--out", tmp_path / "e.parquet", "--model", model, "--every", 0.8, "--workers", 0)
    table = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row["clip_id"] for row in table] == [
        "15.mp4@0.000-0.800",
        "15.mp4@0.800-1.600",
        "15.mp4@1.600-2.400",
    ]
    alone = uniego.load(model).encode(source, start_s=0.8, end_s=1.6).numpy()
    assert np.allclose(table[1]["embedding"], alone, atol=1e-6)


def test_a_table_brings_its_labels_and_segments(tmp_path: Path, model: Path, clip_table: Path) -> None:
    out = tmp_path / "e.parquet"
    good("encode", clip_table, "--out", out, "--model", model, "--workers", 2, "--batch", 5)
    rows = pq.read_table(out).to_pylist()
    assert [row["clip_id"] for row in rows] == [f"clip{n:02d}" for n in range(12)]  # the table's order
    assert (rows[11]["label"], rows[11]["split"], rows[11]["start_s"]) == ("turn", "test", 2.0)
    alone = uniego.load(model).encode(clip_table.parent / "ego/long.mp4", 2.0, 4.0).numpy()
    assert np.allclose(rows[11]["embedding"], alone, atol=1e-6)
    moved = tmp_path / "moved.csv"
    shutil.copy(clip_table, moved)
    root = ["--root", clip_table.parent]
    good("encode", moved, *root, "--out", out, "--model", model)  # the same clips in another place: nothing to do
    assert call("encode", clip_table.parent / "ego", *root, "--out", out, "--model", model).exit_code == 2


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
    tmp_path: Path, encode: Callable[..., str], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """At every operation on the disk of a whole run (in the short gate at one of six)."""
    counting = _KilledAt(-1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "operations", counting)
        encode(tmp_path / "plain" / "e.npy", "--logits")
    wanted = everything(tmp_path / "plain")
    assert set(wanted) == {f"e.npy{more}" for more in ("", ".clips.csv", ".logits.npy", ".failures.csv", ".json")}
    kills = 0
    for at in range(1, counting.count + 1, 1 if full else max(1, counting.count // 5)):
        out = tmp_path / f"{at}" / "e.npy"
        with monkeypatch.context() as patch:
            patch.setattr(files, "operations", _KilledAt(at))
            with pytest.raises(Killed):
                encode(out, "--logits")
            kills += 1
        encode(out, "--logits")
        assert everything(out.parent) == wanted, at
    assert kills > 4


@pytest.mark.fault
@pytest.mark.parametrize("suffix", ["parquet", "npy", "zarr"])
def test_killed_while_the_output_is_written_it_ends_with_the_same_bytes(
    tmp_path: Path, encode: Callable[..., str], monkeypatch: pytest.MonkeyPatch, suffix: str, full: bool
) -> None:
    """Before each portion of rows, before and after the output gets its name, and before the record. What is half
    written never has the output's name, and without its record the output is not taken for finished."""
    monkeypatch.setattr(embeddings, "_ROWS", 7)  # 20 rows in three portions
    encode(tmp_path / "plain" / f"e.{suffix}", "--logits")
    wanted = everything(tmp_path / "plain")
    parts, move, seal = embeddings.Embeddings.parts, embeddings._move, embeddings.Output.seal
    for at in range(1, 13, 1 if full else 4):
        out, seen = tmp_path / f"{at}" / f"e.{suffix}", []

        def step(at: int = at, seen: list[int] = seen) -> None:
            seen.append(1)
            if len(seen) == at:
                raise Killed

        def in_parts(self: Any, step: Callable[[], None] = step) -> Iterator[Any]:
            for part in parts(self):
                step()
                yield part

        def moved(*places: Path, step: Callable[[], None] = step) -> None:
            step()
            move(*places)
            step()

        def sealed(*arguments: Any, step: Callable[[], None] = step) -> Any:
            step()
            return seal(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(embeddings.Embeddings, "parts", in_parts)
            patch.setattr(embeddings, "_move", moved)
            patch.setattr(embeddings.Output, "seal", sealed)
            try:
                encode(out, "--logits")
            except Killed:
                assert not out.with_name(f"{out.name}.json").exists()
                inside = {n: b for n, b in everything(out.parent).items() if ".work" not in n}
                assert inside.items() <= wanted.items()
        encode(out, "--logits")
        assert everything(out.parent) == wanted, at


@pytest.mark.fault
@pytest.mark.parametrize("suffix", [pytest.param("parquet", marks=pytest.mark.slow), "npy", "zarr"])
def test_ctrl_c_ends_with_130_and_it_goes_on(
    tmp_path: Path, words: list[object], monkeypatch: pytest.MonkeyPatch, suffix: str, children: Callable[[], list[Any]]
) -> None:
    command = [*words, "--workers", 1, "--batch", 4, "--out"]
    good(*command, tmp_path / "plain" / f"e.{suffix}")
    out, forward, seen = tmp_path / "out" / f"e.{suffix}", Encoder.forward, []

    def interrupted(self: Encoder, looks: torch.Tensor) -> Any:
        seen.append(1)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, looks)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "forward", interrupted)
        result = call(*command, out)
    assert result.exit_code == 130
    assert "the same command continues" in result.output
    assert not children()
    assert not out.exists()
    assert "13 of 21 clips" in good(*command, out)
    assert everything(out.parent) == everything(tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("suffix", ["parquet", "npy", "zarr"])
def test_a_process_that_is_killed_goes_on(
    tmp_path: Path, videos: Path, model: Path, make_video: Callable[..., Path], suffix: str
) -> None:
    """SIGKILL of the process, Ctrl-C and SIGTERM to all of its group, as terminals and schedulers send them."""
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    for number in range(6):
        make_video(folder / "2" / f"{number}.mp4", frames=100, size=(960, 540), gop=100)

    def command(out: Path) -> list[str]:
        more = ("--workers", 1, "--threads", 1, "--batch", 4)
        return [str(word) for word in ("encode", folder, "--model", model, *more, "--out", out)]

    good(*command(tmp_path / "plain" / f"e.{suffix}"))
    out = tmp_path / "out" / f"e.{suffix}"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from uniego.cli import main; main()"
    )
    shards = 0
    for number, ends in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 75), (None, 0)):
        run = subprocess.Popen(
            [sys.executable, "-c", code, *command(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if number is not None:
            shards = _until_more_lines(out.with_name(f"{out.name}.work"), shards, run)
            os.kill(run.pid, number) if number == signal.SIGKILL else os.killpg(run.pid, number)
        said = run.communicate(timeout=120)[0]
        assert run.returncode == ends, said
        assert number is None or not out.with_name(f"{out.name}.json").exists()
        assert number != signal.SIGINT or "the same command continues" in said
    assert everything(out.parent) == everything(tmp_path / "plain")


def _until_more_lines(work: Path, before: int, run: subprocess.Popen[str]) -> int:
    """Wait until more shards are entered in the ledgers of `work` than there were; how many."""
    end = time.monotonic() + 60
    while True:
        found = sum(len(path.read_text().splitlines()) for path in work.rglob("*.jsonl"))
        if found > before:
            return found
        assert run.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)


def test_finished_shards_are_not_computed_again(
    tmp_path: Path, encode: Callable[..., str], words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniego.stages import encode as module
    from uniego.stages.encoder import Encoder

    class AfterTwo(module.StopFlag):
        looks = 0

        def check(self) -> None:
            AfterTwo.looks += 1
            if AfterTwo.looks == 6:  # two clips tried, a batch, its shard, a batch
                self.requested = "SIGTERM"
            super().check()

    with monkeypatch.context() as patch:
        patch.setattr(module, "StopFlag", AfterTwo)
        result = call(*words, "--out", tmp_path / "e.npy")
    assert result.exit_code == 75
    seen: list[int] = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, looks: (seen.append(len(looks)), forward(self, looks))[1])
    assert "13 of 21 clips" in encode(tmp_path / "e.npy")
    assert sum(seen) == 12 + 2  # the broken one has nothing to compute, two were tried


def test_other_settings_are_refused_and_overwritten_when_asked(
    tmp_path: Path, encode: Callable[..., str], words: list[object]
) -> None:
    out = tmp_path / "e.npy"
    encode(out)
    before = everything(tmp_path)
    result = call(*words, "--out", out, "--logits")
    assert result.exit_code == 5
    assert "logits: stored False, wanted True" in result.output
    assert everything(tmp_path) == before
    encode(out, "--logits", "--overwrite")
    assert (tmp_path / "e.npy.logits.npy").exists()
    encode(out, "--overwrite")
    assert everything(tmp_path) == before
    out.write_bytes(b"cut")
    assert call(*words, "--out", out).exit_code == 4


@pytest.mark.fault
def test_fault_22_a_clip_that_crashes_decoders_is_reported(
    tmp_path: Path,
    words: list[object],
    make_video: Callable[..., Path],
    at_work: Callable[..., AbstractContextManager[list[int]]],
) -> None:
    """Also where it is among the clips that are tried first, and where videos are cut."""
    folder = tmp_path / "videos"
    slow = make_video(folder / "a.mp4", frames=100, size=(960, 540), gop=100)
    for number in range(3):
        make_video(folder / f"b{number}.mp4", hue=number)
    command = ["encode", folder, *words[2:4], "--workers", 1, "--threads", 1, "--out", tmp_path / "e.npy"]
    with at_work(str(slow), lambda p: p.send_signal(signal.SIGSEGV), 1_000):
        said = good(*command)
    assert "3 clips encoded, 1 failed" in said
    assert [row[:2] for row in failures(tmp_path / "e.npy")] == [["a.mp4", "decoder_crash"]]


def test_refusals(tmp_path: Path, words: list[object], videos: Path) -> None:
    (tmp_path / "mine.npy").write_bytes(b"somebody's")
    (tmp_path / "none").mkdir()
    for source, out, code, told in (
        (videos, "e.txt", 2, "must end in .parquet, .npy, .zarr"),
        (videos, "mine.npy", 2, "not of `uniego encode`"),
        (tmp_path / "none", "e.npy", 1, "no video in"),
        (tmp_path / "nowhere.mp4", "e.npy", 1, "no such video"),
        (videos / "1" / "broken.MKV", "e.npy", 3, "none of the 1 clip could be encoded"),
    ):
        result = call("encode", source, *words[2:], "--out", tmp_path / out)
        assert (result.exit_code, told in result.output) == (code, True), result.output
    assert (tmp_path / "mine.npy").read_bytes() == b"somebody's"
    assert call(*words, "--out", tmp_path / "f.npy", "--every", "0").exit_code == 2
    result = call(*words, "--out", tmp_path / "f.npy", "--min-coverage", "0.99")
    assert result.exit_code == 3
    assert json.loads((tmp_path / "f.npy.json").read_text())["encoded"] == 20
    assert call(*words, "--out", tmp_path / "f.npy", "--min-coverage", "0.99").exit_code == 3
    assert call("encode", videos, "--model", tmp_path, "--out", tmp_path / "g.npy").exit_code == 1


def test_a_device_without_the_memory_gets_smaller_batches(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = uniego.load(model)
    most = 4

    def refuse(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > most:
            raise torch.OutOfMemoryError("out of memory")

    network, looks = _Network(encoder, EncodeOptions()), torch.randn(7, 2, 3, 2, 16, 16)
    whole = network(looks)["tokens"]
    encoder.model.register_forward_pre_hook(refuse)
    assert torch.allclose(network(looks)["tokens"], whole, atol=1e-6)
    assert "1 clip at once" in capsys.readouterr().err
    most = 1
    with pytest.raises(uniego.errors.UniegoError, match="one clip"):
        network(looks)


@pytest.mark.media
def test_segments_of_one_real_video_are_neighbours(media: Path, tmp_path: Path) -> None:
    """Under random weights: what a random network keeps of a video (its colours, where things are) is enough."""
    chosen = [
        "egolike_hands/*.mp4",
        "multiview_caliscope/*/cam_[03].mp4",
        "intel_asl/again.mkv",
        "exo_misc/*juggle.mp4",
    ]
    paths = [path for pattern in chosen for path in sorted(media.glob(pattern))]
    assert len(paths) == 6
    with (tmp_path / "clips.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", "split", "label", "ego_path", "start_s", "end_s"])
        for number, path in enumerate(paths):
            for half, start in enumerate((0.0, 1.0)):
                writer.writerow([f"{number}-{half}", "test", path.stem, path, start, start + 1.0])
    model = tiny_model(tmp_path / "model", size=32)
    out = tmp_path / "e.parquet"
    good("encode", tmp_path / "clips.csv", "--out", out, "--model", model, "--workers", 0)
    rows = pq.read_table(out).to_pylist()
    tokens = torch.nn.functional.normalize(torch.tensor([row["embedding"] for row in rows]), dim=1)
    likeness = (tokens @ tokens.T).fill_diagonal_(-1)
    assert [rows[i]["label"] for i in likeness.argmax(1).tolist()] == [row["label"] for row in rows]


@pytest.mark.media
def test_crops_of_one_real_video_are_neighbours(media: Path, full: bool) -> None:
    """A video and a crop of it, 95 % of its height and width, under the weights that the demo's networks start from.

    These were trained on rendered clips. Among all videos, twenty of which show signers in one room, they find many
    more of the crops than random weights of the same shape do.
    """
    paths = [path for path in sorted(media.rglob("*.m*")) if path.suffix in (".mp4", ".mkv")]
    paths = [path for path in paths if full or path.parent.name in ("egolike_hands", "exo_misc", "4_cam_recording")]
    assert len(paths) == (35 if full else 9)
    looks = [crop for path in paths for crop in crops_of(path)]
    reader = ClipReader(8, 48, "fit", 32, (52, 60), 0.5, 0.45, 0.225, 52, "pyav", 0)
    trained, random = (
        Encoder(TimeSformer(48, 12, 8, width=64, depth=3, heads=4, num_classes=8).eval(), reader, Protocol(1, 3), ())
        for _ in range(2)
    )
    start = Path(uniego.__file__).parent / "demo" / "weights" / "start"
    load_image_weights(trained.model, read_image_weights(start))

    def hits(encoder: Encoder) -> int:
        tokens = torch.nn.functional.normalize(encoder.encode(looks, fps=8), dim=1)
        nearest = (tokens @ tokens.T).fill_diagonal_(-1).argmax(1).tolist()
        return sum(place == number ^ 1 for number, place in enumerate(nearest))

    assert hits(trained) >= (0.8 if full else 0.85) * len(looks)
    assert not full or hits(random) < 0.6 * len(looks)


def crops_of(path: Path) -> list[np.ndarray]:
    """Two squares about the middle of 16 frames of the first two seconds."""
    with open_video(path) as video:
        frames = video.frames(np.linspace(0, min(video.info.frame_count - 1, 2 * video.info.fps), 16).astype(int))
    height, width = frames.shape[1:3]
    crops = []
    for share in (1.0, 0.95):
        side = int(share * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        crops.append(frames[:, top : top + side, left : left + side])
    return crops


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
