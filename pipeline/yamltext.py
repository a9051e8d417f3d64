"""YAML as the configuration needs it: the core schema of YAML 1.2, safe, and strict about keys.

Differences from PyYAML's defaults: `1e-4` is a number; `yes`, `on`, `1:30` and dates are text; a key
that occurs twice, an alias, or a tag that would build a Python object is refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..errors import ConfigError

_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
)


_UNICODE_BREAKS = "\x85\u2028\u2029"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not used here", problem_mark=mark)
        return super().compose_node(parent, index)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        """A mapping of text keys, each of which occurs once."""
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a collection"
                raise yaml.MarkedYAMLError(problem=f"key {shown!r} is not a name", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"key {key.value!r} occurs twice, in lines {seen[key.value]} and {line}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = line
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def integer(self, node: yaml.ScalarNode) -> int:
        """Decimal with leading zeros allowed, 0o17 or 0x1f."""
        text = str(node.value)
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text, 10)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _RESOLVERS:
    letters = [*_first, ""] if "null" in _tag else list(_first)
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), letters)
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), letters)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)


def parse(text: str, where: str) -> Any:
    """The one YAML document in `text`; raises `ConfigError` that begins with `where` and names the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(f"{where}:{line} {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply") from None
    except (ValueError, TypeError, AttributeError) as error:  # a tag such as !!int before something else
        raise ConfigError(f"{where}: a value cannot be read as its tag says: {error}") from None


def scalar(value: Any) -> str:
    """A value on one line (mappings and lists in flow style), so that `parse` gives the same value back."""
    text = _dump(value, allow_unicode=True)
    if any(mark in text for mark in _UNICODE_BREAKS):  # they would read back as spaces
        text = _dump(value, allow_unicode=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _dump(value: Any, *, allow_unicode: bool) -> str:
    return yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=2**31, allow_unicode=allow_unicode, sort_keys=False
    )
