from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from uniego.models.teachers import TeacherConfig, tiny_teachers
from uniego.pipeline.config import (
    AugmentConfig,
    DistillConfig,
    RunConfig,
    ScheduleConfig,
    SPDConfig,
    StudentConfig,
    TrainConfig,
)


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [f.annotation for f in model.model_fields.values()]
    found = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
    return [model, *(deeper for a in found for deeper in sections(a))]


@pytest.mark.parametrize("model", list(dict.fromkeys((*sections(RunConfig), TeacherConfig, SPDConfig))))
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        inner = field.annotation
        own = inner.__doc__ if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        assert field.description or own, f"{model.__name__}.{name}"


@pytest.mark.parametrize("model", list(dict.fromkeys(sections(RunConfig))))
def test_defaults_are_what_a_strict_reader_makes_of_them(model: type[BaseModel]) -> None:
    arguments: dict[str, Any] = {"teachers": tiny_teachers()} if model is RunConfig else {}
    config = model(**arguments)
    assert repr(model.model_validate(config.model_dump())) == repr(config)


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (TrainConfig, {"global_batch": 10, "micro_batch": 4}, "must divide global_batch"),
        (TrainConfig, {"epochs": "3"}, "valid integer"),
        (TrainConfig, {"epochs": True}, "valid integer"),
        (TrainConfig, {"epochs": 0}, "greater than or equal to 1"),
        (StudentConfig, {"heads": 5}, "must divide width"),
        (StudentConfig, {"image_size": 8}, "smaller than patch_size"),
        (AugmentConfig, {"short_side": [320, 256]}, r"must be \[least, most\]"),
        (ScheduleConfig, {"steps": [0, 1], "factors": [1.0]}, "2 entries, factors 1"),
        (ScheduleConfig, {"steps": [1, 2, 3]}, "must start at 0"),
        (RunConfig, {"teachers": {}}, "at least 1 item"),
        (RunConfig, {"teachers": tiny_teachers(), "seed": -1}, "greater than or equal to 0"),
        (
            RunConfig,
            {"teachers": tiny_teachers(), "augment": AugmentConfig(short_side=[200, 300])},
            "must be at least student.image_size",
        ),
    ],
)
def test_refused(model: type[BaseModel], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**fields)


def test_the_loss_gets_views_only_when_the_choice_is_made_per_view() -> None:
    assert DistillConfig(top_k=2).spd(["ego", "exo"]) == SPDConfig(top_k=2)
    grouped = DistillConfig(by_view=True, threshold=3.0).spd(["ego", "exo"])
    assert (grouped.threshold, grouped.group_by_view) == (3.0, ["ego", "exo"])
    assert SPDConfig(group_by_view=("exo", "ego")).group_by_view == ("exo", "ego")
    with pytest.raises(ValidationError):
        SPDConfig(group_by_view=["top"])
