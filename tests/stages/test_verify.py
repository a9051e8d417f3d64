"""`uniego verify` and `uniego cache gc` on a real run: what is bad is named, marked and redone, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore, RowStatus
from uniego.cache.ledger import entry_from_line, entry_to_line
from uniego.errors import FingerprintMismatch, MissingInputError, UniegoError, UsageError
from uniego.pipeline.rundir import Run
from uniego.stages import shard_size
from uniego.stages.extract_teachers import extract_teachers
from uniego.stages.gc import find_garbage
from uniego.stages.shard_work import ShardWork
from uniego.stages.targets import row_keys
from uniego.stages.verify import least_cosine, verify


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """The shared clips, copied: tests may replace files."""
    return Path(shutil.copytree(clip_table.parent, tmp_path_factory.mktemp("verify") / "data"))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run with a frame teacher and a skeleton teacher, extracted in shards of four. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert call("init", folder, "--data", data / "clips.csv", "--preset", "tiny").exit_code == 0
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in ("ego_dino", "exo_skl")}
    raw["cache"]["rows_per_shard"] = 4
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    extract_teachers(Run.open(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path, extracted: Path) -> Run:
    return Run.open(Path(shutil.copytree(extracted, tmp_path / "run")))


@pytest.fixture
def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the shards that a network went through."""
    starts: list[int] = []
    plain = ShardWork.run

    def counted(self: ShardWork, rows: range, *arguments: Any) -> Any:
        starts.append(rows.start)
        return plain(self, rows, *arguments)

    monkeypatch.setattr(ShardWork, "run", counted)
    return starts


def chunk(run: Run, shard: int, teacher: str = "ego_dino") -> Path:
    return run.cache_root / teacher / "features.zarr" / "features" / f"c.{shard}.0.0"


def flip(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:7] + bytes([good[7] ^ 1]) + good[8:])


def chunks(run: Run) -> dict[str, bytes]:
    return {str(p.relative_to(run.root)): p.read_bytes() for p in sorted(run.cache_root.rglob("c.*"))}


def test_a_sound_cache(run: Run) -> None:
    before = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
    for options in ([], ["--full"], ["--recompute", "3"], ["--json", "--full", "--recompute", "20"]):
        result = call("verify", "--run", run.root, *options)
        assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["stores"] == {"ego_dino": 3, "exo_skl": 3}
    assert report["recomputed"] == report["equal"] == {"ego_dino": 12, "exo_skl": 9}
    assert report["problems"] == []
    assert before == {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}


@pytest.mark.fault
def test_fault_09_10_11_bad_shards_are_named_and_redone(run: Run, rows_computed: list[int]) -> None:
    before = chunks(run)
    chunk(run, 0).write_bytes(chunk(run, 0).read_bytes()[:-3])
    flip(chunk(run, 2, "exo_skl"))
    result = call("verify", "--run", run.root, "--json", "--no-mark")
    assert result.exit_code == 4
    assert [(p["store"], p["shard"], p["marked"]) for p in json.loads(result.stdout)["problems"]] == [
        ("ego_dino", 0, False)
    ]
    result = call("verify", "--run", run.root, "--full")
    assert result.exit_code == 4
    assert "bad: ego_dino: shard 0 has " in result.output
    assert "bad: exo_skl: shard 2 differs from what was written: " in result.output
    again = call("verify", "--run", run.root, "--full")
    assert again.exit_code == 0  # what is marked is pending
    assert "still to be done, marked ones included: " in again.stdout
    assert call("train-proxies", "--run", run.root).exit_code == 1
    extract_teachers(run)
    assert rows_computed == [0, 8]
    assert chunks(run) == before
    assert call("verify", "--run", run.root, "--full").exit_code == 0


@pytest.mark.fault
def test_fault_10_training_refuses_a_flipped_byte_that_nobody_has_verified(run: Run) -> None:
    for shard in range(3):
        flip(chunk(run, shard))
    result = call("train-proxies", "--run", run.root)
    assert result.exit_code == 4
    assert "is damaged" in result.output


def test_features_that_the_teacher_does_not_compute_are_bad(run: Run, rows_computed: list[int]) -> None:
    store = FeatureStore.open(run.cache_root / "ego_dino", ClipIndex.open(run.cache_root))
    entry = store.entry(1)
    assert entry is not None
    values = store.read(store.index.shard_rows(1), "features")[0].copy()
    before = chunks(run)
    store.redo(1)
    store.maker = entry.maker
    store.write_shard(1, {"features": values[::-1]}, entry.statuses())
    assert call("verify", "--run", run.root, "--full").exit_code == 0  # it is what was written
    report = verify(run, ["ego_dino"], recompute=12)
    assert [(p.store, p.shard, p.marked) for p in report.problems] == [("ego_dino", 1, True)]
    assert "below 0.9999" in report.problems[0].what
    rows_computed.clear()
    extract_teachers(run)
    assert rows_computed == [4]
    assert chunks(run) == before


def test_clips_whose_videos_are_out_of_reach_are_not_taken_for_bad(run: Run) -> None:
    before = chunks(run)
    videos = {clip.ego_path.parent for clip in run.table().clips}
    assert len(videos) == 1
    folder = videos.pop()
    folder.rename(folder.with_name("away"))
    result = call("verify", "--run", run.root, "--recompute", "2", "--teacher", "ego_dino")
    assert result.exit_code == 1, result.output
    assert "2 clips could not be compared: clip " in result.output
    assert "no such file" in result.output
    folder.with_name("away").rename(folder)
    assert call("verify", "--run", run.root, "--recompute", "12").exit_code == 0
    some = sorted({clip.ego_path for clip in run.table().clips})[0]
    some.rename(some.with_suffix(".away"))  # the others' batches are smaller now: their bytes may differ by rounding
    report = verify(run, ["ego_dino"], recompute=12)
    assert report.problems == []
    assert report.unread["ego_dino"]
    assert report.recomputed["ego_dino"] + len(report.unread["ego_dino"]) == 12
    some.with_suffix(".away").rename(some)
    assert chunks(run) == before


def test_extraction_computes_only_what_another_run_left_of_a_shard(run: Run) -> None:
    """Its features may be imported ones, which nobody here can compute."""
    store = FeatureStore.open(run.cache_root / "ego_dino", ClipIndex.open(run.cache_root))
    rows = store.index.shard_rows(1)
    values, status = store.read(rows, "features")[0].copy(), store.status(rows)
    theirs = values * np.float16(0.5)
    store.redo(1)
    store.write_shard(1, {"features": theirs}, status * [1, 0, 1, 0])
    extract_teachers(run)
    found, present = store.read(rows, "features")
    assert present.all()
    np.testing.assert_array_equal(found[::2], theirs[::2])
    np.testing.assert_allclose(found[1::2].astype(np.float32), values[1::2].astype(np.float32), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("maker", "bad"), [(None, True), ("elsewhere", False)])
def test_equal_bytes_are_asked_for_on_the_same_software_alone(run: Run, maker: str | None, bad: bool) -> None:
    """The smallest change of a feature, in a shard that was made here or elsewhere."""
    path = run.cache_root / "ego_dino" / "ledger" / "local.jsonl"
    store = FeatureStore.open(run.cache_root / "ego_dino", ClipIndex.open(run.cache_root))
    first = entry_from_line(path.read_bytes().splitlines()[0])
    assert first is not None
    assert first.maker
    values = store.read(store.index.shard_rows(0), "features")[0].copy()
    flat = values.reshape(-1)
    flat[:] = np.nextafter(flat, np.float16(np.inf))
    path.write_text("")
    store = FeatureStore.open(store.path, store.index)
    store.maker = maker or first.maker
    store.write_shard(0, {"features": values}, first.statuses())
    report = verify(run, ["ego_dino"], recompute=4)
    assert bool(report.problems) == bad
    assert report.equal == {"ego_dino": 0}
    assert report.recomputed == {"ego_dino": 1 if bad else 4}  # a shard found bad is not looked at again


def test_ledger_lines_without_a_maker_are_read(run: Run) -> None:
    path = run.cache_root / "ego_dino" / "ledger" / "local.jsonl"
    lines = [entry_from_line(line) for line in path.read_bytes().splitlines()]
    from dataclasses import replace

    path.write_text("".join(entry_to_line(replace(line, maker="")) + "\n" for line in lines if line))
    assert verify(run, recompute=2).problems == []


def test_a_cache_that_is_only_read_is_named_and_not_marked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk(run, 1).unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("uniego.pipeline.files.append_line", refuse)
    assert [problem.marked for problem in verify(run).problems] == [False]


def test_a_store_that_cannot_be_opened_is_named(run: Run) -> None:
    (run.cache_root / "ego_dino" / "manifest.json").write_text("{")
    result = call("verify", "--run", run.root)
    assert result.exit_code == 4
    assert "bad: ego_dino cannot be opened: " in result.output


def test_verify_without_a_cache(tmp_path: Path, data: Path) -> None:
    call("init", tmp_path / "run", "--data", data / "clips.csv", "--preset", "tiny")
    with pytest.raises(MissingInputError, match="extract-teachers"):
        verify(Run.open(tmp_path / "run"))


def test_verify_of_a_teacher_that_was_not_extracted(run: Run) -> None:
    shutil.rmtree(run.cache_root / "exo_skl")
    with pytest.raises(MissingInputError, match="no features of exo_skl"):
        verify(run, ["exo_skl"])
    assert [*verify(run).stores] == ["ego_dino"]


@pytest.mark.parametrize(("a", "b", "cosine"), [([0, 0], [0, 0], 1), ([1, 0], [2, 0], 1), ([1, 0], [0, 0], 0)])
def test_least_cosine(a: list[float], b: list[float], cosine: float) -> None:
    assert least_cosine(np.array([a, [1, 2]]), np.array([b, [1, 2]])) == pytest.approx(cosine)


# Identity


def replaced(run: Run, tmp_path: Path) -> tuple[Run, Path]:
    """The run on its own copy of the videos, extracted."""
    table = run.table().path
    folder = Path(shutil.copytree(table.parent, tmp_path / "videos"))
    own = Run.open(run.root, [f"data.table={folder / 'clips.csv'}"])
    extract_teachers(own)
    return Run.open(run.root, [f"data.table={folder / 'clips.csv'}"]), folder


def test_a_video_replaced_by_one_of_the_same_size_is_noticed_and_redone(
    run: Run, tmp_path: Path, rows_computed: list[int]
) -> None:
    own, folder = replaced(run, tmp_path)
    assert rows_computed == []  # a copy with the same content is the same clip, whatever its place and times
    path = folder / "ego" / "00.mp4"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    before = own.sources["ego/00.mp4"]
    extract_teachers(own)
    assert rows_computed == [12]  # the clip's row of a new generation
    assert own.sources["ego/00.mp4"] != before
    store = FeatureStore.open(own.cache_root / "ego_dino", ClipIndex.open(own.cache_root))
    rows = store.index.rows(row_keys(own, own.table().clips))
    assert sorted(rows.tolist()) == [*range(1, 13)]
    assert (store.status(rows) == RowStatus.DONE).all()


def test_a_touched_video_is_the_same_video(run: Run, tmp_path: Path, rows_computed: list[int]) -> None:
    own, folder = replaced(run, tmp_path)
    (folder / "ego" / "00.mp4").touch()
    extract_teachers(own)
    assert rows_computed == []


def test_a_record_of_sizes_alone_still_names_its_rows(run: Run, rows_computed: list[int]) -> None:
    """Records of before there were samples: their clips keep their features."""
    path = run.root / "extract" / "sources.json"
    sizes = {name: seen and seen[0] for name, seen in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(sizes))
    shutil.rmtree(run.cache_root)
    old = Run.open(run.root)
    extract_teachers(old)
    assert len(rows_computed) == 3
    extract_teachers(Run.open(run.root))
    assert len(rows_computed) == 3
    assert json.loads(path.read_text()) == sizes


# Rows per shard, and what features were made with


def test_rows_per_shard_are_measured_said_and_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shard_size, "suggested_rows", lambda clips, seconds=0.0: 4 if seconds or clips else 2)
    shutil.rmtree(run.cache_root)
    free = Run.open(run.root, ["cache.rows_per_shard=null"])
    extract_teachers(free)
    said = " ".join(capsys.readouterr().err.split())
    assert "4 clips per shard" in said
    assert "s a clip with 2 teachers" in said
    assert ClipIndex.open(free.cache_root).rows_per_shard == 4
    extract_teachers(Run.open(run.root, ["cache.rows_per_shard=7"]))
    assert ClipIndex.open(free.cache_root).rows_per_shard == 4
    assert "clips per shard" not in capsys.readouterr().err


def test_other_libraries_warn_and_strict_refuses(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.cache_root / "ego_dino" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["attributes"]["made_with"]["compute"]["batch_clips"] == 4
    manifest["attributes"]["made_with"]["libraries"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    extract_teachers(run, strict=True)  # nothing to do, nothing to refuse
    chunk(run, 0).unlink()
    with pytest.raises(FingerprintMismatch, match=r"torch: stored '1\.0'"):
        extract_teachers(run, strict=True)
    assert not chunk(run, 0).exists()
    extract_teachers(run)
    assert "torch 1.0 then" in " ".join(capsys.readouterr().err.split())
    assert chunk(run, 0).exists()


def test_other_threads_and_batches_warn_and_strict_refuses(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    chunk(run, 0).unlink()
    other = Run.open(run.root, ["extract.batch_clips=3", f"compute.threads={torch.get_num_threads() + 1}"])
    before = torch.get_num_threads()
    try:
        with pytest.raises(FingerprintMismatch, match=r"batch_clips: stored 4, wanted 3\n  threads: stored"):
            extract_teachers(other, strict=True)
        extract_teachers(other)
        assert "batch_clips 4 then, 3 now" in " ".join(capsys.readouterr().err.split())
    finally:
        torch.set_num_threads(before)


def test_threads_are_those_of_the_first_shards(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before, features = torch.get_num_threads(), chunks(run)
    chunk(run, 0).unlink()
    try:
        torch.set_num_threads(before + 1)  # a node with more cores
        extract_teachers(Run.open(run.root, ["compute.threads=null"]), strict=True)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert "as for the first shards" in capsys.readouterr().err
    assert chunks(run) == features


def test_a_wrong_teacher_is_a_usage_error_before_there_is_a_cache(run: Run) -> None:
    shutil.rmtree(run.cache_root)
    result = call("verify", "--run", run.root, "--teacher", "ego_din")
    assert result.exit_code == 2
    assert "did you mean 'ego_dino'?" in result.stderr


def test_fault_17_other_batches_and_workers_are_accepted(run: Run, rows_computed: list[int]) -> None:
    other = ["extract.batch_clips=3", "compute.workers=2", "compute.threads=2"]
    before = chunks(run)
    extract_teachers(Run.open(run.root, other))
    assert rows_computed == []
    assert chunks(run) == before
    assert verify(Run.open(run.root, other), recompute=6).problems == []  # equal up to rounding


@pytest.mark.fault
def test_fault_08_a_cache_that_cannot_be_written_is_refused_before_networks_are_built(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uniego.stages.extract_stores.build_teacher", lambda *_: pytest.fail("built"))
    file = run.root / "run.yaml"
    with pytest.raises(UniegoError, match=r"features cannot be written to .*: Not a directory"):
        extract_teachers(Run.open(run.root, [f"cache.root={file}/cache"]))


# Growing, shrinking, collecting


def with_rows(run: Run, keep: Callable[[int], bool], order: int = 1) -> Run:
    table = run.table().path
    head, *lines = table.read_text().splitlines()
    name = table.with_name(f"{run.root.parent.name}.csv")
    name.write_text("\n".join([head, *[line for n, line in enumerate(lines) if keep(n)][::order]]) + "\n")
    return Run.open(run.root, [f"data.table={name}"])


def test_a_shrunk_and_reordered_table_computes_nothing(run: Run, rows_computed: list[int]) -> None:
    before = chunks(run)
    extract_teachers(with_rows(run, lambda n: n != 1, order=-1))
    assert rows_computed == []
    assert chunks(run) == before


def test_gc_reclaims_what_no_named_run_needs(run: Run, tmp_path: Path, rows_computed: list[int]) -> None:
    before = chunks(run)
    shutil.copytree(run.root, tmp_path / "other", ignore=shutil.ignore_patterns("cache"))
    other = Run.open(tmp_path / "other", [f"cache.root={run.cache_root}"])
    shutil.copytree(run.cache_root / "ego_dino", run.cache_root / "exo_old")
    small = with_rows(run, lambda n: n in {0, 5, 6, 7})  # of the shards 0 and 1; shard 2 is dropped
    extract_teachers(small)
    left = run.cache_root / "ego_dino" / "ledger" / ".local.jsonl.1-0badc0de.partial"
    left.write_bytes(b"12345")
    options = ("cache", "gc", "--run", run.root, "--set", f"data.table={small.table().path}")

    files_before = {p for p in run.root.rglob("*") if p.is_file()}
    listed = call(*options)
    assert listed.exit_code == 0, listed.output
    assert "store exo_old" in listed.output
    assert "kept: 4 rows of dropped clips" in listed.output
    assert "--yes removes it" in listed.output
    assert {p for p in run.root.rglob("*") if p.is_file()} == files_before
    garbage = find_garbage([small])
    assert [*garbage.stores] == ["exo_old"]
    assert {name: [*found] for name, found in garbage.shards.items()} == {"ego_dino": [2], "exo_skl": [2]}
    assert garbage.partials == {left: 5}
    both = find_garbage([small, other])
    assert (both.shards, both.masked) == ({}, 0)

    removed = json.loads(call(*options, "--yes", "--json").stdout)
    assert removed["removed"]
    assert removed["bytes"] == garbage.bytes
    assert not left.exists()
    assert not chunk(run, 2).exists()
    assert not (run.cache_root / "exo_old").exists()
    assert verify(small, full=True).problems == []
    assert find_garbage([small]).bytes == 0

    rows_computed.clear()
    extract_teachers(small)
    assert rows_computed == []
    extract_teachers(Run.open(run.root))  # the dropped clips come back
    assert rows_computed == [8]
    assert chunks(run) == before


def test_gc_refuses_to_guess(run: Run, tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="name every run"):
        find_garbage([])
    call("init", tmp_path / "other", "--data", data / "clips.csv", "--preset", "tiny")
    with pytest.raises(UsageError, match="different caches"):
        find_garbage([run, Run.open(tmp_path / "other")])
    fresh = Run.open(tmp_path / "other", [f"cache.root={run.cache_root}"])
    with pytest.raises(MissingInputError, match="extract-teachers"):
        find_garbage([run, fresh])
    with run.extracting(["exo_skl"]), pytest.raises(UniegoError, match="extraction of exo_skl"):
        find_garbage([run])
