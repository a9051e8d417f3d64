"""A run that is made from another one: settings and results of its own, the other's table, features and teachers.

Its folder holds a file derived.json beside run.yaml. Relative paths in its run.yaml start from the other run's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import IntegrityError
from . import files

NAME = "derived.json"


@dataclass(frozen=True)
class Origin:
    """What a derived run has from elsewhere.

    `base`: folder of the run that it is made from. `places`: pieces of work that several derived runs share, by their
    usual place in a run ("proxies/ego_dino", "distill/merge"); where they lie, from `base`.
    """

    base: Path
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Origin | None:
        """The origin of the run in a folder; None: it is made from no other. Raises `IntegrityError`."""
        path = directory / NAME
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(Path(os.path.normpath(directory / stored["base"])), dict(stored["places"]))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path} cannot be read ({error}): make the run anew") from error

    def write(self, directory: Path) -> None:
        """Keep it with the run in `directory`, which lies below `base` and may move together with it."""
        base = os.path.relpath(self.base, directory)
        files.write_json(directory / NAME, {"base": base, "places": dict(self.places)})
