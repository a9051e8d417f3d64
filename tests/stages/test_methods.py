"""Every method and start of `uniego distill`, side by side in one run; what each needs; what the records say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from uniego import cli
from uniego.cache import Failure, FeatureStore, RowStatus
from uniego.errors import MissingInputError
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import METHODS, DistillConfig, ProxiesConfig, TrainConfig
from uniego.pipeline.files import hash_file
from uniego.pipeline.rundir import Run
from uniego.stages.batches import Batch
from uniego.stages.methods import needed_proxies, needs_pool
from uniego.stages.starts import average, initial_student
from uniego.stages.student import NaiveTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import Targets, open_index, row_keys
from uniego.stages.teaching import read_teaching

TEACHERS = ("exo_skl", "ego_dino", "exo_dino")
VARIANTS = (
    ("naive", "imagenet"),
    ("all-proxies", "merged"),
    ("random", "average"),
    ("best-proxy", "proxy:ego_dino"),
    ("ce", "merged"),
    ("spd", "average"),
)


def good(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return str(result.output)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clip_table: Path) -> Path:
    """A run with its proxies, its student, and all the variants."""
    folder = tmp_path_factory.mktemp("methods") / "run"
    good("init", folder, "--data", clip_table, "--preset", "tiny")
    raw = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    raw["teachers"] = {key: raw["teachers"][key] for key in TEACHERS}
    for stage in ("proxies", "distill"):
        raw[stage]["train"] |= {"epochs": 1}
    raw["distill"] |= {"threshold": 1e9, "require_correct": False}  # so that they teach
    raw["merge"]["epochs"] = 1
    (folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    for command in ("extract-teachers", "train-proxies", "distill"):
        good(command, "--run", folder)
    for method, init in VARIANTS:
        good("distill", "--run", folder, "--method", method, "--init", init)
    return folder


def weights(run: Run, name: str) -> dict[str, torch.Tensor]:
    return load_file(run.variant_folder(name).path / "model" / "model.safetensors")


def test_they_live_side_by_side(run: Path) -> None:
    opened = Run.open(run)
    names = {f"{method}-{init}" for method, init in VARIANTS}
    assert set(opened.variants()) == names
    hashes = {hash_file(opened.variant_folder(n).path / "model" / "model.safetensors") for n in ("student", *names)}
    assert len(hashes) == len(names) + 1
    assert {path.name for path in (run / "distill").iterdir()} == {"merge", "student", "variants"}
    states = json.loads(good("status", "--run", run, "--json"))["stages"]["distill"]
    assert {name: entry["state"] for name, entry in states.items()} == dict.fromkeys(
        {"merge", "student"} | names, "done"
    )
    for method, init in VARIANTS:
        said = good("distill", "--run", run, "--method", method, "--init", init)
        assert f"student {method}-{init}: finished before" in said


def test_they_are_evaluated_by_name(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    good("evaluate", "--run", copy, "--model", "best-proxy-proxy:ego_dino")
    good("evaluate", "--run", copy, "--model", "naive-imagenet")
    assert {"naive-imagenet", "best-proxy-proxy:ego_dino"} <= set(
        json.loads(good("status", "--run", copy, "--json"))["stages"]["evaluate"]
    )
    for model, code, told in (
        ("ce-average", 1, "uniego distill --method ce --init average"),
        ("best", 2, "naive-imag"),
    ):
        result = CliRunner().invoke(cli.app, ["evaluate", "--run", str(copy), "--model", model])
        assert result.exit_code == code
        assert told in result.output


def test_teaching_is_recorded_where_proxies_teach(run: Path) -> None:
    opened = Run.open(run)
    taught = {name: read_teaching(opened.variant_folder(name).path) for name in ("student", *opened.variants())}
    assert taught["naive-imagenet"] == taught["ce-merged"] == []
    (spd,) = taught["student"]
    assert set(spd.proxies) == set(TEACHERS)
    assert spd.clips.sum() == 8
    assert spd.taught.sum() + spd.untaught.sum() == 8  # K = 1
    (everyone,) = taught["all-proxies-merged"]
    outputs = opened.table().split("train")
    assert everyone.taught.sum() == 3 * len(outputs)  # an ego video is enough for an output
    (best,) = taught["best-proxy-proxy:ego_dino"]
    assert len(best.proxies) == 1
    assert best.taught.sum() == 8


def test_starts(run: Path) -> None:
    proxies = [load_file(run / "proxies" / key / "model" / "model.safetensors") for key in TEACHERS]
    opened = Run.open(run)
    for name, tensor in average(opened, TEACHERS).items():
        torch.testing.assert_close(tensor, torch.stack([proxy[name] for proxy in proxies]).mean(0))
    wanted: dict[str, Callable[[str], torch.Tensor]] = {
        "merged": lambda name: load_file(run / "distill" / "merge" / "merged.safetensors")[name],
        "proxy:exo_skl": lambda name: proxies[0][name],
    }
    for init, of in wanted.items():
        started = initial_student(Run.open(run, [f"distill.init={init}"]), {"student": 48}, TEACHERS).state_dict()
        assert torch.equal(started["head.weight"], of("head.weight"))
        assert started["proj_layer.weight"].shape == (48, 48)
    fresh = initial_student(Run.open(run, ["distill.init=imagenet"]), {}, TEACHERS)
    assert not any(torch.equal(fresh.state_dict()["head.weight"], proxy["head.weight"]) for proxy in proxies)


def test_labels_alone_need_no_teacher(tmp_path: Path, clip_table: Path) -> None:
    good("init", tmp_path / "run", "--data", clip_table, "--preset", "tiny", "--set", "distill.train.epochs=1")
    said = good("distill", "--run", tmp_path / "run", "--method", "ce", "--init", "imagenet")
    assert "student.init is null" in said
    assert "evaluate --model ce-imagenet" in said
    assert (tmp_path / "run" / "distill" / "variants" / "ce-imagenet" / "model").is_dir()


def test_the_best_proxy_is_the_best_on_val_where_there_is_one(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    again = ["distill", "--run", copy, "--method", "best-proxy", "--init", "merged", "--overwrite"]
    assert "mean cross-entropy" in good(*again)
    for key, top1 in zip(TEACHERS, (30.0, 60.0, 60.0), strict=True):
        with (copy / "proxies" / key / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"epoch": 0, "validation": {"score": top1}}) + "\n")
    merge = hash_file(copy / "distill" / "merge" / "record.json")
    assert "the best proxy is ego_dino: top-1 60.0 on val" in good(*again)
    assert hash_file(copy / "distill" / "merge" / "record.json") == merge  # a variant leaves the merge as it is


def test_what_each_needs() -> None:
    for method in METHODS:
        for init in ("merged", "average", "imagenet", "proxy:b"):
            config = DistillConfig.model_validate({"method": method, "init": init})
            needed = needed_proxies(config, ["a", "b"])
            if method in ("ce", "naive") and init in ("imagenet", "proxy:b"):
                assert needed == (["b"] if init == "proxy:b" else [])
                assert needs_pool(config) == (method == "naive")
            else:
                assert needed == ["a", "b"]
                assert needs_pool(config)
    outside = DistillConfig.model_validate({"method": "spd", "init": "proxy:c"})
    assert needed_proxies(outside, ["a", "b"]) == ["a", "b", "c"]


def test_names_of_variants_are_understood() -> None:
    config = DistillConfig(top_k=2)
    for method in METHODS:
        for init in ("merged", "average", "imagenet", "proxy:ego_dino"):
            name = config.model_copy(update={"method": method, "init": init}).variant
            found = config.as_variant(name)
            assert found is not None
            assert (found.method, found.init, found.top_k, found.variant) == (method, init, 2, name)
    for name in ("spd-merged", "spd", "ce-", "naive-other", "proxy:ego_dino", "spd-proxy:", ""):
        assert config.as_variant(name) is None
    assert config.spd(["ego"]).select == "confident"
    assert config.model_copy(update={"method": "all-proxies"}).spd(["ego"]).select == "all"
    assert config.model_copy(update={"method": "random"}).spd(["ego"]).select == "random"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["--method", "best"], "distill.method"),
        (["--init", "nothing"], "distill.init"),
        (["--init", "proxy:nobody"], "nobody"),
        (["--set", "distill.exact_normaliser=true", "--set", "distill.normalise_over=micro_batch"], "exact_normaliser"),
    ],
)
def test_what_does_not_exist_is_refused(run: Path, settings: list[str], told: str) -> None:
    result = CliRunner().invoke(cli.app, ["distill", "--run", str(run), *settings])
    assert result.exit_code == 2
    assert told in result.output


def test_a_student_is_tied_to_the_rows_it_was_taught_from(run: Path, tmp_path: Path) -> None:
    """A clip whose output was not there is extracted later: the finished student is not taken for that of now."""
    copy = shutil.copytree(run, tmp_path / "run")
    opened = Run.open(copy)
    index = open_index(opened)
    store = FeatureStore.open(opened.cache_root / opened.proxy_folder("ego_dino").results["outputs"], index)
    row = int(index.rows(row_keys(opened, opened.table().split("train")))[0])
    shard = row // index.rows_per_shard
    rows = np.asarray(list(index.shard_rows(shard)))
    status = store.status(rows).copy()
    values = {name: store.read(rows, name)[0] for name in store.arrays}
    place = int(np.flatnonzero(rows == row)[0])
    status[place] = RowStatus.FAILED
    failure = Failure(opened.table().split("train")[0].clip_id, "truncated", "cut")
    store.redo(shard)
    store.write_shard(shard, values, status, [failure])
    result = CliRunner().invoke(cli.app, ["distill", "--run", str(copy)])
    assert result.exit_code == 5, result.output
    assert "outputs" in result.output
    states = json.loads(good("status", "--run", copy, "--json"))["stages"]["distill"]
    assert states["student"]["state"] == states["random-average"]["state"] == "stale"
    assert states["ce-merged"]["state"] == states["naive-imagenet"]["state"] == "done"


def test_weights_that_are_gone_are_told_with_what_to_do(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "distill/merge/merged.safetensors").unlink()
    (copy / "proxies/exo_skl/model/model.safetensors").unlink()
    for init, told in (("merged", "uniego distill --overwrite"), ("proxy:exo_skl", "train-proxies --teacher exo_skl")):
        with pytest.raises(MissingInputError, match=told):
            initial_student(Run.open(copy, [f"distill.init={init}"]), {}, TEACHERS)


def test_a_merge_that_is_no_number_is_not_recorded(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "proxies/exo_skl/model/model.safetensors"
    state = load_file(path)
    state["norm.bias"][0] = torch.nan
    save_file(state, path)
    again = ["distill", "--run", str(copy), "--overwrite", "--set", "merge.level=average"]
    result = CliRunner().invoke(cli.app, again)
    assert result.exit_code == 1, result.output
    assert "the merge" in result.output
    assert "norm.bias" in result.output
    assert json.loads((copy / "distill/merge/record.json").read_text())["state"] == "failed"
    assert not (copy / "distill/merge/merged.safetensors").exists()


def test_what_nothing_is_fitted_with_may_change(run: Path, tmp_path: Path) -> None:
    """The average does not depend on how a combination would be fitted; the learned one does."""
    copy = shutil.copytree(run, tmp_path / "run")
    average_level = ["--set", "merge.level=average"]
    good("distill", "--run", copy, "--overwrite", *average_level)
    changed = ["--set", "merge.lr=0.5", "--set", "merge.epochs=9"]
    assert "merge: finished before" in good("distill", "--run", copy, *average_level, *changed)
    shutil.copytree(run / "distill", copy / "distill", dirs_exist_ok=True)
    result = CliRunner().invoke(cli.app, ["distill", "--run", str(copy), *changed])
    assert result.exit_code == 5, result.output


def test_checkpoints_that_a_kill_left_behind_a_finished_merge_are_removed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    left = copy / "distill/merge/checkpoints/step-000000001"
    left.mkdir(parents=True)
    assert "merge: finished before" in good("distill", "--run", copy)
    assert not left.parent.exists()


def test_naive_is_the_mean_of_the_teachers_distances() -> None:
    """Over the clips with a target, per teacher; then over the teachers."""
    widths, classes, clips = {"a": 5, "b": 7}, 3, 4
    model = TimeSformer(16, 8, 2, 24, 2, 2, classes, widths, drop_path=0.0)
    path = Path("none.mp4")
    table = [Clip(f"c{i}", "train", i % classes, path, None, None, None, None, {}, {}) for i in range(clips)]
    g = torch.Generator().manual_seed(0)
    targets = {
        key: Targets(torch.randn(clips, width, generator=g), torch.arange(clips) % (place + 2) > 0)
        for place, (key, width) in enumerate(widths.items())
    }
    base = Supervised(model, table, 0, torch.device("cpu"))
    task = NaiveTask(TrainConfig(), ProxiesConfig(feature_weight=2.0), base, targets)
    videos = torch.randn(clips, 3, 2, 16, 16, generator=g)
    terms: dict[str, Any] = task.loss(Batch.of(range(clips), videos), 0)
    out = model(videos)
    distances = [
        (1 - F.cosine_similarity(out.projected[key], values))[present].mean()
        for key, (values, present) in targets.items()
    ]
    torch.testing.assert_close(terms["feature"], 2.0 * torch.stack(distances).mean())
    torch.testing.assert_close(terms["loss"], terms["ce"] + terms["feature"])
