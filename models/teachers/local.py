"""Which weights are on this machine, told from their files alone: no network is built, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UniegoError
from .config import PRECOMPUTED, TeacherConfig
from .own import teacher_class
from .sources import WeightsSource
from .stored import open_stored

# What a saved model's weights may be called, in the order in which transformers takes them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class LocalWeights(NamedTuple):
    """What there is of a teacher's weights: `why` they are not ready, or "" when they are.

    `files` are those of a saved model, config.json first; `commit` the hub's, where they came from there.
    """

    why: str = ""
    files: tuple[Path, ...] = ()
    commit: str | None = None

    @property
    def ready(self) -> bool:
        """Whether all files are here."""
        return not self.why

    @property
    def settings(self) -> dict[str, Any] | None:
        """The saved model's config.json, None without one that can be read."""
        if not self.files:
            return None
        try:
            settings = json.loads(self.files[0].read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return settings if isinstance(settings, dict) else None


def local_weights(key: str, config: TeacherConfig) -> LocalWeights:
    """Look for the weights (or stored features, or class) that a teacher is configured with."""
    try:
        if config.is_own:
            teacher_class(key, config.network)
        source = config.source
        if source is None:
            return LocalWeights("" if config.is_own else f"no weights are set (teachers.{key}.weights)")
        if config.network == PRECOMPUTED:
            open_stored(source.location, key)
            return LocalWeights()
        if config.is_own and source.kind == "dir":  # laid out as its class likes
            there = Path(source.location).expanduser().is_dir()
            return LocalWeights("" if there else f"{source.location}: no such folder")
    except UniegoError as error:
        return LocalWeights(str(error))
    return local_source(source)


def local_source(source: WeightsSource) -> LocalWeights:
    """Look for the files of a source of weights."""
    path = Path(source.location).expanduser()
    if source.kind == "file":
        return LocalWeights("" if path.is_file() else f"{path}: no such file")
    if source.kind == "dir":
        found = saved_model(lambda name: path / name if (path / name).is_file() else None)
        return found._replace(why=f"{path}: {found.why}" if found.why else "")
    return _in_hub_cache(source) if source.kind == "hub" else LocalWeights()


def hub_commit(source: WeightsSource) -> str | None:
    """The hub's commit of weights that lie in its local cache; None for any that came another way.

    transformers 5 no longer tells it.
    """
    return local_source(source).commit if source.kind == "hub" else None


def _in_hub_cache(source: WeightsSource) -> LocalWeights:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def find(name: str) -> Path | None:
        path = try_to_load_from_cache(source.location, name, revision=source.revision)
        return Path(path) if isinstance(path, str) else None

    try:
        found = saved_model(find)
    except HFValidationError as error:
        return LocalWeights(f"{source}: no id of the hub: {error}")
    if not found.ready:
        return found._replace(why=f"not in the local hub cache: {found.why}")
    return found._replace(commit=found.files[0].parent.name)


def saved_model(find: Callable[[str], Path | None]) -> LocalWeights:
    """The files of a model as `save_pretrained` writes them; `find` gives the path of a name, or None."""
    config = find("config.json")
    if config is None:
        return LocalWeights("config.json is missing")
    for name in WEIGHT_FILES:
        path = find(name)
        if path is None:
            continue
        if not name.endswith(".index.json"):
            return LocalWeights(files=(config, path))
        try:
            parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            return LocalWeights(f"{name} cannot be read: {error!r}", (config,))
        found = [find(part) for part in parts]
        missing = [part for part, there in zip(parts, found, strict=True) if there is None]
        if missing:
            return LocalWeights(f"{', '.join(missing)} of {len(parts)} parts missing", (config,))
        return LocalWeights(files=(config, path, *(there for there in found if there is not None)))
    return LocalWeights(f"no weights beside config.json ({' or '.join(WEIGHT_FILES[::2])})", (config,))
