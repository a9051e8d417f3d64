"""The whole road with the cache in object storage: the same features and the same weights as on disk."""

from __future__ import annotations

import json
import shutil
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
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    endpoint = "http://{}:{}".format(*running.get_host_and_port())
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="features")
    yield "s3://features/team"
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
    assert json.loads(good("verify", "-r", runs["s3"], "--full", "--json"))["problems"] == []
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
