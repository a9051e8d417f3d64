"""The grid of an ablation: a file that names arms, seeds, and what the arms are compared with."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ..errors import ConfigError, MissingInputError
from ..pipeline import yamltext
from ..pipeline.config import RunConfig, Section
from ..pipeline.configfile import with_overrides

SHARED = "shared"
"""Folder beside the grids that holds what their cells share."""
Metric = Literal["top1", "top5", "mean_class_accuracy"]
_FIXED = frozenset(
    {"schema_version", "preset", "seed", "data", "video", "cache", "teachers", "train_teachers", "extract"}
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+:-]{0,99}")
_OWN = ("teachers", "model")  # of an arm, beside fields of run.yaml
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class GridFile(Section):
    """What a grid file holds; see docs/ablations.md."""

    name: str
    """Name of the grid, and of its folder under RUN/ablate."""
    seeds: list[Seed] = Field(min_length=1)
    """Every arm is trained once with each."""
    baseline: str | None = None
    """The arm that the others are compared with, seed by seed; null: no comparison."""
    metric: Metric = "top1"
    """What is compared, percent on the test split."""
    arms: dict[str, dict[str, Any] | None] = Field(default={})
    """By name: fields of run.yaml (dotted) and their values; besides `teachers`, a part of the pool, and `model`."""
    grid: dict[str, list[Any]] = Field(default={})
    """By field (dotted, or `teachers`, or `model`) its values: every combination is an arm."""


@dataclass(frozen=True)
class Arm:
    """One way of training. `overrides` as after --set; `teachers`: part of the pool, None for all.

    `model` is what is trained and evaluated: "student", "ego-only" or "proxy:<teacher>".
    """

    name: str
    overrides: tuple[str, ...] = ()
    teachers: tuple[str, ...] | None = None
    model: str = "student"

    def __str__(self) -> str:
        """Its name and what it changes."""
        changes = [*self.overrides]
        changes += [] if self.teachers is None else [f"teachers={'+'.join(self.teachers)}"]
        changes += [] if self.model == "student" else [f"model={self.model}"]
        return f"{self.name}: {', '.join(changes) or 'as in run.yaml'}"

    def config(self, base: RunConfig, seed: int) -> RunConfig:
        """The run's configuration with what the arm changes. Raises `ConfigError`."""
        if self.teachers is not None:
            pool = {key: base.teachers[key] for key in base.teachers if key in self.teachers}
            base = base.model_copy(update={"teachers": pool})
        return with_overrides(base, [*self.overrides, f"seed={seed}"])


@dataclass(frozen=True)
class Grid:
    """Arms times seeds."""

    name: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    baseline: str | None
    metric: Metric


def read_grid(path: Path, config: RunConfig) -> Grid:
    """The grid in a file, its product expanded and every arm tried on the run's configuration.

    Raises `MissingInputError` without the file, `ConfigError` that says which field or arm cannot be used.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; docs/ablations.md says what a grid file holds")
    try:
        raw = yamltext.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected the fields {', '.join(GridFile.model_fields)}")
    try:
        file = GridFile.model_validate(raw)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        known = f"known fields: {', '.join(GridFile.model_fields)}"
        raise ConfigError("\n  ".join([f"{path}: this is no grid ({known}):", *problems])) from None
    arms = [
        *(_arm(path, name, fields or {}, config) for name, fields in file.arms.items()),
        *(_arm(path, name, fields, config) for name, fields in _product(path, file.grid)),
    ]
    _check(path, file, arms, config)
    return Grid(file.name, tuple(file.seeds), tuple(arms), file.baseline, file.metric)


def _product(path: Path, grid: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and fields of all combinations; a field is called by its last word where that is no other's, too."""
    for field, values in grid.items():
        if not values:
            raise ConfigError(f"{path}: grid.{field} has no values")
    if not grid:
        return
    last = [field.rpartition(".")[2] for field in grid]
    short = dict(zip(grid, last if len(set(last)) == len(last) else grid, strict=True))
    for values in itertools.product(*grid.values()):
        fields = dict(zip(grid, values, strict=True))
        yield ",".join(f"{short[field]}={_text(value)}" for field, value in fields.items()), fields


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return value if isinstance(value, str) else yamltext.scalar(value)


def _arm(path: Path, name: str, fields: Mapping[str, Any], config: RunConfig) -> Arm:
    where = f"{path}: arm {name!r}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: names an arm's folder: at most 100 letters, digits and _ . , = + : -")
    for field in fields:
        if field not in _OWN and field.partition(".")[0] in _FIXED:
            raise ConfigError(
                f"{where}: {field} is the same for all cells, which share the run's clips and features; change it in "
                "run.yaml of a run of its own (seeds are listed under `seeds`)"
            )
    overrides = tuple(f"{field}={yamltext.scalar(value)}" for field, value in fields.items() if field not in _OWN)
    arm = Arm(name, overrides, _teachers(where, fields, config), _model(where, fields, config))
    try:
        arm.config(config, 0)
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix('--set').lstrip(': ')}") from None
    return arm


def _teachers(where: str, fields: Mapping[str, Any], config: RunConfig) -> tuple[str, ...] | None:
    if "teachers" not in fields:
        return None
    named = fields["teachers"]
    if not isinstance(named, list) or not named or not all(isinstance(key, str) for key in named):
        raise ConfigError(f"{where}: teachers should be a list of names, such as [ego_dino, exo_rgb], not {named!r}")
    unknown = [key for key in named if key not in config.teachers]
    if unknown:
        raise ConfigError(f"{where}: unknown teacher {', '.join(unknown)}; the pool has {', '.join(config.teachers)}")
    return tuple(key for key in config.teachers if key in named)


def _model(where: str, fields: Mapping[str, Any], config: RunConfig) -> str:
    model = fields.get("model", "student")
    models = ["student", "ego-only", *(f"proxy:{key}" for key in fields.get("teachers", config.teachers))]
    if model not in models:
        raise ConfigError(f"{where}: unknown model {model!r}; use one of {', '.join(models)}")
    return str(model)


def _check(path: Path, file: GridFile, arms: Sequence[Arm], config: RunConfig) -> None:
    """Refuse what no table could be made of."""
    if not _NAME.fullmatch(file.name) or file.name == SHARED:
        raise ConfigError(
            f"{path}: name {file.name!r} names a folder: letters, digits and _ . , = + : -, and not {SHARED!r}"
        )
    if not arms:
        raise ConfigError(f"{path}: no arm; name some under `arms`, or values of fields under `grid`")
    if len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"{path}: seeds {file.seeds} occur twice")
    names = [arm.name for arm in arms]
    seen: dict[str, str] = {}
    for place, arm in enumerate(arms):
        if arm.name in names[:place]:
            raise ConfigError(f"{path}: two arms are called {arm.name!r}")
        settings = f"{arm.model} {arm.config(config, 0).model_dump_json()}"
        if settings in seen:
            raise ConfigError(f"{path}: arms {seen[settings]!r} and {arm.name!r} are the same settings; take one out")
        seen[settings] = arm.name
    if file.baseline is not None and file.baseline not in names:
        raise ConfigError(f"{path}: baseline {file.baseline!r} is no arm; arms: {', '.join(names)}")
