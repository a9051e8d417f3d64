"""`uniego cache` on a real run: what it tells, what it exports, and that an import behaves as an extraction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore, RowStatus
from uniego.pipeline.rundir import Run
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.shard_work import ShardWork
from uniego.stages.targets import row_keys

POOL = ("ego_dino", "exo_dino", "exo_skl")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def make_run(folder: Path, table: Path) -> Path:
    good("init", folder, "--data", table, "--preset", "tiny")
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in POOL}
    raw["cache"]["rows_per_shard"] = 4
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """The shared clips; the exo video of clip 5 is no video, and that of clip 0 is called ego_ego.mp4."""
    folder = Path(shutil.copytree(clip_table.parent, tmp_path_factory.mktemp("cache") / "data"))
    (folder / "exo" / "05.mp4").write_text("no video")
    (folder / "exo" / "00.mp4").rename(folder / "exo" / "ego_ego.mp4")
    table = folder / "clips.csv"
    table.write_text(table.read_text().replace("exo/00.mp4", "exo/ego_ego.mp4"))
    return folder


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of three teachers, extracted in shards of four. Read only."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", data / "clips.csv")
    extract_teachers(Run.open(folder, ["extract.min_coverage=0.5"]))
    return folder


def store_of(run: Run, key: str) -> FeatureStore:
    return FeatureStore.open(run.cache_root / key, ClipIndex.open(run.cache_root))


def content(run: Run, key: str) -> tuple[Any, Any, Any, Any, Any]:
    """All that can be asked of a teacher's features of the run's clips."""
    store = store_of(run, key)
    rows = store.index.rows(row_keys(run, run.table().clips))
    values = store.read(rows, "features")[0].view(np.uint16).tolist()
    return values, store.status(rows).tolist(), store.failures(), store.fingerprint, store.arrays


def test_info(extracted: Path) -> None:
    text = good("cache", "info", "-r", extracted)
    assert "ego_dino: features 8 time x" in text
    assert "[RANDOM]" in text
    report = json.loads(good("cache", "info", "-r", extracted, "--json"))
    assert list(report["stores"]) == sorted(POOL)
    assert report["stores"]["exo_dino"]["failed"] == 1
    assert report["stores"]["exo_skl"]["missing"] == 3


def test_coverage(extracted: Path) -> None:
    report = json.loads(good("cache", "coverage", "-r", extracted, "--json", "--failed"))
    cells = {(cell["split"], cell["teacher"]): cell for cell in report["coverage"]}
    assert set(cells) == {(split, key) for split in ("train", "test") for key in POOL}
    wanted = {"split": "train", "teacher": "exo_dino", "clips": 8, "done": 7, "failed": 0, "missing": 1, "pending": 0}
    assert cells["train", "exo_dino"] == {**wanted, "share": 0.875}
    failed, skeleton = report["failed"]  # its frames are counted in the exo video
    assert (skeleton["clip_id"], skeleton["teacher"]) == ("clip05", "exo_skl")
    assert (failed["clip_id"], failed["teacher"], failed["split"]) == ("clip05", "exo_dino", "test")
    assert failed["reason"] in {"unreadable", "no_video"}
    text = good("cache", "coverage", "-r", extracted, "--failed")
    assert f"test clip05 exo_dino {failed['reason']}: {failed['message']}" in text
    assert good("cache", "coverage", "-r", extracted, "--teacher", "ego_dino", "--min-coverage", "1")


def test_coverage_below_the_minimum_exits_3(extracted: Path) -> None:
    result = call("cache", "coverage", "-r", extracted, "--min-coverage", "0.8")
    assert result.exit_code == 3
    assert "exo_dino: 75.0 % of test, below 80 %" in result.stderr
    assert "exo_dino: 87.5 %" not in result.stderr
    result = call("cache", "coverage", "-r", extracted, "--min-coverage", "0.8", "--split", "train", "--json")
    assert (result.exit_code, json.loads(result.stdout)["below"]) == (3, [["train", "exo_skl"]])
    assert call("cache", "coverage", "-r", extracted, "--split", "trian").exit_code == 2


def test_coverage_before_anything_was_extracted(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", data / "clips.csv")
    report = json.loads(good("cache", "coverage", "-r", run, "--json"))
    assert {cell["pending"] for cell in report["coverage"]} == {8, 4}
    assert call("cache", "coverage", "-r", run, "--min-coverage", "0.1").exit_code == 3
    for command in (["info"], ["stats"], ["export", tmp_path / "out", "--to", "npy"]):
        result = call("cache", *command, "-r", run)
        assert result.exit_code == 1, command
        assert f"run `uniego extract-teachers --run {run}` first" in " ".join(result.stderr.split())


def test_reports_touch_no_source_and_change_nothing(tmp_path: Path, extracted: Path, data: Path) -> None:
    run = Path(shutil.copytree(extracted, tmp_path / "run"))
    videos = data / "ego"
    videos.rename(data / "gone")
    try:
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for command in (["info"], ["coverage", "--failed"], ["stats"]):
            good("cache", *command, "-r", run)
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    finally:
        (data / "gone").rename(videos)


def test_stats(extracted: Path) -> None:
    run = Run.open(extracted)
    values, status, *_ = content(run, "exo_dino")
    done = np.array(values, np.uint16).view(np.float16)[np.array(status) == RowStatus.DONE].astype(float)
    found = json.loads(good("cache", "stats", "-r", extracted, "--json"))["exo_dino"]["features"]
    assert found["clips"] == len(done)
    np.testing.assert_allclose([found["mean"], found["variance"]], [done.mean(), done.var()], rtol=1e-9)
    assert "dimensions dead" in good("cache", "stats", "-r", extracted, "--teacher", "exo_dino")


@pytest.mark.parametrize("form", ["hdf5", "safetensors"])
def test_a_round_trip_loses_nothing(
    tmp_path: Path, extracted: Path, data: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exported = json.loads(good("cache", "export", out, "--to", form, "-r", extracted, "--json"))
    assert [entry["done"] for entry in exported] == [12, 10, 8]
    again = make_run(tmp_path / "again", data / "clips.csv")
    assert json.loads(good("cache", "import", out, "-r", again, "--json")) == exported
    first, second = Run.open(extracted), Run.open(again)
    for key in POOL:
        assert content(first, key) == content(second, key)
        attributes = store_of(second, key).attributes
        assert attributes.pop("imported")["source"] == "out"
        assert attributes == store_of(first, key).attributes
    chunks = [sorted(p.relative_to(r.cache_root) for p in r.cache_root.rglob("c.*")) for r in (first, second)]
    assert chunks[0] == chunks[1]
    assert all((first.cache_root / p).read_bytes() == (second.cache_root / p).read_bytes() for p in chunks[0])
    computed: list[Any] = []
    monkeypatch.setattr(ShardWork, "run", lambda *arguments: computed.append(arguments))
    extract_teachers(Run.open(again, ["extract.min_coverage=0.5"]))
    assert not computed
    good("train-proxies", "-r", again, "--teacher", "ego_dino")
    assert good("verify", "-r", again, "--full")


def test_an_import_overwrites_nothing_and_goes_on_after_a_kill(tmp_path: Path, extracted: Path, data: Path) -> None:
    good("cache", "export", tmp_path / "out.h5", "--to", "hdf5", "-r", extracted)
    result = call("cache", "import", tmp_path / "out.h5", "-r", extracted)
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.stderr
    again = make_run(tmp_path / "again", data / "clips.csv")
    good("cache", "import", tmp_path / "out.h5", "-r", again)
    run = Run.open(again)
    before = {p: p.read_bytes() for p in run.cache_root.rglob("*") if p.is_file()}
    ledger = run.cache_root / "exo_dino" / "ledger" / "local.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:1]))
    (run.cache_root / "exo_dino/features.zarr/features/c.2.0.0").unlink()
    good("cache", "import", tmp_path / "out.h5", "-r", again)
    assert before == {p: p.read_bytes() for p in run.cache_root.rglob("*") if p.is_file()}


def test_an_import_continues_as_an_extraction(tmp_path: Path, extracted: Path, data: Path) -> None:
    """A colleague's run had fewer clips: the others are extracted here, with the same teachers."""
    few = tmp_path / "few.csv"
    few.write_text("\n".join((data / "clips.csv").read_text().splitlines()[:8]) + "\n")
    small = make_run(tmp_path / "small", few)
    (small / "run.yaml").write_text((small / "run.yaml").read_text().replace("root: null", f"root: {data}"))
    extract_teachers(Run.open(small, ["extract.min_coverage=0.5"]), ["exo_dino"])
    good("cache", "export", tmp_path / "out", "--to", "safetensors", "-r", small, "--teacher", "exo_dino")
    again = make_run(tmp_path / "again", data / "clips.csv")
    good("cache", "import", tmp_path / "out", "-r", again)
    run = Run.open(again, ["extract.min_coverage=0.5"])
    assert content(run, "exo_dino")[1].count(RowStatus.PENDING) == 5
    extract_teachers(run, ["exo_dino"])
    assert content(run, "exo_dino") == content(Run.open(extracted), "exo_dino")


def test_an_import_refuses_what_does_not_fit(tmp_path: Path, extracted: Path, data: Path) -> None:
    out = tmp_path / "out"
    good("cache", "export", out, "--to", "safetensors", "-r", extracted, "--teacher", "exo_dino")
    other = Path(shutil.copytree(data, tmp_path / "other"))
    (other / "exo" / "01.mp4").write_bytes((other / "exo" / "04.mp4").read_bytes() + b"x")
    run = make_run(tmp_path / "run", other / "clips.csv")
    for options, words in (
        (["--set", "cache.dtype=float32"], "set cache.dtype: float16"),
        (["--teacher", "ego_dino"], "has no features of ego_dino"),
        ([], "1 of 12 clips here have other files"),
    ):
        result = call("cache", "import", out, "-r", run, *options)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert not (run / "cache" / "exo_dino").exists()
    assert "1 of 12 clips" in call("cache", "import", out, "-r", run, "--any-source").stderr
    assert content(Run.open(run), "exo_dino")[0] == content(Run.open(extracted), "exo_dino")[0]


@pytest.mark.fault
def test_damaged_exports_are_refused(tmp_path: Path, extracted: Path, data: Path) -> None:
    good("cache", "export", tmp_path / "out", "--to", "safetensors", "-r", extracted, "--teacher", "exo_dino")
    good("cache", "export", tmp_path / "out.h5", "--to", "hdf5", "-r", extracted, "--teacher", "exo_dino")
    block = tmp_path / "out" / "exo_dino" / "000001.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"\xff")
    with h5py.File(tmp_path / "out.h5") as file:
        features = file["exo_dino/features"]
        assert features.fletcher32
        at = features.id.get_chunk_info(0).byte_offset
        needle = file["exo_dino/clip_id"][0]
    raw = bytearray((tmp_path / "out.h5").read_bytes())
    values, clips = raw.copy(), raw.copy()
    values[at + 5] ^= 1
    clips[raw.find(needle)] ^= 1
    (tmp_path / "values.h5").write_bytes(values)
    (tmp_path / "clips.h5").write_bytes(clips)
    for number, name in enumerate(("out", "values.h5", "clips.h5")):
        run = make_run(tmp_path / f"run{number}", data / "clips.csv")
        result = call("cache", "import", tmp_path / name, "-r", run)
        assert result.exit_code == 4, (name, result.output)


def test_npy_is_the_released_layout(tmp_path: Path, extracted: Path) -> None:
    result = call("cache", "export", tmp_path / "out", "--to", "npy", "-r", extracted)
    assert result.exit_code == 2  # two clips of one long video
    assert "'clip10' and 'clip11' would both be ego_dino/long.npy" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    few = tmp_path / "few.csv"
    lines = (Run.open(extracted).table().path).read_text().splitlines()
    few.write_text("\n".join(lines[:-2]) + "\n")
    options = ["--set", f"data.table={few}", "--set", f"data.root={Run.open(extracted).table().path.parent}"]
    result = call("cache", "export", tmp_path / "out", "--to", "npy", "-r", extracted, *options)
    assert result.exit_code == 0, result.output
    assert "exo_dino: 8 of 10 clips written to" in result.stderr
    assert "(not: 1 failed, 1 missing)" in result.stderr
    names = sorted(path.name for path in (tmp_path / "out" / "exo_dino").iterdir())
    assert names == [f"{name}.npy" for name in ("01", "02", "04", "06", "07", "08", "09", "ego_ego")]
    feature = np.load(tmp_path / "out" / "exo_dino" / "ego_ego.npy")
    values, *_ = content(Run.open(extracted), "exo_dino")
    assert feature.dtype == np.float32
    np.testing.assert_array_equal(feature, np.array(values[0], np.uint16).view(np.float16))
    assert call("cache", "export", tmp_path / "out", "--to", "npy", "-r", extracted, *options).exit_code == 2


def test_npy_by_id_comes_back_through_a_precomputed_teacher(tmp_path: Path, extracted: Path, data: Path) -> None:
    out = tmp_path / "out"
    good("cache", "export", out, "--to", "npy", "--names", "id", "-r", extracted, "--teacher", "exo_dino")
    again = make_run(tmp_path / "again", data / "clips.csv")
    result = call("cache", "import", out, "-r", again)
    assert result.exit_code == 2
    assert "network: precomputed" in result.stderr
    raw = yaml.safe_load((again / "run.yaml").read_text())
    raw["teachers"] = {"exo_dino": {"network": "precomputed", "weights": f"dir:{out}", "zero_is_missing": False}}
    (again / "run.yaml").write_text(yaml.safe_dump(raw))
    extract_teachers(Run.open(again, ["extract.min_coverage=0.5"]))
    first, second = (content(Run.open(folder), "exo_dino") for folder in (extracted, again))
    assert first[0] == second[0]


def test_a_failed_export_leaves_nothing(tmp_path: Path, extracted: Path) -> None:
    run = Path(shutil.copytree(extracted, tmp_path / "run"))
    chunk = run / "cache/exo_dino/features.zarr/features/c.2.0.0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    for form in ("npy", "hdf5", "safetensors"):
        naming: list[object] = ["--names", "id"] if form == "npy" else []
        result = call("cache", "export", tmp_path / "out", "--to", form, "-r", run, *naming)
        assert result.exit_code == 4, result.output
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_import_of_a_file_that_is_no_export(extracted: Path, data: Path) -> None:
    result = call("cache", "import", data / "clips.csv", "-r", extracted)
    assert result.exit_code == 2
    assert "is no export of `uniego cache export" in result.stderr


def test_plain_bad_options(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: list[Callable[[], Any]] = [
        lambda: call("cache", "export", tmp_path / "x", "--to", "hdf", "-r", extracted),
        lambda: call("cache", "export", tmp_path / "x", "--to", "npy", "--names", "stems", "-r", extracted),
        lambda: call("cache", "export", tmp_path / "x", "--to", "hdf5", "--names", "id", "-r", extracted),
        lambda: call("cache", "import", tmp_path / "nothing", "-r", extracted),
        lambda: call("cache", "stats", "--teacher", "ego_din", "-r", extracted),
    ]
    assert [wrong().exit_code for wrong in bad] == [2] * len(bad)
