"""The methods of `distill.method`: what each needs, and its task. All train the same network on the same clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..cache import ClipIndex, FeatureStore
from ..models import TimeSformer
from ..models.teachers import teacher_view
from ..pipeline import files
from ..pipeline.config import DistillConfig
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .compute import resolve_device
from .proxy_bank import mean_cross_entropy, training_bank
from .starts import initial_student
from .student import PROJECTION, NaiveTask, StudentTask
from .supervised import Supervised, VideoTask
from .targets import by_id, open_index, open_teacher, row_keys, training_targets_of
from .training import make_validator
from .view import content_hash


def taught_by_proxies(distill: DistillConfig) -> bool:
    """Whether the method reads outputs of proxies."""
    return distill.method not in ("naive", "ce")


def needs_pool(distill: DistillConfig, *, merge_given: bool = False) -> bool:
    """Whether the method or its start is made from all teachers of the pool, or from their proxies.

    `merge_given`: the merge was imported and needs none.
    """
    return distill.method != "ce" or _start(distill, merge_given) in ("merged", "average")


def needed_proxies(distill: DistillConfig, teachers: Sequence[str], *, merge_given: bool = False) -> list[str]:
    """Teachers whose proxies must be trained; `teachers` are those of the pool, which a start may lie outside of."""
    taught = list(teachers) if taught_by_proxies(distill) else []
    started = needed_networks(distill, teachers, merge_given=merge_given)
    return [*taught, *(key for key in started if key not in taught)]


def needed_networks(distill: DistillConfig, teachers: Sequence[str], *, merge_given: bool = False) -> list[str]:
    """Teachers whose proxies' networks the student starts from."""
    if _start(distill, merge_given) in ("merged", "average"):
        return list(teachers)
    kind, _, key = distill.init.partition(":")
    return [key] if kind == "proxy" else []


def _start(distill: DistillConfig, merge_given: bool) -> str:
    return "given" if merge_given and distill.init == "merged" else distill.init


def student_title(distill: DistillConfig) -> str:
    """What the student's training is called in messages."""
    return "student" if distill.variant == "student" else f"student {distill.variant}"


def student_task(run: Run, teachers: Sequence[str], flag: StopFlag) -> VideoTask:
    """The task of `distill.method` with its data; says what it learns from, and binds the training to the content."""
    distill, folder = run.config.distill, run.variant_folder(run.config.distill.variant)
    title = student_title(distill)
    if distill.method == "ce":
        return VideoTask(title, distill.train, _base(run, initial_student(run, {}, teachers), flag))
    clips, index = run.table().split("train"), open_index(run)
    rows = index.rows(row_keys(run, clips))
    if distill.method != "naive":
        return _taught(run, folder.path, list(teachers), index, rows, flag)
    stores = {key: open_teacher(run, index, key) for key in teachers}
    frames = run.config.student.num_frames
    targets = ranks.first_then_others(lambda: training_targets_of(run, folder.path, stores, rows, frames))
    content = {f"{key}.{name}": part for key in targets for name, part in targets[key]._asdict().items()}
    ranks.from_first(lambda: folder.bind("features of the teachers", content_hash(content, by_id(clips))))
    widths = {key: targets[key].values.shape[1] for key in teachers}
    say(f"{title}: {len(widths)} linear heads, of widths {', '.join(f'{width}' for width in widths.values())}")
    base = _base(run, initial_student(run, widths, teachers), flag)
    return NaiveTask(distill.train, run.config.proxies, base, targets, title)


def _base(run: Run, model: TimeSformer, flag: StopFlag) -> Supervised[TimeSformer]:
    clips, device = run.table().split("train"), resolve_device(run.config.compute)
    return Supervised(model, clips, run.config.seed, device, make_validator(run, flag))


def _taught(
    run: Run, path: Path, teachers: list[str], index: ClipIndex, rows: npt.NDArray[np.int64], flag: StopFlag
) -> StudentTask:
    config, distill, title = run.config, run.config.distill, student_title(run.config.distill)
    clips, folder = run.table().split("train"), run.variant_folder(run.config.distill.variant)
    labels = torch.tensor([clip.label for clip in clips])
    proxies = teachers
    if distill.method == "best-proxy":
        proxies = [_best_proxy(run, teachers, proxy_outputs(run, index, teachers), rows, labels)]
    spd = distill.spd([teacher_view(key, config.teachers[key]) for key in proxies])
    outputs = proxy_outputs(run, index, proxies)
    bank = ranks.first_then_others(lambda: training_bank(run, path, outputs, rows, labels, spd))
    ranks.from_first(lambda: folder.bind("outputs of the proxies", content_hash(bank._asdict(), by_id(clips))))
    known, able = (int(part.sum()) for part in (bank.present.any(1), (bank.limit < torch.inf).any(1)))
    say(f"{title}: outputs of {len(proxies)} proxies for {known} of {len(clips)} train clips; {able} can be taught")
    base = _base(run, initial_student(run, {PROJECTION: config.student.width}, teachers), flag)
    task = StudentTask(distill.train, spd, base, bank, proxies, exact_normaliser=distill.exact_normaliser, title=title)
    say(f"{title}: {task.describe()}")
    return task


def proxy_outputs(run: Run, index: ClipIndex, keys: Sequence[str]) -> list[FeatureStore]:
    """The stores of what trained proxies said about the clips."""
    names = [run.proxy_folder(key).results["outputs"] for key in keys]
    return [FeatureStore.open(run.cache_root / name, index) for name in names]


def _best_proxy(
    run: Run,
    keys: Sequence[str],
    stores: Sequence[FeatureStore],
    rows: npt.NDArray[np.int64],
    labels: torch.Tensor,
) -> str:
    """The proxy of highest top-1 on the val split after its training; without one, of lowest mean CE on train.

    Of equal ones the first of the pool.
    """
    scores = [_score(run, key) for key in keys]
    known = [score for score in scores if score is not None]
    if len(known) == len(keys):
        best = keys[int(np.argmax(known))]
        say(f"the best proxy is {best}: top-1 {max(known):.1f} on val, the highest of {len(keys)}")
        return best
    entropies = mean_cross_entropy(stores, rows, labels)
    best = keys[int(np.argmin(entropies))]
    say(f"the best proxy is {best}: mean cross-entropy {min(entropies):.3f} on train, the lowest of {len(keys)}")
    return best


def _score(run: Run, key: str) -> float | None:
    """Top-1 on the val split after a proxy's last epoch, None where there is no such split."""
    path = run.proxy_folder(key).path / "metrics.jsonl"
    if not path.exists():
        return None
    validations = [record for record in files.read_json_lines(path)[0] if "validation" in record]
    last = run.config.proxies.train.epochs - 1
    return next((float(record["validation"]["score"]) for record in validations if record["epoch"] == last), None)
