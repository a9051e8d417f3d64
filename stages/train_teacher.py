"""Training of the teachers that the paper trained on the data set itself, exo_rgb and exo_skl, on its labels.

The loop is that of proxies and student. RUN/teachers/<key>/model.safetensors is what extraction takes for a teacher
whose settings name no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import FingerprintMismatch, UniegoError, WeightsError
from ..models.teachers import TeacherConfig, build_teacher
from ..pipeline import files
from ..pipeline.progress import say, warn
from ..pipeline.rundir import Run, TaskFolder
from ..pipeline.signals import StopFlag
from . import ranks
from .checkpoints import check_finite, replace_tensors
from .compute import prepare, resolve_device
from .encoder import WEIGHTS
from .evaluation.recognition import predictions, print_results
from .lessons import TRAINABLE, Lesson, lesson_of
from .recognition import Recognition, recognise
from .training import make_batches, make_plan, remove_scaffold, train_and_write


def train_teacher(run: Run, key: str, *, overwrite: bool = False) -> dict[str, Any]:
    """Train teacher `key` on the train split's labels and measure it on test; returns the results.

    Continues where it stopped; a finished teacher is left as it is. Clips that do not name its input are counted and
    left out. Raises `UsageError` for a teacher of another network or another `dim`, `UniegoError` when no train clip
    names its input, `FingerprintMismatch` for one begun under other settings, `Stopped` after saving when asked to.
    """
    lesson = lesson_of(run, key)
    lesson.check_dim()
    prepare(run.config.compute)
    folder = run.teacher_folder(key)
    with ranks.joined(run.config.compute):
        with StopFlag() as flag, ranks.working(folder, lesson.fingerprint(), overwrite=overwrite) as needed:
            if needed:
                if not ranks.from_first((folder.path / WEIGHTS).exists):
                    _train(lesson, folder, flag)
                ranks.from_first(lambda: _finish(lesson, folder, flag))
            else:
                say(f"teacher {key}: finished before, nothing to do")
        results = folder.results
        if results["top1"] is not None and ranks.rank() == 0:
            print_results(results, results["protocol"], folder.path)
        _say_next(run, key)
    return results


def _finish(lesson: Lesson, folder: TaskFolder, flag: StopFlag) -> None:
    remove_scaffold(folder.path)
    metrics = _evaluate(lesson, folder, flag)
    folder.finish({"weights": files.hash_file(folder.path / WEIGHTS), **metrics})


def is_trained_here(config: TeacherConfig) -> bool:
    """Whether extraction takes what the run trained: no weights are named, and the network can be trained."""
    return config.weights is None and config.network in TRAINABLE


def in_force(run: Run, key: str) -> TeacherConfig:
    """A teacher's settings with the weights that extraction takes: where none are named, those trained in the run.

    Raises `WeightsError` naming the command when they are not trained yet, or are not what training wrote;
    `FingerprintMismatch` when they were trained under other settings, and so perhaps on other inputs.
    """
    config = run.config.teachers[key]
    if not is_trained_here(config):
        return config
    folder, command = run.teacher_folder(key), run.command(f"train-teacher {key}")
    path = folder.path / WEIGHTS
    if not folder.done:
        raise WeightsError(
            f"teacher {key!r} has no weights yet: train it on this data with `{command}`, or set "
            f"teachers.{key}.weights to a checkpoint (file:<path>), or leave the teacher out"
        )
    if not path.exists() or files.hash_file(path) != folder.results["weights"]:
        raise WeightsError(f"{path} is not what training wrote; restore it, or train anew: `{command} --overwrite`")
    different = folder.differences(lesson_of(run, key).fingerprint())
    if different:
        advice = (
            f"Restore those settings, train anew with `{command} --overwrite`, or take these weights all the same: "
            f"teachers.{key}.weights: file:{path.absolute()}"
        )
        raise FingerprintMismatch(f"{folder.title} in {folder.path}", different, advice)
    return _with_weights(config, folder)


def pool_in_force(run: Run) -> dict[str, TeacherConfig]:
    """The pool's settings, of those trained in the run with their weights; nothing is opened or checked."""
    return {
        key: _with_weights(config, run.teacher_folder(key))
        if is_trained_here(config) and run.teacher_folder(key).done
        else config
        for key, config in run.config.teachers.items()
    }


def _with_weights(config: TeacherConfig, folder: TaskFolder) -> TeacherConfig:
    path = (folder.path / WEIGHTS).absolute()
    return config.model_copy(update={"weights": f"file:{path}", "architecture": {}})


def _train(lesson: Lesson, folder: TaskFolder, flag: StopFlag) -> None:
    run, key = lesson.run, lesson.key
    clips, every = lesson.clips("train"), run.table().split("train")
    if not clips:
        raise UniegoError(
            f"teacher {key}: none of the {len(every)} train clips names {lesson.input}; name them in "
            f"{run.table().path}, or leave the teacher out"
        )
    others = f"; {len(every) - len(clips)} left out" if len(clips) < len(every) else ""
    say(f"teacher {key}: {len(clips)} of {len(every)} train clips name {lesson.input}{others}")
    task = lesson.task(clips, flag)
    plan = make_plan(run, lesson.train, clips)
    stream = make_batches(run, lesson.train, clips, lesson.reader())
    metadata = {"network": lesson.config.network, "classes": json.dumps(run.table().classes), **lesson.metadata()}

    def write(name: str, tensors: Mapping[str, Tensor]) -> None:
        path = folder.path if name == "model" else folder.path / name
        check_finite(tensors, f"trained weights for {path}")
        path.mkdir(exist_ok=True)
        replace_tensors(path / WEIGHTS, tensors, metadata)

    train_and_write(folder.path, task, plan, stream, flag, write)


def _evaluate(lesson: Lesson, folder: TaskFolder, flag: StopFlag) -> dict[str, Any]:
    """Accuracy on test of the network as extraction loads it; writes results.json and predictions.csv."""
    run, clips = lesson.run, lesson.clips("test")
    module = build_teacher(lesson.key, _with_weights(lesson.config, folder)).module
    title = f"teacher {lesson.key} on test"
    if clips:
        device = resolve_device(run.config.compute)
        reader, protocol = lesson.reader(), lesson.protocol
        found = recognise(run, module.to(device), clips, protocol, flag, reader=reader, title=title)
    else:
        warn(f"no test clip names {lesson.input}: the accuracy of teacher {lesson.key} is not measured")
        found = Recognition((), torch.empty(0, run.table().num_classes), torch.empty(0, dtype=torch.int64), ())
    results = {"model": f"teacher:{lesson.key}", "protocol": lesson.protocol._asdict(), **found.metrics()}
    files.write_bytes(folder.path / "predictions.csv", predictions(run, found))
    files.write_json(folder.path / "results.json", results)
    return results


def _say_next(run: Run, key: str) -> None:
    config = run.config.teachers[key]
    if is_trained_here(config):
        say(f"next: {run.command(f'extract-teachers --teacher {key}')}")
        return
    fields = "`weights: null`" + (" and `architecture: {}`" if config.architecture else "")
    warn(f"extraction does not take it, since teachers.{key}.weights is {config.weights}: for that, set {fields} there")
