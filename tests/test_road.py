"""The main job, end to end: from a table of paired clips to a trained student, on real video files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uniego
import zarr
from safetensors.torch import load_file
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore
from uniego.pipeline.rundir import Run
from uniego.stages.export import outputs_name
from uniego.stages.status import status

STAGES = ("extract-teachers", "train-proxies", "distill", "evaluate")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.output)


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


def results(run: Path) -> dict[str, str]:
    """Hashes of what a run makes; logs with times in them left aside."""
    return {name: value for name, value in tree(run).items() if not name.endswith(("metrics.jsonl", ".lock", "lock"))}


def two_teachers(folder: Path, table: Path, **settings: object) -> Path:
    """A run with a skeleton teacher and a frame teacher only."""
    good("init", folder, "--data", table, "--preset", "tiny")
    config = (folder / "run.yaml").read_text(encoding="utf-8")
    import yaml

    raw = yaml.safe_load(config)
    raw["teachers"] = {key: raw["teachers"][key] for key in ("exo_skl", "ego_dino")}
    for dotted, value in settings.items():
        section, field = dotted.split("__")
        raw[section][field] = value
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run of all nine teachers, finished. Read only."""
    run = tmp_path_factory.mktemp("road") / "run"
    good("init", run, "--data", clip_table, "--preset", "tiny")
    for stage in STAGES:
        good(stage, "--run", run)
    return run


def test_every_stage_is_done(finished: Path) -> None:
    report = json.loads(good("status", "--run", finished, "--json"))
    stages = report["stages"]
    assert len(stages["extract-teachers"]) == 9
    assert all(entry["state"] == "done" and entry["random"] for entry in stages["extract-teachers"].values())
    assert all(entry["state"] == "done" for entry in stages["train-proxies"].values())
    assert {entry["state"] for entry in stages["distill"].values()} == {"done"}
    assert stages["evaluate"]["student"]["clips"] == 4


def test_fault_19_missing_inputs_are_absent_and_not_failed(finished: Path) -> None:
    entries = status(Run.open(finished))["stages"]["extract-teachers"]
    assert (entries["ego_dino"]["done"], entries["ego_dino"]["absent"]) == (12, 0)
    assert (entries["exo_rgb"]["done"], entries["exo_rgb"]["absent"]) == (11, 1)
    assert (entries["exo_skl"]["done"], entries["exo_skl"]["absent"]) == (9, 3)
    assert all(entry["failed"] == 0 for entry in entries.values())


def test_plain_zarr_explains_the_cache(finished: Path) -> None:
    group = zarr.open_group(str(finished / "cache" / "ego_dino" / "features.zarr"), mode="r")
    features = group["features"]
    assert isinstance(features, zarr.Array)
    assert features.shape[0] == 12
    assert features.dtype == np.float16
    assert features.metadata.dimension_names[1:] == ("time", "feature")  # type: ignore[union-attr]
    assert group.attrs["teacher"] == "ego_dino"


def test_a_finished_stage_changes_no_byte_and_says_so(finished: Path) -> None:
    before = tree(finished)
    for stage in STAGES:
        assert "nothing to do" in good(stage, "--run", finished)
    assert tree(finished) == before


def test_the_merge_is_a_convex_combination(finished: Path) -> None:
    record = json.loads((finished / "distill" / "merge" / "record.json").read_text())
    (alpha,) = record["results"]["alpha"].values()
    assert len(alpha) == 9
    assert sum(alpha) == pytest.approx(1.0)
    merged = load_file(finished / "distill" / "merge" / "merged.safetensors")
    heads = [load_file(p / "model" / "model.safetensors")["head.weight"] for p in _proxies(finished, record)]
    wanted = sum(a * head for a, head in zip(alpha, heads, strict=True))
    torch.testing.assert_close(merged["head.weight"], wanted)


def _proxies(run: Path, record: dict[str, Any]) -> list[Path]:
    return [run / "proxies" / key for key in record["results"]["proxies"]]


def test_exported_outputs_are_the_proxys_own(finished: Path) -> None:
    run = Run.open(finished)
    folder = finished / "proxies" / "ego_dino" / "model"
    name = run.proxy_folder("ego_dino").results["outputs"]
    assert name == outputs_name(run, "ego_dino", run.proxy_folder("ego_dino").results["weights"])
    store = FeatureStore.open(run.cache_root / name, ClipIndex.open(run.cache_root))
    assert store.coverage()["done"] == 8  # the train split only
    encoder = uniego.load(folder)
    clip = run.table().split("train")[0]
    with torch.inference_mode():
        out = encoder.model(encoder.reader.test(clip))
    from uniego.stages.targets import row_keys

    tokens, present = store.read(store.index.rows(row_keys(run, [clip])), "tokens")
    assert present.all()
    torch.testing.assert_close(torch.from_numpy(tokens), out.token, rtol=1e-4, atol=1e-5)


def test_the_encoder_needs_the_ego_video_alone(finished: Path, clip_table: Path, tmp_path: Path) -> None:
    video = tmp_path / "alone.mp4"
    shutil.copy(clip_table.parent / "ego" / "00.mp4", video)
    encoder = uniego.load(finished)
    embedding = encoder.encode(video)
    assert embedding.shape == (48,)
    assert embedding.dtype == torch.float32
    moved = tmp_path / "moved"
    shutil.copytree(finished / "distill" / "student" / "model", moved)
    assert torch.equal(uniego.load(moved).encode(str(video)), embedding)
    assert not torch.equal(encoder.encode(video, start_s=0.0, end_s=0.5), embedding)
    assert sum(encoder.classify(video).values()) == pytest.approx(1.0)


def test_predictions_are_written_per_clip(finished: Path) -> None:
    with (finished / "evaluate" / "student" / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["clip_id"] for row in rows] == ["clip02", "clip05", "clip08", "clip11"]
    assert {row["predicted"] for row in rows} <= {"lift", "turn"}
    printed = good("evaluate", "--run", finished, "--model", "proxy:exo_rgb")
    result = Run.open(finished).evaluation_folder("proxy:exo_rgb").results
    (row,) = (line for line in printed.splitlines() if "1 x 3" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["4", "1 x 3", *(f"{result[k]:.1f}" for k in ("top1", "top5", "mean_class_accuracy"))]
    assert "unknown model" in call("evaluate", "--run", finished, "--model", "proxy:none").output


def test_two_runs_share_a_cache_and_one_seed_gives_the_same_bytes(tmp_path: Path, clip_table: Path) -> None:
    first = two_teachers(tmp_path / "first", clip_table, cache__root="../shared-cache")
    second = two_teachers(tmp_path / "second", clip_table, cache__root="../shared-cache")
    for stage in STAGES:
        good(stage, "--run", first)
    cache = tree(tmp_path / "shared-cache")
    assert "nothing to do" in good("extract-teachers", "--run", second)
    for stage in STAGES[1:]:
        good(stage, "--run", second)
    assert tree(tmp_path / "shared-cache") == cache
    assert results(first) == results(second)
    third = two_teachers(tmp_path / "third", clip_table, cache__root="../shared-cache")
    for stage in STAGES:
        good(stage, "--run", third, "--set", "seed=1")
    assert set(cache.items()) <= set(tree(tmp_path / "shared-cache").items())  # its outputs lie beside the others'
    assert results(third) != results(first)


def test_a_stage_without_its_input_names_the_command(tmp_path: Path, clip_table: Path) -> None:
    run = two_teachers(tmp_path / "run", clip_table)
    for stage, command in (
        ("train-proxies", "uniego extract-teachers"),
        ("distill", "uniego extract-teachers"),
        ("evaluate", "uniego distill"),
    ):
        result = call(stage, "--run", run)
        assert result.exit_code == 1
        assert command in result.output
    good("extract-teachers", "--run", run)
    result = call("distill", "--run", run)
    assert (result.exit_code, "uniego train-proxies" in result.output) == (1, True)
    result = call("status", "--run", tmp_path)
    assert "uniego init" in result.output


def test_other_settings_are_refused_with_the_fields(tmp_path: Path, clip_table: Path) -> None:
    run = two_teachers(tmp_path / "run", clip_table)
    for stage in STAGES:
        good(stage, "--run", run)
    before = tree(run)
    result = call("extract-teachers", "--run", run, "--set", "teachers.ego_dino.weights=random:7")
    assert result.exit_code == 5
    assert "weights" in result.output
    result = call("train-proxies", "--run", run, "--set", "proxies.train.optimizer.lr=0.01")
    assert result.exit_code == 5
    assert "settings.train.optimizer.lr: stored 0.005, wanted 0.01" in result.output
    assert call("distill", "--run", run, "--set", "distill.top_k=2").exit_code == 5
    assert tree(run) == before
    report = status(Run.open(run, ["distill.top_k=2", "proxies.feature_weight=2"]))["stages"]
    assert report["train-proxies"]["exo_skl"]["state"] == "stale"
    assert report["distill"]["student"]["state"] == "stale"
    good("train-proxies", "--run", run, "--teacher", "exo_skl", "--overwrite")
    assert status(Run.open(run))["stages"]["distill"]["student"]["state"] == "done"  # the same bytes came out again


def test_random_features_need_permission(tmp_path: Path, clip_table: Path) -> None:
    run = two_teachers(tmp_path / "run", clip_table)
    good("extract-teachers", "--run", run)
    real = ["--set", "teachers.ego_dino.weights=dir:/weights", "--set", "teachers.ego_dino.architecture={}"]
    result = call("train-proxies", "--run", run, *real, "--set", "teachers.ego_dino.allow_random=false")
    assert result.exit_code == 5  # features of other weights than the configuration now names
    record = json.loads((run / "extract" / "ego_dino.json").read_text())
    assert record["fingerprint"]["teacher"]["random"] is True
    store = zarr.open_group(str(run / "cache" / "ego_dino" / "features.zarr"), mode="r")
    assert store.attrs["random"] is True


def test_a_teacher_without_features_is_left_out_or_refused(tmp_path: Path, clip_table: Path) -> None:
    rows = list(csv.DictReader(clip_table.open(newline="")))
    table = clip_table.with_name("no_poses.csv")
    with table.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "pose_path": ""} for row in rows)
    run = two_teachers(tmp_path / "run", table)
    good("extract-teachers", "--run", run)
    result = call("train-proxies", "--run", run, "--strict")
    assert result.exit_code == 1
    assert "exo_skl" in result.output
    assert "left out of the pool" in good("train-proxies", "--run", run)
    good("distill", "--run", run)
    assert status(Run.open(run))["stages"]["distill"]["student"]["state"] == "done"


def test_bad_files_are_recorded_and_left_out(tmp_path: Path, clip_table: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clip_table.parent, data)
    (data / "ego" / "00.mp4").write_bytes(b"")
    (data / "ego" / "01.mp4").write_text("not a video")
    (data / "ego" / "02.mp4").unlink()
    run = two_teachers(tmp_path / "run", data / "clips.csv")
    result = call("extract-teachers", "--run", run)
    assert result.exit_code == 3  # 9 of 12 is below the default minimum
    assert "coverage" in result.output
    assert call("extract-teachers", "--run", run, "--strict").exit_code == 1
    good("extract-teachers", "--run", run, "--set", "extract.min_coverage=0.5")
    entry = status(Run.open(run))["stages"]["extract-teachers"]["ego_dino"]
    assert (entry["done"], entry["failed"]) == (9, 3)
    index = ClipIndex.open(run / "cache")
    failures = {f.clip_id: f.reason for f in FeatureStore.open(run / "cache" / "ego_dino", index).failures()}
    assert failures["clip02"] == "missing"
    assert set(failures) == {"clip00", "clip01", "clip02"}
    settings = ["--set", "extract.min_coverage=0.5", "--set", "proxies.train.global_batch=4"]
    good("train-proxies", "--run", run, *settings)
    reported = (run / "proxies" / "ego_dino" / "failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["clip_id"] for line in reported} == {"clip00", "clip01"}
    good("distill", "--run", run, *settings, "--set", "distill.train.global_batch=4")
    output = good("evaluate", "--run", run)
    assert "1 clips could not be decoded" in output
    assert "trained under other settings" in output  # run.yaml still says 8
    shutil.copy(data / "ego" / "03.mp4", data / "ego" / "02.mp4")  # mended: tried again, others not
    good("extract-teachers", "--run", run, "--set", "extract.min_coverage=0.5")
    entry = status(Run.open(run))["stages"]["extract-teachers"]["ego_dino"]
    assert (entry["done"], entry["failed"]) == (10, 2)
    listed = list(csv.DictReader((run / "extract" / "failures.csv").open(newline="")))
    assert {row["clip_id"] for row in listed if row["teacher"] == "ego_dino"} == {"clip00", "clip01"}


def test_val_keeps_a_best_beside_the_last(tmp_path: Path, clip_table: Path) -> None:
    run = two_teachers(tmp_path / "run", clip_table, data__holdout=0.25)
    small = ["--set", "proxies.train.global_batch=4", "--set", "distill.train.global_batch=4"]
    good("extract-teachers", "--run", run)
    for stage in ("train-proxies", "distill"):
        good(stage, "--run", run, *small)
    assert (run / "distill" / "student" / "best" / "model.safetensors").exists()
    metrics = (run / "distill" / "student" / "metrics.jsonl").read_text().splitlines()
    assert sum("validation" in line for line in metrics) == 3


def test_new_clips_are_added_without_touching_the_old(tmp_path: Path, clip_table: Path) -> None:
    lines = clip_table.read_text().splitlines()
    table = clip_table.with_name("growing.csv")
    table.write_text("\n".join(lines[:9]) + "\n")
    run = two_teachers(tmp_path / "run", table)
    good("extract-teachers", "--run", run)
    before = {k: v for k, v in tree(run / "cache").items() if "/c/" in k}
    table.write_text("\n".join(lines) + "\n")
    good("extract-teachers", "--run", run)
    after = tree(run / "cache")
    assert set(before.items()) <= set(after.items())
    assert status(Run.open(run))["stages"]["extract-teachers"]["ego_dino"]["done"] == 12


def test_lost_outputs_are_made_again_from_the_trained_proxy(tmp_path: Path, clip_table: Path) -> None:
    run = two_teachers(tmp_path / "run", clip_table)
    for stage in STAGES[:2]:
        good(stage, "--run", run)
    before = results(run)
    for store in (run / "cache").glob("proxy-exo_skl-*"):
        shutil.rmtree(store)
    assert status(Run.open(run))["stages"]["train-proxies"]["exo_skl"]["state"] == "partial"
    good("train-proxies", "--run", run)
    assert results(run) == before


# ---------------------------------------------------------------- kills


def start(stage: str, run: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "uniego",
        stage,
        "--run",
        str(run),
        "--set",
        "proxies.train.checkpoint.every_steps=1",
    ]
    command += ["--set", "distill.train.checkpoint.every_steps=1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def run_until_done(stage: str, run: Path, delays: Sequence[float], number: int) -> list[int]:
    """Start the stage, send the signal after each delay; then once undisturbed. Returns the exit codes."""
    codes = []
    for delay in delays:
        process = start(stage, run)
        time.sleep(delay)
        process.send_signal(number)
        codes.append(process.wait(timeout=60))
    codes.append(start(stage, run).wait(timeout=120))
    return codes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    run = two_teachers(tmp_path_factory.mktemp("undisturbed") / "run", clip_table)
    for stage in STAGES[:3]:
        assert start(stage, run).wait(timeout=120) == 0
    return run


@pytest.mark.fault
@pytest.mark.parametrize("stage", STAGES[:3])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    stage: str, tmp_path: Path, undisturbed: Path, full: bool
) -> None:
    """Fault 1 and 28: SIGKILL, then the same command again."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    made = ["extract", "cache", "proxies", "distill"] if stage == "extract-teachers" else ["proxies", "distill"]
    for name in made if stage != "distill" else ["distill"]:
        shutil.rmtree(run / name)
    for store in (run / "cache").glob("proxy-*") if stage == "train-proxies" else ():
        shutil.rmtree(store)
    rng = random.Random(stage)
    kills = 12 if full else 2
    codes = run_until_done(stage, run, [rng.uniform(2.0, 9.0) for _ in range(kills)], signal.SIGKILL)
    assert codes[-1] == 0
    for later in STAGES[STAGES.index(stage) + 1 : 3]:
        assert start(later, run).wait(timeout=120) == 0
    assert _comparable(run) == _comparable(undisturbed)


def _comparable(run: Path) -> dict[str, str]:
    """Everything that a stage makes. Outputs of proxies are named by content, so names are compared too."""
    return {name: value for name, value in results(run).items() if not name.endswith("failures.jsonl")}


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_fault_02_a_stop_signal_saves_and_exits_75(number: int, tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "distill")
    slow = ["--set", "merge.epochs=500"]
    command = [sys.executable, "-m", "uniego", "distill", "--run", str(run), *slow]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (run / "distill" / "merge" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status(Run.open(run, ["merge.epochs=500"]))["stages"]["distill"]["merge"]["state"] == "running"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "run the same command again" in err
    assert list((run / "distill" / "merge" / "checkpoints").glob("step-*"))
    assert status(Run.open(run, ["merge.epochs=500"]))["stages"]["distill"]["merge"]["state"] == "partial"


def test_two_processes_do_not_train_the_same_proxy(tmp_path: Path, clip_table: Path) -> None:
    run = Run.open(two_teachers(tmp_path / "run", clip_table))
    good("extract-teachers", "--run", run.root)
    folder = run.proxy_folder("exo_skl")
    with folder.work({"any": "thing"}):
        result = call("train-proxies", "--run", run.root, "--teacher", "exo_skl")
    assert result.exit_code == 1
    assert "another process" in result.output


# ---------------------------------------------------------------- real media


def media_table(media: Path, path: Path, words: Sequence[str]) -> Path:
    """Sign-language clips (one view), and the close-up/far pair of four synchronised cameras cut into segments."""
    rows = []
    for i, word in enumerate(words):
        video = media / "intel_asl" / f"{word}.mkv"
        rows.append([f"asl/{word}", "test" if i % 4 == 3 else "train", "sign", video, video, "", ""])
    pair = [media / "multiview_caliscope" / "4_cam_recording" / f"cam_{i}.mp4" for i in (0, 3)]
    rows += [[f"board/{i}", "test" if i == 3 else "train", "board", *pair, 2 * i, 2 * i + 2] for i in range(4)]
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["clip_id", "split", "label", "ego_path", "exo_path", "start_s", "end_s"])
        writer.writerows(rows)
    return path


@pytest.mark.media
def test_the_main_job_on_real_files(media: Path, tmp_path: Path, full: bool) -> None:
    every = sorted(p.stem for p in (media / "intel_asl").glob("*.mkv"))
    words = every if full else every[:7]
    table = media_table(media, tmp_path / "clips.csv", words)
    run = tmp_path / "run"
    good("data", "check", table)
    good("init", run, "--data", table, "--preset", "tiny")
    for stage in STAGES:
        good(stage, "--run", run)
    report = status(Run.open(run))["stages"]
    assert report["extract-teachers"]["exo_dino"]["done"] == len(words) + 4
    assert report["extract-teachers"]["exo_skl"]["absent"] == len(words) + 4
    assert report["distill"]["student"]["state"] == "done"
    encoder = uniego.load(run)
    coffee = encoder.encode(media / "egolike_hands" / "04_coffee.mp4")
    assert coffee.isfinite().all()
