"""`uniego analyze` on a finished run: what it writes, what it leaves out, and that it changes nothing else."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner
from uniego import cli
from uniego.errors import UniegoError
from uniego.models import TimeSformer
from uniego.pipeline.rundir import Run
from uniego.pipeline.signals import StopFlag
from uniego.stages import snapshots
from uniego.stages.analyze_conflicts import analyze_conflicts, probe_clips
from uniego.stages.batches import ClipReader
from uniego.stages.cka import Features, Product, hsic
from uniego.stages.encoder import write_model
from uniego.stages.engines.cka_cluster import hsic_on_cluster
from uniego.stages.extract_options import ExtractOptions
from uniego.stages.training import evaluation_protocol

KEYS = ["ego_dino", "exo_skl"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run of two teachers, one of which lacks three train clips; three snapshots of the student. Read only."""
    run = tmp_path_factory.mktemp("analyze") / "run"
    good("init", run, "--data", clip_table, "--preset", "tiny")
    raw = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in KEYS}
    raw["distill"] |= {"snapshots": 2, "require_correct": False, "threshold": 100.0}
    raw["distill"]["train"] |= {"epochs": 2, "global_batch": 4, "micro_batch": 2}
    (run / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for stage in ("extract-teachers", "train-proxies", "distill"):
        good(stage, "--run", run)
    return run


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_snapshots_lead_from_the_merge_to_the_student(finished: Path) -> None:
    folder = finished / "distill" / "student"
    found = snapshots.find(folder)
    assert list(found) == [0, 2, 4], "start, middle and end of four steps"
    merged, start = load_file(finished / "distill" / "merge" / "merged.safetensors"), load_file(found[0])
    assert all(torch.equal(start[name], merged[name]) for name in merged)
    assert found[4].read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert found[2].read_bytes() != found[4].read_bytes()


def test_snapshots_of_steps_that_are_made_again_are_removed(tmp_path: Path) -> None:
    for step in (0, 5, 10):
        snapshots.keep(tmp_path, step, {"a": torch.zeros(1)})
    snapshots.forget_after(tmp_path, 5)
    assert list(snapshots.find(tmp_path)) == [0, 5]
    due = [step for step in range(11) if snapshots.is_due(step, 10, 4)]
    assert due == [0, 2, 5, 8, 10]
    assert not snapshots.is_due(0, 10, 0)


def test_cka_of_a_run(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    report = json.loads(good("analyze", "cka", "--run", run, "--json"))
    folder = run / "analyze" / "cka"
    assert report == json.loads((folder / "cka.json").read_text())
    names = ["teacher ego_dino", "teacher exo_skl", "proxy ego_dino", "proxy exo_skl", "student"]
    assert report["names"] == names
    assert report["clips"] == 8
    assert report["left_out"]["teacher exo_skl"] == 2, "rows without a pose"
    assert report["pairs"]["exo_skl"]["teacher_student_clips"] == 6
    assert report["pairs"]["exo_skl"]["proxy_student_clips"] == 8
    matrix = report["matrix"]
    for i in range(5):
        assert matrix[i][i] == pytest.approx(1.0)
        assert matrix[i] == [row[i] for row in matrix]
    with (folder / "cka.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 25
    assert float(rows[4]["cka"]) == matrix[0][4]
    ElementTree.parse(folder / "cka.svg")
    tokens = run / "analyze" / "tokens-student" / "tokens.safetensors"
    stamp = tokens.stat().st_mtime_ns
    table = good("analyze", "cka", "--run", run)
    assert "teacher-student" in table
    assert "ego_dino" in table
    assert tokens.stat().st_mtime_ns == stamp, "computed once"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_cka_by_dask_workers_is_the_same(run: Path) -> None:
    """Of real workers; what they read is removed again."""
    here = json.loads(good("analyze", "cka", "--run", run, "--json"))
    there = json.loads(good("analyze", "cka", "--run", run, "--engine", "dask", "--workers", 1, "--json"))
    assert there == here
    assert not (run / "analyze" / "cka" / "views").exists()
    refused = call("analyze", "cka", "--run", run, "--workers", 2)
    assert refused.exit_code == 2
    assert "--engine dask" in refused.output


@pytest.mark.fault
@pytest.mark.slow
def test_cka_outlives_dask_workers_and_tells_their_errors(tmp_path: Path, finished: Path) -> None:
    """A worker is killed in the middle; then a representation holds a number that is not finite."""
    features = {
        name: Features(torch.randn(2500, 500, generator=torch.Generator().manual_seed(seed)), torch.ones(2500) > 0)
        for seed, name in enumerate(("one", "other", "third"))
    }
    products = [Product(one, other, (one, other)) for one in features for other in features]
    config = Run.open(finished).config
    options = ExtractOptions(engine="dask", workers=1)
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not killed and not ended.wait(0.005):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if any("0-values.npy" in entry.path for entry in child.memory_maps()):
                        child.kill()
                        killed.append(child.pid)
                        return

    thread = threading.Thread(target=kill)
    with StopFlag() as flag:
        thread.start()
        found = hsic_on_cluster(tmp_path / "views", features, products, config, options, flag)
        ended.set()
        thread.join()
        assert killed
        for product in products[:2]:
            assert found[product] == pytest.approx(hsic(product, features, torch.device("cpu")), rel=1e-9)
        assert len(found) == 9
        features["one"].values[7, 7] = torch.inf
        with pytest.raises(UniegoError, match=r"worker .*not finite .* in one: no CKA"):
            hsic_on_cluster(tmp_path / "views", features, products[:1], config, options, flag)


def test_a_student_against_itself_as_a_proxy_is_the_same(run: Path) -> None:
    """Tokens of a student and a proxy's stored ones are looked at in the same way: equal networks, equal tokens."""
    shutil.copytree(run / "proxies" / "ego_dino" / "model", run / "distill" / "student" / "model", dirs_exist_ok=True)
    report = json.loads(good("analyze", "cka", "--run", run, "--json"))
    assert report["pairs"]["ego_dino"]["proxy_student"] == pytest.approx(1.0, abs=1e-9)
    assert report["pairs"]["ego_dino"]["teacher_student"] == pytest.approx(report["pairs"]["ego_dino"]["teacher_proxy"])


def test_what_is_missing_is_named(run: Path) -> None:
    (store,) = (run / "cache").glob("proxy-ego_dino-*")
    shutil.rmtree(store)
    result = call("analyze", "cka", "--run", run)
    assert result.exit_code == 1
    assert "train-proxies --teacher ego_dino" in result.stderr
    (run / "distill" / "student" / "record.json").unlink()
    for analysis in ("cka", "conflicts"):
        result = call("analyze", analysis, "--run", run)
        assert result.exit_code == 1
        assert "run `uniego distill" in result.stderr


def test_conflicts_over_training(run: Path) -> None:
    report = json.loads(good("analyze", "conflicts", "--run", run, "--json"))
    folder = run / "analyze" / "conflicts"
    assert report == json.loads((folder / "conflicts.json").read_text())
    assert report["clips"] == 8
    student = report["students"]["student"]
    assert [student["method"], student["teachers"]] == ["spd", KEYS]
    assert [entry["step"] for entry in student["steps"]] == [0, 2, 4]
    assert student["pairs"] == sum(entry["pairs"] for entry in student["steps"]) > 0
    for entry in student["steps"]:
        assert entry["pairs"] == entry["pairs_by_pair"][0][1] <= 2, "two global batches"
        assert entry["negative"] <= entry["pairs"]
        assert entry["pairs"] + entry["without_gradient"] == 2
    with (folder / "conflicts.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["0", "2", "4"]
    ElementTree.parse(folder / "conflicts.svg")
    again = json.loads(good("analyze", "conflicts", "--run", run, "--json"))
    assert again == report
    assert "share" in good("analyze", "conflicts", "--run", run, "--batches", "1")


def naive_student(run: Run) -> None:
    """A finished student with a projection per teacher, where one of naive distillation lies."""
    shape = run.config.student
    widths = {"exo_skl": 256, "ego_dino": 1024}
    for key in KEYS:
        manifest = json.loads((run.cache_root / key / "manifest.json").read_text())
        widths[key] = manifest["arrays"]["features"]["shape"][1]
    model = TimeSformer(
        shape.image_size, shape.patch_size, shape.num_frames, shape.width, shape.depth, shape.heads, 2, widths, seed=3
    )
    folder = run.root / "distill" / "variants" / "naive-merged"
    reader = ClipReader.from_config(run.config)
    write_model(folder / "model", model, model.state_dict(), reader, evaluation_protocol(run), run.table().classes)
    (folder / "record.json").write_text(json.dumps({"state": "done", "fingerprint": {}, "results": {}}))
    snapshots.keep(folder, 0, model.state_dict())


def test_naive_students_are_compared(run: Path) -> None:
    opened = Run.open(run)
    naive_student(opened)
    report = analyze_conflicts(opened, 1)
    naive = report["students"]["naive-merged"]
    assert [naive["method"], naive["teachers"]] == ["naive", KEYS]
    assert [entry["step"] for entry in naive["steps"]] == [0, 4]
    assert naive["steps"][0]["mean_cosines"] == naive["steps"][1]["mean_cosines"], "it did not learn"
    assert naive["pairs"] == 2


def test_probe_clips_are_functions_of_the_seed(finished: Path) -> None:
    opened = Run.open(finished)
    one = [clip.clip_id for clip in probe_clips(opened, 1)]
    assert len(one) == 4
    assert [clip.clip_id for clip in probe_clips(opened, 99)][:4] == one
    assert [clip.clip_id for clip in probe_clips(Run.open(finished, ["seed=1"]), 1)] != one
    with pytest.raises(UniegoError, match=r"no global batch of 64 clips can be made of 8: lower distill\.train"):
        probe_clips(Run.open(finished, ["distill.train.global_batch=64"]), 1)
