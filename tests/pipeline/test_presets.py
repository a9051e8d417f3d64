from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import uniego
from uniego.errors import UsageError
from uniego.models.teachers import TEACHERS
from uniego.pipeline.configfile import load_config, with_overrides, write_config
from uniego.pipeline.outlook import gpu_hours, stage_flops
from uniego.pipeline.presets import PRESETS, RELEASE, RESULTS, notes, preset, value_of

# classes, K, w_f, w_l, test views, crops
PUBLISHED = {
    "egoexo_fitness": (12, 1, 5.0, 1.0, 1, 3),
    "assembly101": (24, 1, 5.0, 5.0, 1, 3),
    "egoexo4d": (665, 2, 5.0, 1.0, 10, 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipe(name: str) -> None:
    config = preset(name)
    spd, test = config.distill, config.evaluate
    numbers = (spd.top_k, spd.feature_weight, spd.logit_weight, test.views, test.crops)
    assert (config.data.num_classes, *numbers) == PUBLISHED[name]
    assert (spd.threshold, spd.require_correct, spd.select, spd.by_view) == (4.0, True, "confident", False)
    assert (config.proxies.feature_weight, config.proxies.feature_distance) == (1.0, "cosine")
    assert (config.merge.level, config.merge.lr, config.merge.epochs) == ("model", 0.01, 2)
    assert (config.sampling.policy, config.sampling.rate, config.seed) == ("fit", 32, 0)
    assert config.student.init is not None
    assert list(config.teachers) == list(TEACHERS)
    for train in (config.proxies.train, config.distill.train):
        assert (train.epochs, train.global_batch, train.micro_batch) == (15, 64, 8)
        optimizer = train.optimizer
        assert (optimizer.lr, optimizer.momentum, optimizer.nesterov) == (0.005, 0.9, True)
        assert optimizer.weight_decay == 1e-4
        assert (train.schedule.steps, train.schedule.factors) == ([0, 11, 14], [1.0, 0.1, 0.01])
    student = config.student
    assert (student.image_size, student.patch_size, student.num_frames) == (224, 16, 8)
    assert (student.width, student.depth, student.heads, student.drop_path) == (768, 12, 12, 0.1)
    augment = config.augment
    assert (augment.short_side, augment.flip, augment.mean, augment.std) == ([256, 320], 0.5, 0.45, 0.225)
    assert test.single_short_side == 256
    assert config.compute.precision == "fp32"


def test_assembly101_reads_the_hands_that_it_has() -> None:
    pool = preset("assembly101").teachers
    graph = pool["exo_skl"].own_graph
    assert graph is not None
    assert (graph.joints, pool["exo_skl"].pose_dims, pool["exo_skego"].crop) == (21, 3, None)


def test_tiny_says_that_it_is_random() -> None:
    config = preset("tiny")
    assert list(config.teachers) == list(TEACHERS)
    assert all(teacher.allow_random for teacher in config.teachers.values())
    assert len({teacher.weights for teacher in config.teachers.values()}) == len(TEACHERS)
    assert config.student.init is None


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_carries_its_name(name: str) -> None:
    assert preset(name).preset == name


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match="did you mean 'egoexo4d'"):
        preset("egoexo4")


@pytest.mark.parametrize("name", ["egoexo_fitness", "assembly101", "egoexo4d", "tiny"])
def test_the_release_differs_in_the_listed_fields_alone(name: str) -> None:
    default, release = flat(preset(name).model_dump()), flat(preset(f"{name}-release").model_dump())
    different = {key: release[key] for key in default | release if default.get(key) != release.get(key)}
    assert different.pop("preset") == f"{name}-release"
    assert {key: str(value) for key, value in different.items()} == {key: value for key, (value, _) in RELEASE.items()}
    assert release["compute.precision"] == "fp32"


def flat(section: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Values by dotted name."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {f"{place}{name}": value}
    return found


@pytest.mark.parametrize("name", [f"{name}{variant}" for name in PUBLISHED for variant in ("", "-release")])
def test_sources_are_comments_of_the_written_file(name: str, tmp_path: Path) -> None:
    config = with_overrides(preset(name), ["distill.top_k=7"])
    write_config(tmp_path / "run.yaml", config, notes(name, config))
    lines = (tmp_path / "run.yaml").read_text(encoding="utf-8").splitlines()
    assert load_config(tmp_path / "run.yaml") == config
    assert "# Source:" in lines[lines.index("  threshold: 4.0") - 1]
    assert "Source" not in lines[lines.index("  top_k: 7") - 1]  # it is the preset's no more
    assert str(RESULTS[name.removesuffix("-release")][0]) in "\n".join(lines[:6])
    assert ("# As released:" in "\n".join(lines)) == name.endswith("-release")


def test_the_page_lists_the_real_differences() -> None:
    page = (Path(uniego.__file__).parent / "docs" / "differences.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \| `([\w.]+)` \| (.+) \|$", page, re.M)
    default = preset("egoexo4d")
    real = {key: (str(value_of(default, key)), value) for key, (value, _) in RELEASE.items()}
    assert {key: (ours, theirs) for key, ours, theirs, _ in table} == real
    assert all(why.strip() for *_, why in table)


def test_cost_by_operation_counts() -> None:
    """Per training pair, TFLOP: 29.9 extraction, 158.6 + 3.5 proxies, 2.4 + 17.6 the student (and 17.6 exo_rgb)."""
    cost = {stage: flops / 1e12 for stage, flops in stage_flops(preset("assembly101"), 1, 1).items()}
    assert cost["extract-teachers"] == pytest.approx(2 * 29.9, rel=0.01)  # test clips have features, too
    assert cost["train-proxies"] == pytest.approx(158.6 + 3.5, rel=0.01)
    assert cost["distill"] == pytest.approx(17.6 + 2.4, rel=0.01)
    assert cost["train-teacher"] == pytest.approx(17.6, rel=0.01)
    assert cost["evaluate"] == pytest.approx(3 * 0.3917, rel=0.01)
    total = sum(cost.values()) * 1e12
    assert gpu_hours(preset("assembly101"), 1, 1, "bf16") == pytest.approx(total / (790e12 * 0.45) / 3600)


@pytest.mark.parametrize("name", ["egoexo_fitness", "assembly101", "egoexo4d"])
def test_the_page_of_differences_states_the_computed_cost(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "differences.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| .*`{name}`.* \| ([\d., ]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    config = preset(name)
    operations = stage_flops(config, 1000, 1000).values()
    hours = (gpu_hours(config, 1000, 1000, precision) for precision in ("bf16", "fp32"))
    assert row == (", ".join(f"{count / 1e15:.1f}" for count in operations), *(f"{one:.2f}" for one in hours))
