"""Released features into a run: what is taken, what is refused or told, and what leaves again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli

NAMES = [f"{number:02d}" for number in range(6)]


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, " ".join(str(result.output).split())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Six clips of two classes; their videos are stand-ins that nobody decodes."""
    folder = tmp_path_factory.mktemp("features")
    video = make_video(folder / "one.mp4").read_bytes()
    path = folder / "clips.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["clip_id", "split", "label", "ego_path"])
        for name in NAMES:
            (folder / f"{name}.mp4").write_bytes(video)
            split = "test" if int(name) > 3 else "train"
            writer.writerow([f"clip{name}", split, ["lift", "turn"][int(name) % 2], f"{name}.mp4"])
    return path


@pytest.fixture
def run(tmp_path: Path, table: Path) -> Path:
    folder = tmp_path / "run"
    assert call("init", folder, "--data", table, "--preset", "tiny")[0] == 0
    path = folder / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["teachers"] = {"ego_dino": raw["teachers"]["ego_dino"]}
    raw["cache"]["dtype"] = "float32"
    raw["compute"]["workers"] = 0
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def write(folder: Path, values: dict[str, np.ndarray]) -> Path:
    (folder / "ego_dino").mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        np.save(folder / "ego_dino" / f"{name}.npy", value)
    return folder


def features(*shape: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name in NAMES}


@pytest.mark.parametrize(("dtype", "cache"), [("float32", "float32"), ("float16", "float16"), ("float64", "float32")])
def test_bytes_that_come_back(run: Path, tmp_path: Path, dtype: str, cache: str) -> None:
    values = features(3, 16, dtype=dtype)
    folder = write(tmp_path / "in", values)
    set_dtype = ["--run", run, "--set", f"cache.dtype={cache}"]
    code, told = call("release", "import", "features", folder, *set_dtype)
    assert (code, "6 of 6 clips imported" in told) == (0, True), told
    assert ("are rounded to" in told) == (dtype == "float64"), told
    assert call("release", "export", "features", tmp_path / "out", *set_dtype)[0] == 0
    for name, value in values.items():
        back = np.load(tmp_path / "out/ego_dino" / f"{name}.npy")
        assert back.dtype == np.float32
        assert np.array_equal(back, value.astype(np.float32))  # float16 within float32, bit for bit


def test_float16_caches_round_and_say_so(run: Path, tmp_path: Path) -> None:
    values = features(16)
    values["05"][3] = 1e5  # more than float16 holds
    words = ["release", "import", "features", write(tmp_path / "in", values), "--run", run]
    code, told = call(*words, "--set", "cache.dtype=float16")
    assert (code, "float32 files are rounded to float16" in told) == (3, True), told
    assert "5 of 6 clips imported (1 failed" in told
    assert "clip05" in told


def test_files_that_are_not_right_fail_their_clips(run: Path, tmp_path: Path) -> None:
    values = features(3, 16)
    values["01"] = np.ones((3, 15), np.float32)
    values["02"] = np.ones((4, 16), np.float32)
    values["03"] = np.zeros((3, 16), np.float32)
    values["stranger"] = values["00"]
    folder = write(tmp_path / "in", values)
    cut = folder / "ego_dino/04.npy"
    cut.write_bytes(cut.read_bytes()[:-8])
    (folder / "ego_dino/05.npy").unlink()
    code, told = call("release", "import", "features", folder, "--run", run)
    assert code == 3
    assert "ego_dino: 1 of 6 clips imported (5 failed, 0 without its input); 1 files are no clip's" in told
    for name, what in (
        ("01", "[3, 15]"),
        ("02", "[4, 16]"),
        ("03", "all zeros"),
        ("04", "04"),
        ("05", "nothing called"),
    ):
        assert f"clip{name}: " in told
        assert what in told.partition(f"clip{name}: ")[2], told
    words = ["release", "import", "features", folder, "--run", run]
    assert call(*words, "--rows", 2)[0] == 5  # kept under other settings
    code, told = call(*words, "--rows", 2, "--zeros", "values", "--overwrite")
    assert "ego_dino: 3 of 6 clips imported" in told, told


def test_what_cannot_be_meant_is_refused(run: Path, tmp_path: Path, table: Path) -> None:
    words = ["release", "import", "features"]
    assert "no such folder" in call(*words, tmp_path / "none", "--run", run)[1]
    (tmp_path / "in/exo_rgb").mkdir(parents=True)
    code, told = call(*words, tmp_path / "in", "--run", run)
    assert (code, "no folder of ego_dino; it has exo_rgb" in told) == (2, True), told
    write(tmp_path / "in", {"other": np.ones(16, np.float32)})
    code, told = call(*words, tmp_path / "in", "--run", run)
    assert (code, "none of 1 files is called like a clip of the table" in told) == (2, True), told
    assert call(*words, tmp_path / "in", "--run", run, "--heads", 4)[0] == 2
    assert call("release", "import", "proxies", tmp_path / "in", "--run", run, "--rows", 4)[0] == 2
    assert not (run / "cache").exists()

    assert call(*words, write(tmp_path / "before", features(16)), "--run", run)[0] == 0
    write(tmp_path / "in", {name: -value for name, value in features(16).items()})
    code, told = call(*words, tmp_path / "in", "--run", run)
    assert (code, "--overwrite" in told) == (5, True), told
    assert call(*words, tmp_path / "in", "--run", run, "--overwrite")[0] == 0
