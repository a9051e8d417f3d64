"""Where things are computed, and with what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache import FeatureStore
from ..cache.manifest import MANIFEST, Manifest
from ..errors import ConfigError, FingerprintMismatch, fingerprint_difference
from ..pipeline import files
from ..pipeline.config import ComputeConfig, RunConfig
from ..pipeline.launch import place
from ..pipeline.progress import count, say, warn


def resolve_device(config: ComputeConfig) -> torch.device:
    """The device of a run; of processes that torchrun started, each has its own GPU.

    Raises `ConfigError` for one that is not there.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"compute.device {name!r} is no device: use auto, cpu, cuda or cuda:N") from error
    here = place()
    if here.world > 1 and device.type == "cuda":
        if name != "cuda":
            raise ConfigError(f"compute.device {name} is one GPU, but {here.world} processes need one each: use cuda")
        device = torch.device("cuda", here.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"compute.device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError("compute.precision fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return device


def prepare(config: ComputeConfig) -> torch.device:
    """Set the number of threads and return the device."""
    device = resolve_device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return device


def take_threads(config: ComputeConfig, device: torch.device, stores: Sequence[Path]) -> None:
    """On a CPU without `compute.threads`: as many threads as these stores' first shards were computed with.

    Nodes with other numbers of cores give the same bytes then. Stores that are not there, or disagree, decide nothing.
    """
    if config.threads is not None or device.type != "cpu":
        return
    attributes = [Manifest.read(path).attributes for path in stores if (path / MANIFEST).exists()]
    found = {made.get("made_with", {}).get("compute", {}).get("threads") for made in attributes} - {None}
    if len(found) == 1 and found != {torch.get_num_threads()}:
        (threads,) = found
        torch.set_num_threads(threads)
        say(f"{count(threads, 'thread')} as for the first shards, so that further ones are the same (compute.threads)")


def made_with(config: RunConfig, device: torch.device, batch: int | None = None) -> dict[str, Any]:
    """What features are computed with, JSON-able: "libraries" (versions) and "compute" (device, threads, batch).

    Where all of it is the same, the same clips give the same bytes; otherwise they differ by rounding. `batch`: clips
    that go through the network together (None: `extract.batch_clips`).
    """
    libraries = {name: version(name) for name in ("av", "numpy", "pillow", "torch", "transformers")}
    name = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        name, libraries["cuda"] = torch.cuda.get_device_name(device), str(torch.version.cuda)
    threads = torch.get_num_threads()
    compute = {"device": name, "threads": threads, "batch_clips": batch or config.extract.batch_clips}
    return {"libraries": libraries, "compute": compute}


def maker(circumstances: Mapping[str, Any]) -> str:
    """A short name of what `made_with` says, equal where it is equal."""
    return files.hash_bytes(json.dumps(circumstances, sort_keys=True).encode())[:16]


def compare_makers(stores: Sequence[FeatureStore], made: Mapping[str, Any], *, strict: bool) -> None:
    """Warn where further shards would be computed otherwise than a store's first; refuse when `strict`.

    Compared are libraries, device, batch, and on a CPU threads: see `made_with`.
    """
    for store in stores:
        different = _differences(store.attributes.get("made_with", {}), made)
        if different and strict:
            advice = (
                "Install those versions, set compute.threads and extract.batch_clips as they were, or leave --strict "
                "away: the features of further shards differ by rounding."
            )
            raise FingerprintMismatch(f"what is in {store.path}", different, advice)
        if different:
            changes = ", ".join(f"{name} {old} then, {new} now" for name, (old, new) in different.items())
            warn(
                f"{store.path.name}: the first shards were made with other libraries or otherwise ({changes}); further "
                "ones may differ by rounding. `uniego verify --recompute 8` compares, --strict refuses"
            )


def _differences(first: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    different: dict[str, tuple[Any, Any]] = {}
    for part in ("libraries", "compute"):
        if first.get(part):
            different |= fingerprint_difference(first[part], made[part])
    if not made["compute"]["device"].startswith("cpu"):
        different.pop("threads", None)
    return different


def least_cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The smallest cosine between rows [T, D] of two features; 1 between two rows of zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    same = (a == b).all(axis=-1)
    return float(np.where(same, 1.0, (a * b).sum(axis=-1) / np.where(norms == 0, np.inf, norms)).min())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of "fp32", "bf16" or "fp16"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
