"""Training from the clip store: the draws and frames of the videos; whole after kills; refused when another."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import FingerprintMismatch, IntegrityError, MissingInputError
from uniego.pipeline.clips import Clip
from uniego.pipeline.randomness import clip_stream
from uniego.pipeline.rundir import Run
from uniego.pipeline.video import VideoError, open_video
from uniego.stages.batches import SINGLE, ClipFailure, ClipReader, load, training_order
from uniego.stages.clip_source import StoredClipReader, store_root, stored_clips, training_reader
from uniego.stages.prepare_clips import prepare_clips

STORE = ["clips.source=store"]
SHAPES: dict[str, dict[str, Any]] = {
    "short": {"frames": 7, "fps": 30},
    "half": {"frames": 130, "fps": 30, "gop": 50},
    "long": {"frames": 400, "fps": 30, "gop": 250},
    "fast": {"frames": 300, "fps": 60},
    "slow": {"frames": 40, "fps": 10},
    "uneven": {"frames": 60, "times": [40 * n + (15 if n % 3 else 0) for n in range(60)]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Videos of several lengths, rates and containers, whole and in segments; one clip's file is no video."""
    folder = tmp_path_factory.mktemp("data")
    for name, shape in SHAPES.items():
        make_video(folder / f"{name}.mp4", **shape)
    make_video(folder / "headless.mkv", frames=300, fps=30)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    names = [*(f"{name}.mp4" for name in SHAPES), "headless.mkv"]
    rows = [[path, "train", path, "", ""] for path in names]
    rows += [["segment", "train", "long.mp4", "3.1", "12.9"], ["instant", "val", "half.mp4", "1.01", "1.02"]]
    rows += [["broken", "train", "broken.mp4", "", ""], ["test", "test", "half.mp4", "0", "1"]]
    with (folder / "clips.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", "split", "ego_path", "start_s", "end_s", "label"])
        writer.writerows([*row, place % 2] for place, row in enumerate(rows))
    return folder


def new_run(folder: Path, data: Path) -> Path:
    """A run of the tiny preset, with the window of the published recipes."""
    command = ["init", str(folder), "--data", str(data / "clips.csv"), "--preset", "tiny"]
    assert CliRunner().invoke(cli.app, [*command, "--set", "sampling.rate=32"]).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run whose store is made; read only."""
    folder = new_run(tmp_path_factory.mktemp("prepared") / "run", data)
    report = prepare_clips(Run.open(folder))
    assert (report.clips, report.stored, report.failed) == (10, 9, 1)
    return folder


def tree(root: Path) -> dict[str, bytes]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def readable(run: Run) -> list[Clip]:
    return [clip for clip in stored_clips(run) if clip.clip_id != "broken"]


def psnr(one: torch.Tensor, other: torch.Tensor, std: float = 0.225) -> float:
    """Of two network inputs, in levels of 0..255."""
    error = float(((one - other) * std * 255).square().mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("policy", ["fit", "window"])
def test_the_frames_drawn_are_the_same(
    prepared: Path, policy: str, frame_number: Callable[[np.ndarray], int], full: bool
) -> None:
    """Every frame carries its number: read out of the pictures from either source, for every (seed, epoch, clip)."""
    for seed in range(20 if full else 2):
        overrides = [f"sampling.policy={policy}", f"seed={seed}", "student.num_frames=8"]
        videos = training_reader(Run.open(prepared, overrides))
        run = Run.open(prepared, [*overrides, *STORE])
        store = training_reader(run)
        assert type(videos) is ClipReader
        assert type(store) is StoredClipReader
        drawn: set[tuple[int, ...]] = set()
        for clip in readable(run):
            for epoch in range(15 if full else 8):
                position = tuple(clip_stream(seed, epoch, clip.clip_id, "augment").random(2).tolist())
                pictures = [reader.frames(clip, [position])[0] for reader in (videos, store)]
                numbers = [[frame_number(picture) for picture in eight] for eight in pictures]
                assert numbers[0] == numbers[1], (clip.clip_id, seed, epoch)
                assert len(numbers[0]) == 8
                drawn.add(tuple(numbers[0]))
            tests = [reader.frames(clip, [(0.5, 0.5), (0.0, 0.5)]) for reader in (videos, store)]
            numbers = [[frame_number(picture) for look in looks for picture in look] for looks in tests]
            assert numbers[0] == numbers[1]
        assert len(drawn) > 20


def test_crop_and_flip_are_the_same_and_the_pixels_nearly(prepared: Path) -> None:
    """Small videos are not resized: what differs is JPEG's loss alone; another crop or no flip would be below 25 dB."""
    run = Run.open(prepared, STORE)
    videos, store = ClipReader.from_config(run.config), training_reader(run)
    for clip in readable(run):
        for epoch in range(4):
            assert psnr(videos.train(clip, epoch), store.train(clip, epoch)) > 36
        assert psnr(videos.test(clip), store.test(clip, SINGLE)) > 36
        assert torch.equal(store.train(clip, 1), store.train(clip, 1))
    flipped = replace(store, flip=1.0 - store.flip if store.flip != 0.5 else 0.0)
    clip = readable(run)[1]
    others = [psnr(videos.train(clip, epoch), flipped.train(clip, epoch)) for epoch in range(8)]
    assert min(others) < 30


def scenery(path: Path, width: int, height: int) -> Path:
    """A slow pan over smooth shapes, as large as a camera's picture."""
    import av

    y, x = np.mgrid[0:height, 0 : width + 80].astype(np.float32)
    canvas = np.stack([127 + 90 * np.sin(x / a + y / b) for a, b in ((37, 53), (61, 29), (23, 71))], axis=2)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(24):
            view = np.ascontiguousarray(canvas[:, 3 * number : 3 * number + width]).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("size", "least"), [((1280, 720), 34.0), ((720, 1280), 34.0), ((400, 300), 38.0)])
def test_the_bound_of_resizing(tmp_path: Path, size: tuple[int, int], least: float) -> None:
    """A view of 224 pixels out of stored frames of 320 against one out of the video, in dB; see docs/clip-store.md."""
    scenery(tmp_path / "a.mp4", *size)
    (tmp_path / "clips.csv").write_text("clip_id,split,ego_path,label\na,train,a.mp4,0\nb,train,a.mp4,1\n")
    overrides = ["student.image_size=224", "augment.short_side=[256,320]", "evaluate.single_short_side=256"]
    run = Run.open(new_run(tmp_path / "run", tmp_path), [*overrides, *STORE])
    prepare_clips(run)
    videos, store = ClipReader.from_config(run.config), training_reader(run)
    clip = readable(run)[0]
    frames = store.frames(clip, [(0.5, 0.5)])[0]
    assert min(frames.shape[1:3]) == min(320, *size)
    assert max(frames.shape[1:3]) == round(max(size) * min(320, *size) / min(size))
    assert min(psnr(videos.train(clip, epoch), store.train(clip, epoch)) for epoch in range(6)) > least


@pytest.mark.media
def test_the_bound_of_real_videos(media: Path, tmp_path: Path) -> None:
    """Noise that is as fine as a pixel does not survive a resize: 23 dB at 720p; what was small stays above 36 dB."""
    names = {"egolike_hands/03_blocks.mp4": 23.0, "multiview_pose2sim/single/cam01.mp4": 27.0}
    rows = "".join(f"{name},train,{media / name},0,1.5,{place}\n" for place, name in enumerate(names))
    (tmp_path / "clips.csv").write_text("clip_id,split,ego_path,start_s,end_s,label\n" + rows)
    overrides = ["student.image_size=224", "augment.short_side=[256,320]", "evaluate.single_short_side=256"]
    run = Run.open(new_run(tmp_path / "run", tmp_path), [*overrides, *STORE])
    prepare_clips(run)
    videos, store = ClipReader.from_config(run.config), training_reader(run)
    for clip in stored_clips(run):
        assert min(psnr(videos.train(clip, e), store.train(clip, e)) for e in range(4)) > names[clip.clip_id]


def test_fewer_frames_per_second(tmp_path: Path, data: Path, frame_number: Callable[[np.ndarray], int]) -> None:
    """With clips.fps a draw finds the nearest frame kept: half of a kept part away at most."""
    run = Run.open(new_run(tmp_path / "run", data), [*STORE, "clips.fps=7.5"])
    report = prepare_clips(run)
    assert report.stored == 9
    videos, store = ClipReader.from_config(run.config), training_reader(run)
    moved = 0
    for clip in readable(run):
        with open_video(clip.ego_path) as video:
            most = video.info.fps / 7.5 / 2 + 1
        for position in np.random.default_rng(0).random((6, 2)).tolist():
            pairs = zip(*(reader.frames(clip, [tuple(position)])[0] for reader in (videos, store)), strict=True)
            distances = [abs(frame_number(one) - frame_number(other)) for one, other in pairs]
            assert max(distances) <= most
            moved += sum(distances)
    assert moved > 0


def batches(run: Run, workers: int) -> Iterator[Any]:
    clips = run.table().split("train")
    order = training_order(clips, seed=3, epochs=2, global_batch=4, micro_batch=2)
    return load(training_reader(run), clips, order, workers=workers)


def test_workers_change_nothing(prepared: Path) -> None:
    """Neither the batches that training gets, nor (below) the bytes of the store."""
    run = Run.open(prepared, STORE)
    alone, together = list(batches(run, 0)), list(batches(run, 2))
    assert [batch.rows for batch in alone] == [batch.rows for batch in together]
    assert all(torch.equal(a.videos, b.videos) for a, b in zip(alone, together, strict=True))
    assert {failure.clip_id for batch in together for failure in batch.failures} == {"broken"}


def test_a_clip_that_does_not_decode_fails_alike(prepared: Path) -> None:
    run = Run.open(prepared, STORE)
    clip = next(clip for clip in stored_clips(run) if clip.clip_id == "broken")
    told = []
    for reader in (ClipReader.from_config(run.config), training_reader(run)):
        with pytest.raises(VideoError) as error:
            reader.train(clip, 0)
        told.append(ClipFailure(clip.clip_id, error.value.reason, str(error.value)))
    assert told[0] == told[1]


def test_the_test_split_is_not_stored(prepared: Path) -> None:
    assert {clip.split for clip in stored_clips(Run.open(prepared))} == {"train", "val"}


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "uniego", "prepare-clips", "--run", str(folder), *more]


WORKERS = ("--set", "compute.workers=2")


def test_processes_and_a_second_call_change_no_byte(tmp_path: Path, data: Path, prepared: Path) -> None:
    folder = new_run(tmp_path / "run", data)
    done = subprocess.run(command(folder, "--json", *WORKERS), capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (report["clips"], report["stored"], report["failed"]) == (10, 9, 1)
    assert report["failures"][0]["clip_id"] == "broken"
    assert "GB and 0:0" in done.stderr
    expected = tree(store_root(Run.open(prepared)))
    assert tree(store_root(Run.open(folder))) == expected
    assert prepare_clips(Run.open(folder)).written == 0
    assert tree(store_root(Run.open(folder))) == expected


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.mark.fault
def test_killed_at_any_moment(tmp_path: Path, data: Path, prepared: Path, full: bool) -> None:
    """SIGKILL after a random time, again and again, then to the end: the same bytes, and no process is left."""
    draw = random.Random(5)
    folder, kills = new_run(tmp_path / "run", data), 0
    root, expected = store_root(Run.open(folder)), tree(store_root(Run.open(prepared)))
    span = None  # seconds from the first child process to the end, when nobody disturbs it
    for _ in range(26 if full else 4):
        process = subprocess.Popen(command(folder, *WORKERS), stderr=subprocess.DEVNULL, text=True)
        children: dict[int, psutil.Process] = {}
        began, moment = 0.0, None
        while process.poll() is None and (moment is None or time.monotonic() < moment):
            children |= {child.pid: child for child in family(process)}
            if not began and children:  # decoding is about to begin
                began = time.monotonic()
                moment = None if span is None else began + draw.uniform(0.0, span)
            time.sleep(0.02)
        took, kills = time.monotonic() - began, kills + (process.poll() is None)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(list(children.values()), timeout=90)  # one that is just starting looks later
        assert not alive, f"left behind: {alive}"
        if process.returncode == 0:  # the first, or one that was quicker: again from the beginning
            span = took
            assert tree(root) == expected
            shutil.rmtree(root)
    prepare_clips(Run.open(folder))
    assert tree(root) == expected
    assert kills


@pytest.mark.fault
def test_a_stop_signal_saves_and_exits_with_75(tmp_path: Path, data: Path, prepared: Path) -> None:
    folder = new_run(tmp_path / "run", data)
    process = subprocess.Popen(command(folder, *WORKERS), stderr=subprocess.PIPE, text=True)
    ledger = store_root(Run.open(folder)) / "frames" / "ledger" / "local.jsonl"
    while process.poll() is None and not ledger.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert "run the same command again" in told
    assert prepare_clips(Run.open(folder)).written > 0
    assert tree(store_root(Run.open(folder))) == tree(store_root(Run.open(prepared)))


def copied(prepared: Path, data: Path, tmp_path: Path) -> Path:
    """A run of its own, and its own videos."""
    shutil.copytree(data, tmp_path / "data")
    folder = Path(shutil.copytree(prepared, tmp_path / "run"))
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["data"]["table"] = str(tmp_path / "data" / "clips.csv")
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def test_damage_is_refused_and_redone(tmp_path: Path, data: Path, prepared: Path) -> None:
    folder = copied(prepared, data, tmp_path)
    root = store_root(Run.open(folder))
    path = max((root / "frames" / "images").iterdir(), key=lambda path: path.stat().st_size)
    good = path.read_bytes()
    path.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
    run = Run.open(folder, STORE)
    with pytest.raises(IntegrityError, match="prepare-clips --verify"):
        read_everything(run)
    report = prepare_clips(run, verify=True)
    assert len(report.redone) == 1
    assert path.read_bytes() == good
    read_everything(Run.open(folder, STORE))
    path.write_bytes(good[:-1])
    with pytest.raises(MissingInputError, match="prepare-clips"):
        training_reader(Run.open(folder, STORE))
    prepare_clips(run)
    assert path.read_bytes() == good


def read_everything(run: Run) -> None:
    reader = training_reader(run)
    for clip in readable(run):
        reader.frames(clip, [(start, phase) for start in np.linspace(0, 1, 9) for phase in np.linspace(0, 0.999, 40)])


def test_a_replaced_video_is_noticed_and_a_lost_one_not_needed(
    tmp_path: Path, data: Path, prepared: Path, make_video: Callable[..., Path]
) -> None:
    folder = copied(prepared, data, tmp_path)
    (tmp_path / "data" / "short.mp4").unlink()
    read_everything(Run.open(folder, STORE))  # training needs no video
    assert prepare_clips(Run.open(folder)).written == 0
    make_video(tmp_path / "data" / "short.mp4", frames=9, fps=30, hue=1)
    make_video(tmp_path / "data" / "broken.mp4", frames=9, fps=30)
    with pytest.raises(MissingInputError, match=r"2 of 10 clips .*short"):
        training_reader(Run.open(folder, STORE))
    report = prepare_clips(Run.open(folder))
    assert (report.stored, report.failed) == (10, 0)
    read_everything(Run.open(folder, STORE))


def test_other_settings_are_refused(tmp_path: Path, data: Path, prepared: Path) -> None:
    folder = copied(prepared, data, tmp_path)
    for overrides in (["clips.quality=50"], ["clips.fps=5"], ["clips.short_side=400"], ["video.backend=decord"]):
        before = tree(folder / "cache")
        with pytest.raises(FingerprintMismatch):
            prepare_clips(Run.open(folder, overrides))
        with pytest.raises(FingerprintMismatch):
            training_reader(Run.open(folder, [*overrides, *STORE]))
        assert tree(folder / "cache") == before
    shutil.rmtree(store_root(Run.open(folder)))
    with pytest.raises(MissingInputError, match="prepare-clips"):
        training_reader(Run.open(folder, STORE))


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_road_from_a_store(tmp_path: Path, clip_table: Path) -> None:
    """Both trainings from the store; the same weights with other workers; another source is refused, not mixed."""
    folder = tmp_path / "run"
    assert call("init", folder, "--data", clip_table, "--preset", "tiny").exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_dino")}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for stage in ("extract-teachers", "prepare-clips"):
        assert call(stage, "-r", folder).exit_code == 0
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    store = ["--set", STORE[0]]
    told = call("train-proxies", "-r", folder, *store).output
    assert "prepare-clips" not in told
    assert call("distill", "-r", folder, *store).exit_code == 0
    assert call("evaluate", "-r", folder, *store).exit_code == 0
    assert "nothing to do" in call("train-proxies", "-r", folder, *store).output
    refused = call("train-proxies", "-r", folder)
    assert refused.exit_code == 5
    assert "clips" in refused.output
    assert call("train-proxies", "-r", other, *store, "--set", "compute.workers=2").exit_code == 0
    weights = [root / "proxies" / "ego_dino" / "model" / "model.safetensors" for root in (folder, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = call("train-proxies", "-r", other, "--overwrite", "--teacher", "ego_dino")
    assert again.exit_code == 0
    assert "out of a clip store" in again.output
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_a_store_that_is_too_small_is_refused(tmp_path: Path, data: Path) -> None:
    folder = new_run(tmp_path / "run", data)
    result = call("config", "show", "-r", folder, "--set", STORE[0], "--set", "clips.short_side=8")
    assert result.exit_code == 2
    assert "clips.short_side" in result.output


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_each_gives_what_frames_gives(data: Path, backend: str) -> None:
    with open_video(data / "long.mp4", backend) as video:
        wanted = np.array([3, 4, 90, 251, 252, 399])
        pictures: dict[int, np.ndarray] = {}
        video.each(wanted, lambda place, picture: pictures.update({place: picture.copy()}))
        assert np.array_equal(np.stack([pictures[place] for place in range(len(wanted))]), video.frames(wanted))
