"""A run's work in the released code's folders and back again, at every stage, bit for bit."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import ClipIndex, FeatureStore
from uniego.pipeline.rundir import Run
from uniego.stages.status import status
from uniego.stages.targets import row_keys

KEYS = ("exo_skl", "ego_dino")
TOKENS, SCORES = Path("tokens_training/tokens"), Path("tokens_training/scores_pred")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def good(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(str(result.output).split())


def refused(*arguments: object) -> tuple[int, str]:
    result = call(*arguments)
    assert result.exit_code not in (0, 70), result.output
    return result.exit_code, " ".join(str(result.output).split())


def make_run(folder: Path, table: Path, **sections: dict[str, object]) -> Path:
    good("init", folder, "--data", table, "--preset", "tiny")
    path = folder / "run.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in KEYS}
    raw["compute"]["workers"] = 0
    raw["proxies"]["train"]["epochs"] = raw["distill"]["train"]["epochs"] = raw["merge"]["epochs"] = 1
    for section, values in sections.items():
        raw[section] |= values
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def outputs(run: Path, key: str) -> dict[str, np.ndarray[Any, Any]]:
    """Statuses, tokens and scores of a proxy over the train clips."""
    opened = Run.open(run)
    index = ClipIndex.open(opened.cache_root)
    store = FeatureStore.open(opened.cache_root / opened.proxy_folder(key).results["outputs"], index)
    rows = index.rows(row_keys(opened, opened.table().split("train")))
    arrays = {name: store.load(name, rows, np.float32)[0] for name in ("tokens", "logits")}
    return {"status": store.status(rows), **arrays}


def weights(run: Path, work: str) -> bytes:
    return (run / work / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run that did everything itself. Read only."""
    run = make_run(tmp_path_factory.mktemp("native") / "run", clip_table)
    for stage in ("extract-teachers", "train-proxies", "distill"):
        good(stage, "--run", run)
    return run


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, native: Path) -> Path:
    """Its work in the released layout. Read only."""
    out = tmp_path_factory.mktemp("released")
    good("release", "export", "features", out / "features", "--run", native, "--names", "id")
    good("release", "export", "proxies", out / "stage1", "--run", native)
    good("release", "export", "merged", out / "merged.pyth", "--run", native)
    good("release", "export", "student", out / "student.pyth", "--run", native)
    return out


def test_what_is_written_is_the_released_layout(released: Path, native: Path) -> None:
    stems = {clip.ego_path.stem for clip in Run.open(native).table().split("train")}
    for key in KEYS:
        for part in (TOKENS, SCORES):
            assert {path.stem for path in (released / "stage1" / key / part).iterdir()} == stems
        (checkpoint,) = (released / "stage1" / key / "checkpoints").iterdir()
        content = torch.load(checkpoint, weights_only=True)
        assert content.keys() == {"epoch", "model_state", "optimizer_state", "cfg"}
        assert all(name.startswith("model.") for name in content["model_state"])
        assert "model.proj_layer.weight" in content["model_state"]
        assert checkpoint.name == f"checkpoint_epoch_{content['epoch'] + 1:05d}.pyth"
    merged = torch.load(released / "merged.pyth", weights_only=True)["model_state"]
    assert not any("proj_layer" in name for name in merged)
    token = np.load(next((released / "stage1" / KEYS[0] / TOKENS).iterdir()))
    assert (token.dtype, token.shape) == (np.float32, (Run.open(native).config.student.width,))


def test_from_features_on(released: Path, native: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table)
    words = ["release", "import", "features", released / "features", "--run", run]
    code, told = refused(*words)
    assert (code, "exo_skl 81.8 %" in told) == (3, True), told  # no file: nobody can tell that there was no pose
    told = good(*words, "--min-coverage", 0.8)
    assert "exo_skl: 9 of 12 clips imported" in told
    assert "float32 files are rounded to float16" in told  # what cannot be carried is told
    good("train-proxies", "--run", run)
    for key in KEYS:
        assert weights(run, f"proxies/{key}") == weights(native, f"proxies/{key}")
    good("release", "export", "features", tmp_path / "again", "--run", run, "--names", "id")
    assert same_files(tmp_path / "again", released / "features")


def test_from_stage_1_on(released: Path, native: Path, tmp_path: Path, clip_table: Path) -> None:
    """No feature is in this run: proxies and their outputs are all that distillation needs."""
    run = make_run(tmp_path / "run", clip_table)
    assert "next: uniego distill" in good("release", "import", "proxies", released / "stage1", "--run", run)
    for key in KEYS:
        assert weights(run, f"proxies/{key}") == weights(native, f"proxies/{key}")
        theirs = outputs(native, key)
        assert all(np.array_equal(found, theirs[name]) for name, found in outputs(run, key).items())
    assert "imported before, nothing to do" in good("release", "import", "proxies", released / "stage1", "--run", run)
    good("release", "export", "proxies", tmp_path / "again", "--run", run)
    assert same_files(tmp_path / "again", released / "stage1")
    told = good("distill", "--run", run)
    assert "proxy exo_skl was imported; how it was trained cannot be verified" in told
    assert weights(run, "distill/student") == weights(native, "distill/student")
    assert (run / "distill/merge/merged.safetensors").read_bytes() == (
        native / "distill/merge/merged.safetensors"
    ).read_bytes()
    states = status(Run.open(run))["stages"]
    assert states["train-proxies"] == {key: {"state": "done", "imported": True} for key in KEYS}
    assert states["distill"]["student"] == {"state": "done"}
    assert "nothing to do" in good("distill", "--run", run)
    assert "nothing to do" in good("train-proxies", "--run", run)
    good("verify", "--run", run)
    good("cache", "gc", "--run", run, "--yes")  # what was imported is needed
    assert np.array_equal(outputs(run, "exo_skl")["tokens"], outputs(native, "exo_skl")["tokens"])
    code, told = refused("distill", "--run", run, "--set", "student.depth=1")
    assert (code, "was imported for others" in told) == (5, True), told


def test_from_the_merge_on(released: Path, native: Path, tmp_path: Path, clip_table: Path) -> None:
    """Outputs without networks teach; the start is the merged network."""
    only = tmp_path / "stage1"
    shutil.copytree(released / "stage1", only, ignore=shutil.ignore_patterns("*.pyth"))
    run = make_run(tmp_path / "run", clip_table)
    good("release", "import", "proxies", only, "--run", run)
    code, told = refused("distill", "--run", run)
    assert (code, "these were imported without: ego_dino, exo_skl" in told) == (1, True), told
    assert "imported without its network" in refused("evaluate", "--run", run, "--model", "proxy:exo_skl")[1]
    good("release", "import", "merged", released / "merged.pyth", "--run", run)
    good("distill", "--run", run)
    assert weights(run, "distill/student") == weights(native, "distill/student")
    good("release", "export", "merged", tmp_path / "merged.pyth", "--run", run)
    assert same_tensors(tmp_path / "merged.pyth", released / "merged.pyth")


def test_the_student(released: Path, native: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table)
    good("release", "import", "student", released / "student.pyth", "--run", run)
    assert weights(run, "distill/student") == weights(native, "distill/student")
    good("release", "export", "student", tmp_path / "back.pyth", "--run", run)
    assert same_tensors(tmp_path / "back.pyth", released / "student.pyth")
    assert "student was imported" in good("evaluate", "--run", run)
    assert "student was imported" in good("distill", "--run", run)
    code, told = refused("release", "import", "student", released / "student.pyth", "--run", native)
    assert (code, "--overwrite" in told) == (5, True), told
    assert refused("release", "export", "student", tmp_path / "back.pyth", "--run", run)[0] == 2


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, .pyth files by their content."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    assert names[0] == names[1]
    arrays = [name for name in names[0] if name.endswith(".npy")]
    assert arrays
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in arrays) and all(
        same_tensors(one / name, other / name) for name in names[0] if name.endswith(".pyth")
    )


def same_tensors(one: Path, other: Path) -> bool:
    mine, theirs = (torch.load(path, weights_only=True) for path in (one, other))
    return (
        mine["epoch"] == theirs["epoch"]
        and mine["cfg"] == theirs["cfg"]
        and list(mine["model_state"]) == list(theirs["model_state"])
        and all(torch.equal(tensor, theirs["model_state"][name]) for name, tensor in mine["model_state"].items())
    )


def test_differing_networks_are_refused(released: Path, tmp_path: Path, clip_table: Path) -> None:
    run = make_run(tmp_path / "run", clip_table)
    content = torch.load(released / "student.pyth", weights_only=True)
    state = content["model_state"]
    width = state["model.head.weight"].shape[1]
    path = tmp_path / "changed.pyth"
    changes: tuple[tuple[dict[str, torch.Tensor | None], str], ...] = (
        ({"model.norm.weight": None}, "missing: norm.weight"),
        ({"model.norm.scale": torch.ones(2)}, "unknown: norm.scale"),
        ({"model.head.bias": torch.ones(3), "model.head.weight": torch.ones(3, width)}, "2 classes"),
        ({"model.head.bias": torch.ones(2, dtype=torch.float16)}, "head.bias [2] float16 instead of [2] float32"),
        ({"model.head.bias": torch.full((2,), torch.nan)}, "not finite: head.bias"),
    )
    for change, told in changes:
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        torch.save({**content, "model_state": changed}, path)
        code, said = refused("release", "import", "student", path, "--run", run)
        assert (code, told in said) == (1, True), said
    path.write_bytes((released / "student.pyth").read_bytes()[:2000])
    assert str(path) in refused("release", "import", "student", path, "--run", run)[1].replace(" ", "")
    assert refused("release", "import", "student", released / "student.pyth", "--run", run, "--heads", 99)[0] == 2
    assert refused("release", "import", "student", path, "--run", run, "--rows", 2)[0] == 2
    assert refused("release", "import", "merged", path, "--run", run, "--teacher", "exo_skl")[0] == 2
    assert not (run / "distill").exists()


def test_outputs_that_are_not_right(released: Path, tmp_path: Path, clip_table: Path) -> None:
    """A file that is not there, cut, of another width or not finite fails its clip, by name; zeros are values."""
    folder = tmp_path / "stage1" / "exo_skl"
    shutil.copytree(released / "stage1/exo_skl", folder)
    names = sorted(path.name for path in (folder / TOKENS).iterdir())
    (folder / SCORES / names[0]).unlink()
    cut = folder / TOKENS / names[1]
    cut.write_bytes(cut.read_bytes()[:-4])
    np.save(folder / SCORES / names[2], np.ones(3, np.float32))
    np.save(folder / TOKENS / names[3], np.full_like(np.load(folder / TOKENS / names[3]), np.inf))
    np.save(folder / TOKENS / names[4], np.zeros_like(np.load(folder / TOKENS / names[4])))
    np.save(folder / TOKENS / "stranger.npy", np.zeros(3))
    run = make_run(tmp_path / "run", clip_table)
    told = good("release", "import", "proxies", tmp_path / "stage1", "--run", run)
    assert "outputs of 4 of 8 train clips" in told
    assert "4 train clips have no outputs" in told
    for reason, name in (("missing", names[0]), ("unreadable", names[1]), ("unreadable", names[2])):
        assert f"clip{Path(name).stem} ({reason}): " in told, told
    assert "1 files are no train clip's" in told
    assert "tokens of 1 clips are all zeros" in told
    assert (
        "no folder of ego_dino"
        in refused("release", "import", "proxies", tmp_path / "stage1", "--run", run, "--teacher", "ego_dino")[1]
    )
    found = outputs(run, "exo_skl")
    assert np.isnan(found["tokens"][:4]).all() or not found["tokens"][:4].any()
    good("release", "export", "proxies", tmp_path / "back", "--run", run)
    left = sorted(path.name for path in (tmp_path / "back/exo_skl" / TOKENS).iterdir())
    assert left == names[4:]  # what is missing has no file, zeros stay zeros
    assert not np.load(tmp_path / "back/exo_skl" / TOKENS / names[4]).any()

    shutil.rmtree(folder / SCORES)
    code, told = refused("release", "import", "proxies", tmp_path / "stage1", "--run", run, "--overwrite")
    assert (code, "both are needed" in told) == (2, True), told


def test_names_that_stand_for_two_clips(native: Path, tmp_path: Path) -> None:
    code, told = refused("release", "export", "features", tmp_path / "x", "--run", native)
    assert (code, "clip10" in told, "clip11" in told) == (2, True, True), told  # two halves of one video
    assert not (tmp_path / "x").exists()


def test_a_proxy_without_outputs_has_them_computed(
    released: Path, native: Path, tmp_path: Path, clip_table: Path
) -> None:
    folder = tmp_path / "stage1" / "exo_skl"
    shutil.copytree(released / "stage1/exo_skl/checkpoints", folder / "checkpoints")
    run = make_run(tmp_path / "run", clip_table)
    assert "computed here" in good("release", "import", "proxies", tmp_path / "stage1", "--run", run)
    theirs = outputs(native, "exo_skl")
    assert all(np.array_equal(found, theirs[name]) for name, found in outputs(run, "exo_skl").items())


_KILLED = """
import os, signal, sys
from uniego.cache import FeatureStore
whole, left = FeatureStore.write_shard, [2]
def write_shard(*arguments, **named):
    whole(*arguments, **named)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
FeatureStore.write_shard = write_shard
from uniego.cli import app
app(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["proxies", "features"])
def test_an_import_that_was_killed_goes_on(
    what: str, released: Path, native: Path, tmp_path: Path, clip_table: Path
) -> None:
    run = make_run(tmp_path / "run", clip_table, cache={"rows_per_shard": 2})
    source = released / {"proxies": "stage1", "features": "features"}[what]
    words = ["release", "import", what, str(source), "--run", str(run)]
    words += ["--min-coverage", "0.8"] if what == "features" else []
    done = subprocess.run([sys.executable, "-c", _KILLED, *words], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    states = status(Run.open(run))["stages"]
    assert {"done"} != {entry["state"] for entry in states["train-proxies"].values()}
    good(*words)
    if what == "features":
        good("release", "export", "features", tmp_path / "back", "--run", run, "--names", "id")
        assert same_files(tmp_path / "back", released / "features")
        return
    for key in KEYS:
        theirs = outputs(native, key)
        assert all(np.array_equal(found, theirs[name]) for name, found in outputs(run, key).items())
