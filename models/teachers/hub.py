"""Fetching published weights into the local hub cache, and verifying what lies there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from ...errors import WeightsError
from .local import WEIGHT_FILES, LocalWeights, local_source
from .sources import WeightsSource

_TIMEOUT = 20.0  # seconds until the hub must have answered
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubUnreachable(WeightsError):
    """The hub does not answer, or must not be asked."""


class HubModel(NamedTuple):
    """A published model's files as the hub lists them: commit, names to fetch, and their bytes together."""

    commit: str
    names: list[str]
    size: int


def ask_hub(source: WeightsSource) -> HubModel:
    """What there is to fetch: config.json and one form of the weights, safetensors before pickles.

    Raises `WeightsError` with the hub's reason, `HubUnreachable` when there is none to reach.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(source.location, revision=source.revision, files_metadata=True, timeout=_TIMEOUT)
    except Exception as error:  # whatever the network and the hub's client raise
        raise _told(error) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    form = next((name for name in WEIGHT_FILES if name in sizes), None)
    if form is None or "config.json" not in sizes:
        raise WeightsError(f"{source}: no config.json with {' or '.join(WEIGHT_FILES[::2])} among its files")
    names = ["config.json", form]
    if form.endswith(".index.json"):
        stem, suffix = form.removesuffix(".index.json").rsplit(".", 1)
        names += sorted(name for name in sizes if name.startswith(f"{stem}-") and name.endswith(f".{suffix}"))
    return HubModel(str(info.sha), names, sum(sizes[name] for name in names))


def fetch_model(source: WeightsSource, model: HubModel) -> LocalWeights:
    """Download a model into the hub cache and verify it. Raises `WeightsError`; what was fetched so far is kept."""
    from huggingface_hub import hf_hub_download

    try:
        for name in model.names:
            hf_hub_download(source.location, name, revision=source.revision)
    except Exception as error:
        raise _told(error) from error
    found = local_source(source)
    if not found.ready:
        raise WeightsError(f"{source}: fetched, but {found.why}")
    verify(found)
    return found


def verify(weights: LocalWeights) -> int:
    """Check a saved model's files and return their bytes.

    Files in the hub's cache are compared with the SHA-256 that they are stored under; `.safetensors` must be as long
    as their header says. Raises `WeightsError` naming the file.
    """
    for path in weights.files:
        stored_as = path.resolve().name
        if _SHA256.fullmatch(stored_as) and _sha256(path) != stored_as:
            raise WeightsError(f"{path}: damaged, its content is not what the hub gave; remove {path.resolve()}")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt") as stored:
                    stored.keys()
            except SafetensorError as error:
                raise WeightsError(f"{path}: damaged ({error}); remove it and fetch it again") from error
    return sum(path.stat().st_size for path in weights.files)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _told(error: Exception) -> WeightsError:
    """The first line of what the hub's client says, or what kind of error it is."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if isinstance(error, HfHubHTTPError | HFValidationError):
        return WeightsError(line)
    return HubUnreachable("HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else line)
