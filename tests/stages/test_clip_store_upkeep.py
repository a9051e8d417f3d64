"""The clip store among the commands about the cache; and a missing one, refused at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from uniego import cli


def uniego(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def run(tmp_path: Path, clip_table: Path) -> Path:
    """One teacher's features, and a clip store in shards of one clip."""
    uniego("init", tmp_path / "run", "--data", clip_table, "--preset", "tiny")
    path = tmp_path / "run" / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["teachers"] = {"ego_dino": raw["teachers"]["ego_dino"]}
    raw["compute"] |= {"threads": 1, "workers": 0}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    uniego("extract-teachers", "--run", path.parent)
    uniego("prepare-clips", "--run", path.parent)
    return path.parent


def test_info_verify_and_gc_know_the_clip_store(run: Path, clip_table: Path) -> None:
    store = run / "cache" / "clip-store"
    info = json.loads(uniego("cache", "info", "--run", run, "--json").stdout)["clip_store"]
    assert (info["path"], info["clips"], info["stored"], info["failed"]) == (str(store), 8, 8, 0)
    assert info["bytes"] > 0
    assert f"clip store {store}: 8 clips, 8 stored, 0 failed" in uniego("cache", "info", "--run", run).output
    assert "0 bytes to remove" in uniego("cache", "gc", "--run", run).output

    fewer = clip_table.with_name("fewer.csv")
    lines = clip_table.read_text(encoding="utf-8").splitlines()
    fewer.write_text("\n".join([lines[0], *lines[2:]]) + "\n", encoding="utf-8")
    found = json.loads(uniego("cache", "gc", "--run", run, "--json", "--set", f"data.table={fewer}").stdout)
    assert (found["clip_store"]["whole"], list(found["clip_store"]["shards"])) == (False, ["0"])
    uniego("cache", "gc", "--run", run, "--yes", "--set", f"data.table={fewer}")
    info = json.loads(uniego("cache", "info", "--run", run, "--json").stdout)["clip_store"]
    assert info["stored"] == 7
    uniego("prepare-clips", "--run", run)

    shard = next(store.glob("frames/images/*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "bad: clip store, shard" in uniego("verify", "--run", run, code=4).output
    uniego("prepare-clips", "--run", run, "--verify")
    uniego("verify", "--run", run, "--full")


def test_gc_removes_a_clip_store_that_no_settings_fit(run: Path) -> None:
    store = run / "cache" / "clip-store"
    other = ("--set", "clips.quality=50")
    assert f"clip store {store}: made under settings of none" in uniego("cache", "gc", "--run", run, *other).output
    assert store.exists()
    uniego("cache", "gc", "--run", run, "--yes", *other)
    assert not store.exists()
    assert json.loads(uniego("cache", "info", "--run", run, "--json").stdout)["clip_store"] is None


def test_a_missing_clip_store_is_refused_at_the_start(run: Path) -> None:
    source = ("--set", "clips.source=store", "--set", "clips.root=nowhere")
    result = uniego("train-proxies", "--run", run, *source, code=1)
    assert "no clip store at" in result.output
    assert not (run / "proxies").exists()
