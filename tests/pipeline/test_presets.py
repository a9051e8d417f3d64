from __future__ import annotations

import pytest
from uniego.errors import UsageError
from uniego.models.teachers import TEACHERS
from uniego.pipeline.presets import PRESETS, preset

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
