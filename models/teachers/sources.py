"""Where a teacher's weights come from, as one line of text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError

SourceKind = Literal["hub", "dir", "file", "random"]

FORMS = "hub:<id>, hub:<id>@<revision>, dir:<folder written by save_pretrained>, file:<checkpoint> or random:<seed>"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class WeightsSource:
    """One parsed weights line.

    `location` is a hub id, a folder, a file, or a seed as text. `revision` is a branch, tag or commit of the
    hub, and None everywhere else.
    """

    kind: SourceKind
    location: str
    revision: str | None = None

    @property
    def seed(self) -> int:
        """The seed of a `random:` source."""
        return int(self.location)

    def __str__(self) -> str:
        return f"{self.kind}:{self.location}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str) -> WeightsSource:
    """Read `hub:<id>[@<revision>]`, `dir:<path>`, `file:<path>` or `random:<seed>`.

    Raises `ConfigError` for anything else, a path without its prefix included; nothing is opened or fetched.
    """
    kind, colon, rest = text.partition(":")
    rest = rest.strip()
    if not colon or kind not in {"hub", "dir", "file", "random"} or not rest:
        raise ConfigError(f"weights {text!r}: expected {FORMS}")
    if kind == "hub":
        return _parse_hub(text, rest)
    if kind == "random":
        return _parse_random(text, rest)
    return WeightsSource("dir" if kind == "dir" else "file", rest)


def _parse_hub(text: str, rest: str) -> WeightsSource:
    location, at, revision = rest.partition("@")
    if not _HUB_ID.fullmatch(location) or (at and not revision):
        raise ConfigError(f"weights {text!r}: expected hub:<owner>/<name> or hub:<owner>/<name>@<revision>")
    return WeightsSource("hub", location, revision or None)


def _parse_random(text: str, rest: str) -> WeightsSource:
    if not re.fullmatch(r"[0-9]+", rest) or int(rest) > _MAX_SEED:
        raise ConfigError(f"weights {text!r}: expected random:<seed> with a whole number from 0 to {_MAX_SEED}")
    return WeightsSource("random", str(int(rest)))
