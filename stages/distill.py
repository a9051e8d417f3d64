"""Stage 3: the proxies are merged into the student's initial weights, then it learns by selective distillation.

The student sees the ego video; what the proxies say about each train clip comes from the cache. Other methods and
starts (`distill.method`, `distill.init`) train students of their own beside it, from the same proxies and cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..errors import FingerprintMismatch, MissingInputError
from ..models import TimeSformer
from ..pipeline import files
from ..pipeline.config import DistillConfig, MergeConfig, SPDConfig
from ..pipeline.progress import say
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from . import ranks
from .checkpoints import check_finite, replace_tensors
from .clip_source import training_reader
from .compute import prepare
from .encoder import WEIGHTS
from .fingerprints import training_fingerprint
from .imported import accept, fingerprint_now, imported, imported_proxies
from .loop import Loop
from .merge import MergeTask, Soup
from .merge_weights import draw_weights
from .methods import (
    needed_networks,
    needed_proxies,
    needs_pool,
    proxy_outputs,
    student_task,
    student_title,
    taught_by_proxies,
)
from .networks import open_networks
from .proxy_training import has_outputs, wanted_fingerprint
from .rows import RunRows, run_rows
from .spd import SPDLoss, spd_loss
from .targets import find_index, open_index, open_teacher, pool, targets_hash, warn_of_random
from .teaching import read_teaching, teaching_summary
from .training import fresh_model, make_batches, make_plan, remove_scaffold, train_to_folder, trained

__all__ = ["SPDConfig", "SPDLoss", "distill", "spd_loss"]


def distill(run: Run, *, overwrite: bool = False, strict: bool = False) -> None:
    """Merge the proxies of the pool if the student starts from that, then train it; both continue where they stopped.

    `overwrite` begins the student anew, and the merge with it unless the student is a variant for comparison.

    Raises `MissingInputError` naming the command that makes a proxy or a clip store that is missing,
    `FingerprintMismatch` when the work was begun under other settings, `Stopped` after saving when asked to stop.
    """
    prepare(run.config.compute)
    with ranks.joined(run.config.compute):
        _distill(run, overwrite, strict)


def _distill(run: Run, overwrite: bool, strict: bool) -> None:
    settings = run.config.distill
    own, rows = settings.variant == "student", run_rows(run, find_index(run))
    if own and not overwrite and (taken_in := accept(run, run.student_folder, rows)):
        say(f"{taken_in}; --overwrite trains one in its place")
        return
    given = [] if settings.method == "naive" else imported_proxies(run)
    merge_given = imported(run.merge_folder) is not None
    teachers = []
    if needs_pool(settings, merge_given=merge_given):
        teachers = ranks.first_then_others(lambda: pool(run, strict=strict, without_features=given))
    proxies = needed_proxies(settings, teachers, merge_given=merge_given)
    if proxies:
        _check_proxies(run, proxies, rows)
        _check_networks(run, needed_networks(settings, teachers, merge_given=merge_given))
    if teachers:
        warn_of_random(run, [key for key in teachers if key not in given])
    if overwrite or not run.variant_folder(settings.variant).done:
        training_reader(run)  # a clip store that is not there is told now
    with StopFlag() as flag:
        if settings.init == "merged":
            _merge(run, proxies, rows, flag, overwrite and own)
        _train_student(run, teachers, rows, flag, overwrite)
    say(f"next: {run.command('evaluate' if own else f'evaluate --model {settings.variant}')}")


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
        taken_in = accept(run, folder, rows)
        if taken_in is not None:
            say(taken_in)
        different = folder.differences(wanted_fingerprint(run, index, key, rows))
        if different:
            advice = f"Restore those settings, or run `uniego train-proxies --teacher {key} --overwrite` first."
            raise FingerprintMismatch(f"{folder.title} in {folder.path}", different, advice)
        if not has_outputs(run, index, key, rows):
            raise MissingInputError(
                f"outputs of proxy {key} are not all in the cache: run `uniego train-proxies` first"
            )


def _check_networks(run: Run, proxies: list[str]) -> None:
    """Refuse proxies that were imported without their network, where the student starts from it."""
    lacking = [key for key in proxies if run.proxy_folder(key).results["weights"] is None]
    if lacking:
        raise MissingInputError(
            f"the student starts from the networks of its proxies, and these were imported without: "
            f"{', '.join(lacking)}. Import their checkpoints, or the merged one (`uniego release import merged`), or "
            "start from elsewhere with --init imagenet"
        )


def merge_fingerprint(run: Run, proxies: list[str], rows: RunRows) -> dict[str, Any]:
    """What the merge depends on; where nothing is fitted, not on how that would be done.

    Of an imported one, what can be said of it.
    """
    taken_in = fingerprint_now(run, run.merge_folder, rows)
    if taken_in is not None:
        return taken_in
    merge, portions = run.config.merge, run.config.distill.train
    batch = {"global_batch": portions.global_batch, "micro_batch": portions.micro_batch}
    if merge.level == "average":
        merge, batch = MergeConfig(level="average"), {}
    return training_fingerprint(run, merge, {"proxies": _proxy_hashes(run, proxies), **batch}, rows)


def student_fingerprint(
    run: Run, teachers: list[str], rows: RunRows, settings: DistillConfig | None = None
) -> dict[str, Any]:
    """What the student depends on. teachers: those of the pool; settings: those of a variant (None: the run's)."""
    distill = settings or run.config.distill
    inputs: dict[str, Any] = {}
    if distill.init == "merged":
        inputs["merge"] = merge_fingerprint(run, teachers, rows)
    elif distill.init != "imagenet":
        kind, _, key = distill.init.partition(":")
        inputs["start"] = _proxy_hashes(run, [key] if kind == "proxy" else teachers)
    if taught_by_proxies(distill):
        outputs = dict(zip(teachers, proxy_outputs(run, open_index(run), teachers), strict=True))
        inputs["outputs"] = {key: store.path.name for key, store in outputs.items()}
        inputs["outputs_rows"] = {key: targets_hash(rows, store) for key, store in outputs.items()}
    elif distill.method == "naive":
        index = open_index(run)
        stores = {key: open_teacher(run, index, key) for key in teachers}
        inputs["targets"] = {key: [store.fingerprint, targets_hash(rows, store)] for key, store in stores.items()}
        inputs["loss"] = [run.config.proxies.feature_distance, run.config.proxies.feature_weight]
    return training_fingerprint(run, distill, inputs, rows)


def _proxy_hashes(run: Run, proxies: list[str]) -> dict[str, str]:
    return {key: run.proxy_folder(key).results["weights"] for key in proxies}


def _merge(run: Run, proxies: list[str], rows: RunRows, flag: StopFlag, overwrite: bool) -> None:
    folder = run.merge_folder
    taken_in = accept(run, folder, rows)
    if taken_in is not None:
        say(taken_in)
        return
    with ranks.working(folder, merge_fingerprint(run, proxies, rows), overwrite=overwrite) as needed:
        if not needed:
            ranks.from_first(lambda: remove_scaffold(folder.path))  # of a process killed just after it had finished
            say("merge: finished before, nothing to do")
            return
        folders = {key: run.proxy_folder(key).path / "model" for key in proxies}
        networks = open_networks(folders, run.config.merge.memory, run.config.compute)
        model = fresh_model(run, {}).to(networks.device)
        soup = Soup(networks, run.config.merge.level, list(model.state_dict()))
        if run.config.merge.level != "average":
            _fit_merge(run, soup, model, flag)
        alphas = dict(zip(soup.group_names, soup.alphas().tolist(), strict=True))

        def finish() -> None:
            merged = model.state_dict()
            soup.combine(merged)
            check_finite({"the combination's weights": soup.weights, **merged}, "the merge of the proxies")
            replace_tensors(folder.path / "merged.safetensors", {name: merged[name] for name in soup.names})
            draw_weights(folder.path, proxies, alphas)
            folder.finish({"proxies": proxies, "alpha": alphas})
            remove_scaffold(folder.path)

        ranks.from_first(finish)
    for group, weights in list(alphas.items())[:20]:
        shown = ", ".join(f"{k} {a:.3f}" for k, a in zip(proxies, weights, strict=True))
        say(f"merge weights of {group}: {shown}")
    if len(alphas) > 20:
        say(f"and of {len(alphas) - 20} more, in {folder.path / 'record.json'}")


def _fit_merge(run: Run, soup: Soup, model: TimeSformer, flag: StopFlag) -> None:
    clips, merge = run.table().split("train"), run.config.merge
    config = run.config.distill.train.model_copy(update={"epochs": merge.epochs})
    plan = make_plan(run, config, clips)
    labels = torch.tensor([clip.label for clip in clips], device=plan.device)
    task = MergeTask(soup, model, labels, merge.lr)
    Loop(task, plan, run.merge_folder.path, flag).run(make_batches(run, config, clips))


def _train_student(run: Run, teachers: list[str], rows: RunRows, flag: StopFlag, overwrite: bool) -> None:
    distill = run.config.distill
    folder, title = run.variant_folder(distill.variant), student_title(distill)
    with ranks.working(folder, student_fingerprint(run, teachers, rows), overwrite=overwrite) as needed:
        if not needed:
            say(f"{title}: finished before, nothing to do")
            return
        if not ranks.from_first(lambda: trained(folder.path)):
            task, clips = student_task(run, teachers, flag), run.table().split("train")
            plan = replace(make_plan(run, distill.train, clips), snapshots=distill.snapshots)
            stream = make_batches(run, distill.train, clips)
            train_to_folder(run, folder.path, task, task.model, plan, stream, flag)

        def finish() -> None:
            remove_scaffold(folder.path)
            folder.finish({"weights": files.hash_file(folder.path / "model" / WEIGHTS), "proxies": teachers})
            for line in teaching_summary(read_teaching(folder.path), run.table().classes):
                say(f"{title}: {line}")

        ranks.from_first(finish)
    say(f"{title}: done")
