"""Reading and writing run.yaml: strict, with errors that name the field, and every field documented."""

from __future__ import annotations

import copy
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, MissingInputError
from ..models.teachers import TeacherConfig
from . import files, yamltext
from .config import RunConfig

_HEADER = """\
Configuration of a uniego run. A field left out takes its default; an unknown field is refused.
A command changes a field for itself with --set, for instance --set distill.train.epochs=3;
`uniego config show` prints what is in force.
"""
_WIDTH = 100


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run.yaml and apply overrides of the form `a.b=value`, the value in YAML.

    Raises `ConfigError` listing every field that is unknown, of the wrong type or out of range, and
    `MissingInputError` when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; `uniego init DIR --data TABLE --preset NAME` writes one, "
            "and -r DIR names its folder"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    raw = yamltext.parse(text, str(path))
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds {_kind(raw)}"
        raise ConfigError(f"{path}: {what}; expected fields such as data, teachers and student")
    return _build(raw, overrides, str(path))


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration with overrides `a.b=value` applied; raises `ConfigError` as `load_config` does."""
    return _build(config.model_dump(), overrides, "--set") if overrides else config


def dump_config(config: RunConfig, notes: Mapping[str, str] | None = None) -> str:
    """The configuration as YAML, every field below its documentation; `load_config` gives it back.

    `notes` are further comments by dotted name (""; the head of the file); a name of no field is a `KeyError`.
    """
    left = dict(notes or {})
    lines = [f"# {line}" for line in _HEADER.splitlines()]
    lines.extend(_comment(left.pop("", ""), ""))
    lines.append("")
    _dump_section(config, 0, lines, left)
    if left:
        raise KeyError(f"no such fields: {', '.join(left)}")
    return "\n".join(lines) + "\n"


def write_config(path: str | Path, config: RunConfig, notes: Mapping[str, str] | None = None) -> None:
    """Write `dump_config(config, notes)` atomically."""
    files.write_bytes(Path(path), dump_config(config, notes).encode())


def _build(raw: Mapping[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    changed = copy.deepcopy(dict(raw))
    for override in overrides:
        _apply(changed, override)
    try:
        return RunConfig.model_validate(changed)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors(include_url=False)]
    if len(problems) == 1:
        raise ConfigError(f"{where}: {problems[0]}")
    raise ConfigError("\n  ".join([f"{where}: {len(problems)} fields cannot be used:", *problems]))


def _apply(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {override}: expected a field and a value, such as --set distill.train.epochs=3")
    value = yamltext.parse(text, f"--set {override}")
    section = raw
    for depth, name in enumerate(names[:-1], 1):
        if names[0] == "teachers" and depth == 2 and name not in section:
            known = ", ".join(section)
            raise ConfigError(f"--set {override}: no teacher {name!r}{_near(name, section)}; the pool has {known}")
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {'.'.join(names[:depth])} has no fields of its own")
    section[names[-1]] = value


def _explain(problem: Any) -> str:
    """One pydantic problem as `dotted.name: what is wrong`."""
    place = tuple(problem["loc"])
    dotted = ".".join(map(str, place))
    if problem["type"] == "extra_forbidden":
        names = _fields_at(place[:-1])
        return f"{dotted}: unknown field{_near(str(place[-1]), names) or '; here are ' + ', '.join(names)}"
    if problem["type"] == "missing":
        return f"{dotted}: missing; this field has no default"
    if problem["type"] in {"model_type", "dict_type", "model_attributes_type"}:
        return f"{dotted}: {_shown(problem['input'])} should be a section with fields of its own"
    message = (
        str(problem["msg"])
        .removeprefix("Value error, ")
        .replace("Input should", "should")
        .replace(" after validation", "")
    )
    if problem["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {_shown(problem['input'])} {message[:1].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"only {_shown(value)}"


def _near(name: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields_at(place: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at a place of the configuration."""
    model: type[BaseModel] = RunConfig
    for name in place:
        if model is RunConfig and name == "teachers":
            model = TeacherConfig
        elif (field := model.model_fields.get(str(name))) is not None:
            inner = field.annotation
            model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    return list(model.model_fields)


def _dump_section(section: BaseModel, depth: int, lines: list[str], notes: dict[str, str], place: str = "") -> None:
    """Lines of a section whose fields begin with `place`; takes the notes that it writes out of `notes`."""
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines.extend(_comment(field.description or type(value).__doc__ or "", indent))
            lines.append(f"{indent}{name}:")
            _dump_section(value, depth + 1, lines, notes, f"{place}{name}.")
        elif name == "teachers":
            lines.extend(_comment(field.description or "", indent))
            _dump_teachers(value, lines)
        else:
            lines.extend(_comment(field.description or "", indent))
            lines.extend(_comment(notes.pop(f"{place}{name}", ""), indent))
            lines.append(f"{indent}{name}: {yamltext.scalar(value)}")
        if depth == 0:
            lines.append("")


def _dump_teachers(teachers: Mapping[str, TeacherConfig], lines: list[str]) -> None:
    """The pool: the fields' documentation once, then every teacher with all of its fields."""
    lines.append("#")
    lines.extend(_comment(_first_paragraph(TeacherConfig.__doc__), ""))
    for name, field in TeacherConfig.model_fields.items():
        text = " ".join((field.description or "").split())
        lines.extend(textwrap.wrap(f"{name}: {text}", _WIDTH, initial_indent="#   ", subsequent_indent="#     "))
    lines.append("teachers:")
    for key, teacher in teachers.items():
        lines.append(f"  {yamltext.scalar(key)}:")
        lines.extend(f"    {name}: {yamltext.scalar(getattr(teacher, name))}" for name in TeacherConfig.model_fields)


def _first_paragraph(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0]


def _comment(text: str, indent: str) -> list[str]:
    words = " ".join(_first_paragraph(text).split())
    prefix = f"{indent}# "
    return textwrap.wrap(words, _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False)
