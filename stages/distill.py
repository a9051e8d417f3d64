"""Stage 3: the proxies are merged into the student's initial weights, then it learns by selective distillation.

The student sees the ego video; what the proxies say about each train clip comes from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..cache import FeatureStore
from ..errors import FingerprintMismatch, MissingInputError
from ..models import TimeSformer
from ..models.droppath import to_device
from ..models.teachers import teacher_view
from ..pipeline import files
from ..pipeline.config import SPDConfig, TrainConfig
from ..pipeline.progress import say
from ..pipeline.randomness import clip_stream
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from .batches import Batch
from .checkpoints import replace_tensors
from .clip_source import training_reader
from .compute import prepare, resolve_device
from .encoder import WEIGHTS
from .fingerprints import training_fingerprint
from .loop import Loop
from .merge import MergeTask, Soup
from .proxy_training import has_outputs, proxy_fingerprint
from .rows import RunRows, run_rows
from .spd import SPDLoss, slots, spd_loss
from .supervised import Supervised, VideoTask
from .targets import Bank, by_id, open_index, open_teacher, pool, row_keys, training_bank, warn_of_random
from .training import (
    fresh_model,
    make_batches,
    make_plan,
    make_validator,
    remove_scaffold,
    train_to_folder,
    trained,
)
from .view import content_hash, take

__all__ = ["SPDConfig", "SPDLoss", "distill", "spd_loss"]

PROJECTION = "student"


def distill(run: Run, *, overwrite: bool = False, strict: bool = False) -> None:
    """Merge the proxies of the pool, then train the student; both continue where they stopped.

    Raises `MissingInputError` naming the command that makes a proxy or a clip store that is missing,
    `FingerprintMismatch` when the work was begun under other settings, `Stopped` after saving when asked to stop.
    """
    prepare(run.config.compute)
    proxies = pool(run, strict=strict)
    rows = run_rows(run, open_index(run))
    _check_proxies(run, proxies, rows)
    warn_of_random(run, proxies)
    if overwrite or not run.student_folder.done:
        training_reader(run)  # a clip store that is not there is told now
    with StopFlag() as flag:
        _merge(run, proxies, rows, flag, overwrite)
        _train_student(run, proxies, rows, flag, overwrite)
    say(f"next: {run.command('evaluate')}")


def _check_proxies(run: Run, proxies: list[str], rows: RunRows) -> None:
    """Refuse proxies that are missing, made under other settings, or without their outputs."""
    index = open_index(run)
    left = [key for key in proxies if not run.proxy_folder(key).done]
    if left:
        raise MissingInputError(
            f"proxies are missing: {', '.join(left)}; run `uniego train-proxies` first, or take these teachers out "
            "of `teachers` in run.yaml"
        )
    for key in proxies:
        folder = run.proxy_folder(key)
        different = folder.differences(proxy_fingerprint(run, key, open_teacher(run, index, key), rows))
        if different:
            advice = f"Restore those settings, or run `uniego train-proxies --teacher {key} --overwrite` first."
            raise FingerprintMismatch(f"{folder.title} in {folder.path}", different, advice)
        if not has_outputs(run, index, key, rows):
            raise MissingInputError(
                f"outputs of proxy {key} are not all in the cache: run `uniego train-proxies` first"
            )


def merge_fingerprint(run: Run, proxies: list[str], rows: RunRows) -> dict[str, Any]:
    """What the merge depends on."""
    portions = run.config.distill.train
    batch = {"global_batch": portions.global_batch, "micro_batch": portions.micro_batch}
    return training_fingerprint(run, run.config.merge, {"proxies": _proxy_hashes(run, proxies), **batch}, rows)


def student_fingerprint(run: Run, proxies: list[str], rows: RunRows) -> dict[str, Any]:
    """What the student depends on."""
    outputs = {key: run.proxy_folder(key).results["outputs"] for key in proxies}
    inputs = {"merge": merge_fingerprint(run, proxies, rows), "outputs": outputs}
    return training_fingerprint(run, run.config.distill, inputs, rows)


def _proxy_hashes(run: Run, proxies: list[str]) -> dict[str, str]:
    return {key: run.proxy_folder(key).results["weights"] for key in proxies}


def _merge(run: Run, proxies: list[str], rows: RunRows, flag: StopFlag, overwrite: bool) -> None:
    folder = run.merge_folder
    with folder.work(merge_fingerprint(run, proxies, rows), overwrite=overwrite) as needed:
        if not needed:
            say("merge: finished before, nothing to do")
            return
        device = resolve_device(run.config.compute)
        states = [load_file(run.proxy_folder(key).path / "model" / WEIGHTS) for key in proxies]
        order = list(fresh_model(run, {}).state_dict())
        soup = Soup(states, run.config.merge.level, device, order)
        del states
        if run.config.merge.level != "average":
            _fit_merge(run, soup, flag)
        replace_tensors(folder.path / "merged.safetensors", soup.combined())
        alphas = dict(zip(soup.group_names, soup.alphas().tolist(), strict=True))
        folder.finish({"proxies": proxies, "alpha": alphas})
        remove_scaffold(folder.path)
    for group, weights in list(alphas.items())[:20]:
        shown = ", ".join(f"{k} {a:.3f}" for k, a in zip(proxies, weights, strict=True))
        say(f"merge weights of {group}: {shown}")
    if len(alphas) > 20:
        say(f"and of {len(alphas) - 20} more, in {folder.path / 'record.json'}")


def _fit_merge(run: Run, soup: Soup, flag: StopFlag) -> None:
    clips, merge = run.table().split("train"), run.config.merge
    config = run.config.distill.train.model_copy(update={"epochs": merge.epochs})
    plan = make_plan(run, config, clips)
    model = fresh_model(run, {PROJECTION: run.config.student.width}).to(plan.device)
    labels = torch.tensor([clip.label for clip in clips], device=plan.device)
    task = MergeTask(soup, model, labels, merge.lr)
    Loop(task, plan, run.merge_folder.path, flag).run(make_batches(run, config, clips))


class StudentTask(VideoTask):
    """Selective Proxy Distillation: L = mean CE(s, y) + L_feat + L_logit."""

    def __init__(self, config: TrainConfig, spd: SPDConfig, base: Supervised[TimeSformer], bank: Bank) -> None:
        super().__init__("student", config, base)
        # A step of one process knows its micro-batches one after the other: their own counts divide the sums.
        self._spd = spd.model_copy(update={"normalise_over": "micro_batch"})
        self._bank = bank

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Cross-entropy and the two distillation terms of one micro-batch."""
        out = self.forward(batch, epoch)
        labels = self.labels[batch.indices]
        terms = spd_loss(
            out.logits,
            out.projected[PROJECTION],
            labels,
            proxy_logits=take(self._bank.logits, batch),
            proxy_tokens=take(self._bank.tokens, batch),
            present=take(self._bank.present, batch),
            config=self._spd,
            selection=self._draws(batch, epoch) if self._spd.select == "random" else None,
        )
        ce = F.cross_entropy(out.logits.float(), labels)
        return {
            "loss": ce + terms.feature_loss + terms.logit_loss,
            "ce": ce,
            "feature": terms.feature_loss,
            "logit": terms.logit_loss,
            "selected_share": terms.valid.any(1).float().mean(),
        }

    def _draws(self, batch: Batch, epoch: int) -> tuple[Tensor, None]:
        """Random proxies per clip as functions of (seed, epoch, clip), int64 [b, S]; the rule says which are valid."""
        proxies = self._bank.present.shape[1]
        count = slots(self._spd, proxies)
        ids = [self.base.clips[i].clip_id for i in batch.rows]
        drawn = [clip_stream(self.base.seed, epoch, i, "selection").integers(proxies, size=count) for i in ids]
        return to_device(torch.from_numpy(np.stack(drawn)), self.base.device), None


def _train_student(run: Run, proxies: list[str], rows: RunRows, flag: StopFlag, overwrite: bool) -> None:
    folder = run.student_folder
    with folder.work(student_fingerprint(run, proxies, rows), overwrite=overwrite) as needed:
        if not needed:
            say("student: finished before, nothing to do")
            return
        if not trained(folder.path):
            _train(run, proxies, flag)
        remove_scaffold(folder.path)
        folder.finish({"weights": files.hash_file(folder.path / "model" / WEIGHTS), "proxies": proxies})
    say("student: done")


def _train(run: Run, proxies: list[str], flag: StopFlag) -> None:
    config, clips = run.config, run.table().split("train")
    index = open_index(run)
    names = [run.proxy_folder(key).results["outputs"] for key in proxies]
    stores = [FeatureStore.open(run.cache_root / name, index) for name in names]
    folder = run.student_folder
    bank = training_bank(run, folder.path, stores, index.rows(row_keys(run, clips)))
    folder.bind("outputs of the proxies", content_hash(bank._asdict(), by_id(clips)))
    say(f"student: outputs of {len(proxies)} proxies for {int(bank.present.any(1).sum())} of {len(clips)} train clips")
    model = fresh_model(run, {PROJECTION: run.config.student.width})
    _take_merged(model, load_file(run.merge_folder.path / "merged.safetensors"))
    views = [teacher_view(key, config.teachers[key]) for key in proxies]
    base = Supervised(model, clips, config.seed, resolve_device(config.compute), make_validator(run, flag))
    task = StudentTask(config.distill.train, config.distill.spd(views), base, bank)
    plan = make_plan(run, config.distill.train, clips)
    stream = make_batches(run, config.distill.train, clips)
    train_to_folder(run, folder.path, task, model, plan, stream, flag)


def _take_merged(model: TimeSformer, merged: Mapping[str, Tensor]) -> None:
    """Everything but the projection comes from the merge."""
    result = model.load_state_dict(merged, strict=False)
    missing = [name for name in result.missing_keys if not name.startswith("proj_layer")]
    if missing or result.unexpected_keys:
        raise MissingInputError(
            f"the merged weights do not fit the student: missing {missing[:5]}, "
            f"unexpected {result.unexpected_keys[:5]}; run `uniego distill --overwrite`"
        )
