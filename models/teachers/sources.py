"""Where a teacher's weights come from, as one line of text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ConfigError

SourceKind = Literal["hub", "dir", "file", "random"]

SHIPPED = Path(__file__).parents[2] / "demo" / "weights"
"""The demo's small networks: `demo:<network>` is a folder in here, wherever the package lies."""

FORMS = (
    "hub:<id>, hub:<id>@<revision>, dir:<folder written by save_pretrained>, file:<checkpoint>, demo:<network> or "
    "random:<seed>"
)
_SINGLE_FILES = ("timesformer", "timesformer12", "stgcn", "stgcn12")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class WeightsSource:
    """One parsed weights line.

    `location` is a hub id, a folder, a file, or a seed as text. `revision` is a branch, tag or commit of the
    hub, and None everywhere else. `shipped` is the name of one of the demo's networks, which come with the package;
    kind and location then say where they lie on this machine.
    """

    kind: SourceKind
    location: str
    revision: str | None = None
    shipped: str | None = None

    @property
    def seed(self) -> int:
        """The seed of a `random:` source."""
        return int(self.location)

    def __str__(self) -> str:
        if self.shipped:
            return f"demo:{self.shipped}"
        return f"{self.kind}:{self.location}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str) -> WeightsSource:
    """Read `hub:<id>[@<revision>]`, `dir:<path>`, `file:<path>`, `demo:<network>` or `random:<seed>`.

    Raises `ConfigError` for anything else, a path without its prefix included; nothing is opened or fetched.
    """
    kind, colon, rest = text.partition(":")
    rest = rest.strip()
    if not colon or kind not in {"hub", "dir", "file", "demo", "random"} or not rest:
        raise ConfigError(f"weights {text!r}: expected {FORMS}")
    if kind == "hub":
        return _parse_hub(text, rest)
    if kind == "random":
        return _parse_random(text, rest)
    if kind == "demo":
        return _parse_demo(text, rest)
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


def _parse_demo(text: str, rest: str) -> WeightsSource:
    if not re.fullmatch(r"[a-z0-9_]+", rest) or not (SHIPPED / rest).is_dir():
        known = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
        raise ConfigError(f"weights {text!r}: expected demo:<network>, one of {', '.join(known)}")
    if rest in _SINGLE_FILES:
        return WeightsSource("file", str(SHIPPED / rest / "model.safetensors"), shipped=rest)
    return WeightsSource("dir", str(SHIPPED / rest), shipped=rest)
