"""What a teacher's cached features know about the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models import STGCN, TimeSformer
from ..models.teachers import build_teacher
from ..pipeline.rundir import Run
from ..stages.targets import load_targets, open_index, open_teacher, row_keys
from .actions import ACTIONS, ALL_ACTIONS


def own_accuracy(run: Run, teacher: str) -> float | None:
    """Top-1 of the teacher's own classifier on the test clips that have a feature, percent; None: it has none that
    knows the run's classes."""
    module = build_teacher(teacher, run.config.teachers[teacher]).module
    head, classes = _head(module), run.table().classes
    known = {len(names): names for names in (ACTIONS, ALL_ACTIONS)}.get(head.out_features, ()) if head else ()
    if head is None or not set(classes) <= set(known):
        return None
    features, labels = _features(run, teacher, "test")
    order = torch.tensor([known.index(name) for name in classes])
    with torch.inference_mode():
        predicted = head(features)[:, order].argmax(1)
    return 100.0 * float((predicted == labels).float().mean())


def probe_accuracy(run: Run, teacher: str, ridge: float = 1.0) -> float:
    """Top-1 on test of a ridge regression on the targets (features averaged over time) of the train clips, percent."""
    train, labels = _features(run, teacher, "train")
    test, wanted = _features(run, teacher, "test")
    mean, scale = train.mean(0), train.std(0).clamp(min=1e-6)
    x, z = ((part - mean) / scale for part in (train, test))
    onehot = torch.nn.functional.one_hot(labels, run.table().num_classes).float()
    weights = torch.linalg.solve(x.T @ x + ridge * len(x) * torch.eye(x.shape[1]), x.T @ (onehot - onehot.mean(0)))
    predicted = (z @ weights + onehot.mean(0)).argmax(1)
    return 100.0 * float((predicted == wanted).float().mean())


def _features(run: Run, teacher: str, split: str) -> tuple[Tensor, Tensor]:
    """Targets [n, D] and labels [n] of the clips of a split that have a feature."""
    clips = [clip for clip in run.table().clips if clip.split == split]
    store = open_teacher(run, open_index(run), teacher)
    rows = store.index.rows(row_keys(run, clips))
    targets = load_targets(store, rows, run.config.student.num_frames)
    labels = torch.tensor([clip.label for clip in clips])
    return targets.values[targets.present], labels[targets.present]


def _head(module: torch.nn.Module) -> torch.nn.Linear | None:
    """The classifier on top of the feature, of networks that have one."""
    if isinstance(module, TimeSformer):
        return module.head
    return module.cls_head.fc_cls if isinstance(module, STGCN) else None
