"""`uniego evaluate`: recognition, retrieval, segmentation and probes of one model, as far as the data allow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingInputError, UsageError
from ..pipeline import files
from ..pipeline.progress import results_console, say, warn
from ..pipeline.rundir import Run, TaskFolder
from ..pipeline.signals import StopFlag
from .compute import prepare
from .encoder import CONFIG, WEIGHTS
from .evaluation.measure import Measure
from .evaluation.probe import PROBE
from .evaluation.recognition import RECOGNITION
from .evaluation.retrieval import RETRIEVAL
from .evaluation.segmentation import SEGMENTATION
from .evaluation.subjects import NetworkSubject, Subject, TeacherSubject
from .fingerprints import training_fingerprint
from .imported import ORIGIN, imported

TASKS: dict[str, Measure] = {
    "recognition": RECOGNITION,
    "retrieval": RETRIEVAL,
    "segmentation": SEGMENTATION,
    "probe": PROBE,
}


def evaluate(
    run: Run, *, model: str = "student", tasks: Sequence[str] = (), overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Measure a model on the test split; printed (unless `quiet`) and written to RUN/evaluate/<model>/.

    `model` is "student", a variant of it such as "naive-imagenet", "proxy:<teacher>", "teacher:<teacher>" (its
    features) or the path of an encoder's folder. `tasks`: of recognition, retrieval, segmentation and probe; none: all
    that data and model allow, the others under "left_out" with the reason. Returns {"model", "tasks": {task: results
    with their protocol}, "left_out", …}, with recognition's top1, top5, mean_class_accuracy, clips and failed also at
    the top.

    What was measured before under the same settings is not measured again. Raises `MissingInputError` naming the
    command that trains the model, `UsageError` for a task that is named and not possible, `UniegoError` for a table
    without a test split, `Stopped` when asked to stop; the same call continues.
    """
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        raise UsageError(f"unknown task {', '.join(unknown)}: use {', '.join(TASKS)}")
    subject = _subject(run, model, prepare(run.config.compute))
    chosen, left_out = _choose(subject, tasks)
    folder = run.evaluation_folder(subject.name)
    changed = bool(
        folder.differences(subject.fingerprint)
    )  # results are cheap: new ones replace those of something else
    wanted = {name: TASKS[name].settings(subject) for name in chosen}
    missing = [name for name in chosen if not _is_done(folder, name, wanted[name])]
    with folder.work(subject.fingerprint, overwrite=overwrite or changed, incomplete=bool(missing)) as needed:
        if needed:
            with StopFlag() as flag:
                for name in chosen:
                    _measure(subject, name, wanted[name], folder, flag)
            results = _collect(folder, subject.name, left_out)
            files.write_json(folder.path / "results.json", results)
            folder.finish(results)
        else:
            say(f"evaluation of {subject.name}: finished before, nothing to do")
    results = folder.results
    if not quiet:
        print_evaluation(results, chosen, left_out, folder.path)
    return results


def _subject(run: Run, model: str, device: torch.device) -> Subject:
    kind, _, key = model.partition(":")
    if kind == "teacher":
        return TeacherSubject(run, key)
    if os.sep in model or model.startswith("."):
        source = Path(model)
        if not (source / CONFIG).exists():
            raise MissingInputError(f"no {CONFIG} in {source}: it is not a folder of a trained network")
        name = f"encoder-{source.resolve().name}-{files.hash_file(source / WEIGHTS)[:8]}"
        return NetworkSubject(run, name, source, device)
    return NetworkSubject(run, model, trained_folder(run, model).path / "model", device)


def _choose(subject: Subject, tasks: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The tasks to do, in their fixed order, and why others are not done."""
    reasons = {name: TASKS[name].why_not(subject) for name in TASKS if not tasks or name in tasks}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    if tasks and left_out:
        raise UsageError(
            "; ".join(f"{name} of {subject.name} is not possible: {why}" for name, why in left_out.items())
        )
    return [name for name in reasons if name not in left_out], left_out


def _task_folder(folder: TaskFolder, name: str) -> TaskFolder:
    return TaskFolder(folder.path / name, f"{folder.title}: {name}")


def _is_done(folder: TaskFolder, name: str, wanted: Mapping[str, Any]) -> bool:
    task = _task_folder(folder, name)
    return task.done and not task.differences(wanted)


def _measure(subject: Subject, name: str, wanted: Mapping[str, Any], folder: TaskFolder, flag: StopFlag) -> None:
    """Carry one task out, unless it was."""
    task = _task_folder(folder, name)
    with task.work(wanted, overwrite=bool(task.differences(wanted))) as needed:
        if needed:
            flag.check()
            task.finish(TASKS[name].compute(subject, task.path, flag))


def _collect(folder: TaskFolder, model: str, left_out: Mapping[str, str]) -> dict[str, Any]:
    """The results of all tasks that are done."""
    done = {name: task.results for name in TASKS if (task := _task_folder(folder, name)).done}
    accuracy = ("top1", "top5", "mean_class_accuracy", "clips", "failed")
    top = {name: done["recognition"][name] for name in accuracy} if "recognition" in done else {}
    return {"model": model, **top, "tasks": done, "left_out": {n: why for n, why in left_out.items() if n not in done}}


def print_evaluation(
    results: Mapping[str, Any], tasks: Sequence[str], left_out: Mapping[str, str], folder: Path
) -> None:
    """The tables of these tasks, what was left out and why, and where everything lies."""
    console = results_console()
    for name in tasks:
        for table in TASKS[name].tables(results["model"], results["tasks"][name]):
            console.print(table)
    for name, why in left_out.items():
        say(f"left out: {name}, since {why}")
    if "recognition" in tasks:
        if results["failed"]:
            say(f"{results['failed']} clips could not be decoded and are not counted; see {folder / 'predictions.csv'}")
        say(f"predictions: {folder / 'predictions.csv'}")
    say(f"numbers and protocols: {folder / 'results.json'}")


def trained_folder(run: Run, model: str) -> TaskFolder:
    """Where a trained model lies; warns of one that was trained under other settings than the run has now."""
    kind, _, teacher = model.partition(":")
    variant = run.config.distill.as_variant(model)
    if kind == "proxy" and teacher in run.config.teachers:
        folder, command = run.proxy_folder(teacher), f"uniego train-proxies --teacher {teacher}"
        wanted = training_fingerprint(run, run.config.proxies, {})
    elif model == "ego-only" and run.ego_only_folder.done:
        return run.ego_only_folder
    elif variant is not None:
        chosen = "" if model == "student" else f" --method {variant.method} --init {variant.init}"
        folder, command = run.variant_folder(model), f"uniego distill{chosen}"
        wanted = training_fingerprint(run, variant, {})
    else:
        keyed = (f"{kind}:{key}" for kind in ("proxy", "teacher") for key in run.config.teachers)
        names = ", ".join(["student", *run.variants(), *keyed])
        raise UsageError(
            f"unknown model {model!r}: use one of {names}, <method>-<init> of uniego distill, or the path of an "
            "encoder's folder (with a /)"
        )
    if not folder.done or not (folder.path / "model" / CONFIG).exists():
        if imported(folder) is not None:
            raise MissingInputError(f"{model} was imported without its network: import its checkpoint too")
        raise MissingInputError(f"{model} is not trained yet: run `{command}` first")
    if imported(folder) is not None:
        say(f"{model} was imported; how it was trained cannot be verified (see {folder.path / ORIGIN})")
        return folder
    different = [name for name in folder.differences(wanted) if not name.startswith("inputs")]
    if different:
        warn(f"{model} was trained under other settings than the run has now ({', '.join(different[:5])})")
    return folder
