"""What is evaluated: a trained network, or a teacher's features out of the cache."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cache import FeatureStore
from ...errors import UniegoError, UsageError
from ...models import TimeSformer
from ...models.teachers import teacher_view
from ...pipeline import files
from ...pipeline.clips import Clip, Split, View
from ...pipeline.rundir import Run, TaskFolder
from ...pipeline.signals import StopFlag
from ..batches import SINGLE, ClipFailure, Protocol
from ..encoder import WEIGHTS, read_model, run_protocol
from ..fingerprints import clips_hash
from ..targets import load_targets, open_index, open_teacher, row_keys
from .embeddings import Embeddings, clips_order, embed


class Subject(ABC):
    """A model under evaluation. `fingerprint`: what its numbers depend on; `view`: which view it looks at."""

    name: str
    view: View = "ego"
    fingerprint: dict[str, Any]

    def __init__(self, run: Run) -> None:
        self.run = run
        self.test = run.table().split("test")
        if not self.test:
            raise UniegoError(f"{run.table().path} has no clip in the test split: nothing to evaluate on")

    @abstractmethod
    def embeddings(self, split: Split, flag: StopFlag, *, single: bool = False) -> Embeddings:
        """Embeddings of a split by the evaluation's protocol, or by one view and a centre crop (`single`)."""

    @abstractmethod
    def protocol(self, *, single: bool = False) -> dict[str, Any]:
        """How the clips are looked at, in words and numbers."""


class NetworkSubject(Subject):
    """A network in a folder that `uniego.load` opens."""

    def __init__(self, run: Run, name: str, source: Path, device: torch.device) -> None:
        super().__init__(run)
        self.name = name
        model, config = read_model(source)
        self.model: TimeSformer = model.to(device)
        self.classes = tuple(config["classes"])
        self._protocol, self.reader = run_protocol(run.config, config)
        self.fingerprint = {
            "weights": files.hash_file(source / WEIGHTS),
            "test_clips": clips_hash(self.test),
            "protocol": self._protocol._asdict(),
            "input": asdict(self.reader),
            "precision": run.config.compute.precision,
        }

    def embeddings(self, split: Split, flag: StopFlag, *, single: bool = False) -> Embeddings:
        """Embeddings of a split, kept under RUN/evaluate/<model>/embeddings."""
        protocol = SINGLE if single else self._protocol
        clips = self.run.table().split(split)
        fingerprint = {
            **{name: self.fingerprint[name] for name in ("weights", "input", "precision")},
            "clips": clips_hash(clips),
            "order": clips_order(clips),
            "protocol": protocol._asdict(),
        }
        name = f"{split}-{protocol.views}x{protocol.crops}"
        folder = TaskFolder(
            self.run.evaluation_folder(self.name).path / "embeddings" / name,
            f"{self.name} on {split}, {_looks(protocol)}",
        )
        return embed(self.run, self.model, clips, protocol, self.reader, folder, fingerprint, flag)

    def protocol(self, *, single: bool = False) -> dict[str, Any]:
        """Views, crops and sampling."""
        protocol = SINGLE if single else self._protocol
        crop = "centre" if protocol.crops == 1 else "three along the long side"
        return {**protocol._asdict(), "crop": crop, "sampling": self.reader.policy, "frames": self.reader.num_frames}


def _looks(protocol: Protocol) -> str:
    return f"{protocol.views} x {protocol.crops}"


class TeacherSubject(Subject):
    """A teacher's cached features, averaged over time as proxies learn them. It has no classifier here."""

    def __init__(self, run: Run, key: str) -> None:
        super().__init__(run)
        if key not in run.config.teachers:
            raise UsageError(f"unknown teacher {key!r}: this run has {', '.join(run.config.teachers)}")
        self.name, self.key = f"teacher:{key}", key
        self.view = teacher_view(key, run.config.teachers[key])
        self.store = open_teacher(run, open_index(run), key)
        self.fingerprint = {
            "weights": files.hash_bytes(json.dumps(self.store.fingerprint, sort_keys=True).encode()),
            "test_clips": clips_hash(self.test),
            "features": features_hash(run, self.store, run.table().clips),
        }

    def embeddings(self, split: Split, flag: StopFlag, *, single: bool = False) -> Embeddings:
        """Features of the clips that have one; the others count as failed."""
        clips = self.run.table().split(split)
        values, present = teacher_features(self.run, self.store, clips)
        kept = tuple(clip for clip, there in zip(clips, present.tolist(), strict=True) if there)
        lost = [clip for clip, there in zip(clips, present.tolist(), strict=True) if not there]
        failures = tuple(ClipFailure(c.clip_id, "missing", f"no feature of {self.key} in the cache") for c in lost)
        if not kept:
            raise UniegoError(f"none of the {len(clips)} {split} clips has a feature of {self.key}")
        return Embeddings(kept, values[present], failures=failures)

    def protocol(self, *, single: bool = False) -> dict[str, Any]:
        """What stands for a clip."""
        frames = self.run.config.student.num_frames
        random = {"random": True} if self.store.attributes.get("random") else {}
        return {"feature": f"of the cache, mean of {frames} evenly picked time steps", "view": self.view, **random}


def teacher_features(run: Run, store: FeatureStore, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Features float32 [N, D] averaged over time, and which clips have one, bool [N]."""
    rows = store.index.rows(row_keys(run, clips))
    values, present = load_targets(store, rows, run.config.student.num_frames)
    return values, present


def features_hash(run: Run, store: FeatureStore, clips: Sequence[Clip]) -> str:
    """Hash of which features there are, by what teacher, and of what they were made."""
    keys = row_keys(run, clips)
    text = json.dumps([store.fingerprint, keys], sort_keys=True)
    return files.hash_bytes(text.encode() + store.status(store.index.rows(keys)).tobytes())
