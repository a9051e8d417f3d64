"""Recognition on the test split, by the published protocol: views x crops, raw logits summed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import MissingInputError, UniegoError, UsageError
from ..pipeline import files
from ..pipeline.progress import results_console, say, warn
from ..pipeline.rundir import Run, TaskFolder
from ..pipeline.signals import StopFlag
from .compute import prepare
from .encoder import CONFIG, WEIGHTS, read_model, run_protocol
from .fingerprints import clips_hash, training_fingerprint
from .recognition import Recognition, recognise


def evaluate(run: Run, *, model: str = "student", overwrite: bool = False) -> dict[str, Any]:
    """Top-1, top-5 and mean class accuracy on the test split, printed and written to RUN/evaluate/<model>/.

    `model` is "student", a variant of it such as "naive-imagenet", or "proxy:<teacher>". Returns the results. Raises
    `MissingInputError` naming the command that trains it, `UniegoError` for a table without a test split.
    """
    trained = _model_folder(run, model)
    source = trained.path / "model"
    clips = run.table().split("test")
    if not clips:
        raise UniegoError(f"{run.table().path} has no clip in the test split: nothing to evaluate on")
    device = prepare(run.config.compute)
    folder = run.evaluation_folder(model)
    network, config = read_model(source)
    protocol, reader = run_protocol(run.config, config)
    fingerprint = {
        "weights": files.hash_file(source / WEIGHTS),
        "test_clips": clips_hash(clips),
        "protocol": protocol._asdict(),
        "input": asdict(reader),
        "precision": run.config.compute.precision,
    }
    changed = bool(folder.differences(fingerprint))  # results are cheap: new ones replace those of something else
    with folder.work(fingerprint, overwrite=overwrite or changed) as needed:
        if needed:
            with StopFlag() as flag:
                title = f"evaluate {model}"
                result = recognise(run, network.to(device), clips, protocol, flag, reader=reader, title=title)
            if not len(result.labels):
                raise UniegoError(f"none of the {len(clips)} test clips could be decoded")
            files.write_bytes(folder.path / "predictions.csv", predictions(run, result))
            folder.finish({"model": model, **result.metrics()})
        else:
            say(f"evaluation of {model}: finished before, nothing to do")
    results = folder.results
    print_results(results, protocol._asdict(), folder.path)
    return results


def _model_folder(run: Run, model: str) -> TaskFolder:
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
        names = ", ".join(["student", *run.variants(), *(f"proxy:{key}" for key in run.config.teachers)])
        raise UsageError(f"unknown model {model!r}: use one of {names}, or <method>-<init> of uniego distill")
    if not folder.done or not (folder.path / "model" / CONFIG).exists():
        raise MissingInputError(f"{model} is not trained yet: run `{command}` first")
    different = [name for name in folder.differences(wanted) if not name.startswith("inputs")]
    if different:
        warn(f"{model} was trained under other settings than the run has now ({', '.join(different[:5])})")
    return folder


def predictions(run: Run, result: Recognition) -> bytes:
    """A row per clip: id, label, prediction, the label's rank (1 = right), probability of the prediction."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["clip_id", "label", "predicted", "label_rank", "probability"])
    ranked = result.logits.argsort(dim=1, descending=True, stable=True)
    ranks = (ranked == result.labels.unsqueeze(1)).int().argmax(dim=1) + 1
    confidence = result.logits.softmax(dim=1).amax(dim=1)
    classes = run.table().classes
    for i, clip in enumerate(result.clips):
        predicted = int(ranked[i, 0])
        name = classes[predicted] if predicted < len(classes) else str(predicted)
        label = classes[clip.label] if clip.label < len(classes) else str(clip.label)
        writer.writerow([clip.clip_id, label, name, int(ranks[i]), f"{confidence[i]:.4f}"])
    for failure in result.failures:
        writer.writerow([failure.clip_id, "", "", "", failure.reason])
    return out.getvalue().encode()


def print_results(results: Mapping[str, Any], protocol: Mapping[str, int], folder: Path) -> None:
    """A table of accuracies, and where the predictions lie."""
    table = Table("clips", "views x crops", "top-1", "top-5", "mean class", title=f"{results['model']} on test")
    accuracies = (f"{results[key]:.1f}" for key in ("top1", "top5", "mean_class_accuracy"))
    table.add_row(str(results["clips"]), f"{protocol['views']} x {protocol['crops']}", *accuracies)
    results_console().print(table)
    if results["failed"]:
        say(f"{results['failed']} clips could not be decoded and are not counted; see {folder / 'predictions.csv'}")
    say(f"predictions: {folder / 'predictions.csv'}")
