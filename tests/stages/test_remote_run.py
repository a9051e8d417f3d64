"""The whole road with the cache in object storage: the same features and the same weights as on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.pipeline.objects import Objects
from uniego.pipeline.rundir import Run

pytest.importorskip("obstore", reason="object storage needs the extra s3")
server = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto")
boto3 = pytest.importorskip("boto3", reason="the S3 server of these tests is moto")

TEACHERS = ("ego_dino", "exo_skl")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A place that is this test's own: buckets outlive their server."""
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    endpoint = "http://{}:{}".format(*running.get_host_and_port())
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="features")
    yield f"s3://features/{request.node.name}"
    running.stop()


def test_a_run_in_object_storage(tmp_path: Path, clip_table: Path, bucket: str) -> None:
    runs = {}
    for place, root in (("disk", "cache"), ("s3", bucket)):
        folder = tmp_path / place
        good("init", folder, "--data", clip_table, "--preset", "tiny", "--set", f"cache.root={root}")
        raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        raw["teachers"] = {key: raw["teachers"][key] for key in TEACHERS}
        raw["cache"]["rows_per_shard"] = 4
        (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        for stage in ("extract-teachers", "train-proxies", "distill"):
            good(stage, "-r", folder)
        runs[place] = folder
    remote, disk = Objects(bucket), runs["disk"] / "cache"
    chunks = {name: remote.get(name) for name in remote.list() if "/c." in name}
    assert chunks == {p.relative_to(disk).as_posix(): p.read_bytes() for p in disk.rglob("c.*")}
    weights = [folder / "distill" / "student" / "model" / "model.safetensors" for folder in runs.values()]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    shutil.rmtree(runs["s3"] / "cache-mirror")
    report = json.loads(good("verify", "-r", runs["s3"], "--full", "--json"))
    assert (report["cache"], report["problems"]) == (bucket, [])
    reports = [json.loads(good("cache", "coverage", "-r", folder, "--json")) for folder in runs.values()]
    assert reports[0] == reports[1]
    reports = [json.loads(good("cache", "stats", "-r", folder, "--json")) for folder in runs.values()]
    assert reports[0] == reports[1]
    assert json.loads(good("cache", "info", "-r", runs["s3"], "--json"))["cache"] == bucket
    assert (
        json.loads(good("status", "-r", runs["s3"], "--json"))["stages"]["extract-teachers"]["ego_dino"]["done"] == 12
    )
    remote.delete("ego_dino/features.zarr/features/c.1.0.0")
    assert call("verify", "-r", runs["s3"]).exit_code == 4
    good("extract-teachers", "-r", runs["s3"])
    assert {name: remote.get(name) for name in remote.list() if "/c." in name} == chunks
    run = Run.open(runs["s3"])
    assert not list(run.cache_root.rglob("c.*"))


def make_run(folder: Path, clip_table: Path, bucket: str, *settings: str) -> Path:
    changes = [f"cache.root={bucket}", "cache.rows_per_shard=4", *settings]
    good("init", folder, "--data", clip_table, "--preset", "tiny", *(f"--set={change}" for change in changes))
    return folder


def test_several_processes_of_one_run(tmp_path: Path, clip_table: Path, bucket: str) -> None:
    """One worker a teacher, started at once, and `uniego status` over and over."""
    folder = make_run(tmp_path / "run", clip_table, bucket)
    command = [sys.executable, "-m", "uniego", "extract-teachers", "-r", str(folder), "--teacher"]
    keys = [*TEACHERS, "ego_siglip"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = []
    for key in keys:
        with (tmp_path / key).open("wb") as log:
            workers.append(subprocess.Popen([*command, key], env=environment, stdout=log, stderr=log))
    looks = 0
    try:
        while any(worker.poll() is None for worker in workers):
            good("status", "-r", folder)
            looks += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = {key: (tmp_path / key).read_text(encoding="utf-8") for key in keys}
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    assert looks
    report = json.loads(good("status", "-r", folder, "--json"))
    assert report["cache"] == bucket
    assert [report["stages"]["extract-teachers"][key]["pending"] for key in keys] == [0, 0, 0]
    assert json.loads(good("verify", "-r", folder, "--full", "--json"))["problems"] == []


def test_gc_of_two_runs_of_one_cache(tmp_path: Path, clip_table: Path, bucket: str) -> None:
    first = make_run(tmp_path / "a", clip_table, bucket)
    lines = clip_table.read_text(encoding="utf-8").splitlines()
    shorter = clip_table.with_name("shorter.csv")
    shorter.write_text("\n".join([*lines[:1], *lines[1::2]]) + "\n", encoding="utf-8")
    second = make_run(tmp_path / "b", shorter, f"{bucket}/")
    for run, key in ((first, TEACHERS[0]), (second, TEACHERS[1])):
        good("extract-teachers", "-r", run, "--teacher", key)
    held = {name: found.size for name, found in Objects(bucket).list().items()}
    both = json.loads(good("cache", "gc", "-r", first, "-r", second, "--yes", "--json"))
    assert (both["cache"], both["bytes"]) == (bucket, 0)
    assert {name: found.size for name, found in Objects(bucket).list().items()} == held
    other = make_run(tmp_path / "c", clip_table, f"{bucket}/elsewhere")
    refused = call("cache", "gc", "-r", first, "-r", other)
    assert refused.exit_code == 2
    assert f"{bucket}, {bucket}/elsewhere" in refused.output
    assert f"to remove from {bucket}" in good("cache", "gc", "-r", first)
