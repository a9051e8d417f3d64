"""The model card of an exported network: data, recipe, metrics, teachers and their licences, what it expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__
from ..models.teachers import TeacherConfig
from ..models.teachers.facts import TEACHERS, licence_of
from ..pipeline.rundir import Run
from .imported import imported
from .train_teacher import pool_in_force

_HEAD = """---
library_name: uniego
pipeline_tag: video-classification
license: other
tags:
- uniego
- egocentric-video
- video-encoder
- knowledge-distillation
---
"""
EGO_ONLY = "ego-only"
_MOST_CLASSES = 50  # that are named


def model_card(run: Run, model: str, config: Mapping[str, Any], weights: str, *, onnx: bool = False) -> str:
    """Markdown with the hub's header. `config`: what config.json says; `weights`: the hash of the network's file."""
    teachers = pool_in_force(run)
    key = model.partition(":")[2]
    taught = {key: teachers[key]} if key else {} if model == EGO_ONLY else teachers
    origin = imported(run.proxy_folder(key) if key in run.config.teachers else run.variant_folder(model))
    made = _origin(run, config, origin) if origin else [*_data(run, config), *_recipe(run, model, taught)]
    parts = [
        _HEAD,
        *_what(run, model, config, onnx=onnx),
        *_use(config),
        *made,
        *_metrics(run, model, weights),
        *(_teachers(taught) if taught and not origin else ()),
    ]
    return "\n".join(parts) + "\n"


def _what(run: Run, model: str, config: Mapping[str, Any], *, onnx: bool) -> list[str]:
    g = config["geometry"]
    kind = f"The proxy of the teacher `{model.partition(':')[2]}`" if ":" in model else "The student"
    lines = [
        f"# {kind if ':' in model else 'UNIEGO student'}",
        "",
        f"{kind} of a [UNIEGO](https://arxiv.org/abs/2606.20559) run: a video encoder that needs the ego video alone, "
        f"made with uniego {__version__} (preset `{run.config.preset}`).",
        "",
        f"TimeSformer with divided space-time attention: width {g['width']}, depth {g['depth']}, {g['heads']} heads, "
        f"patches of {g['patch_size']} pixels, {g['num_frames']} frames of {g['image_size']} x {g['image_size']}, "
        f"{g['num_classes']} classes.",
    ]
    if onnx:
        lines += [
            "",
            "`model.onnx` holds the same network: `video` float32 [batch, 3, T, S, S], normalised as below, to `token` "
            "[batch, width] and `logits` [batch, C].",
        ]
    return lines


def _use(config: Mapping[str, Any]) -> list[str]:
    look, protocol = config["input"], config["protocol"]
    fits = {
        "fit": "spread evenly over the clip, or over",
        "window": "of a window as the released code takes them, of",
    }
    seconds = look["num_frames"] * look["rate"] / 30
    crop = (
        f"short side {look['image_size']}, three crops"
        if protocol["crops"] == 3
        else f"short side {look['single_short_side']}, centre crop"
    )
    return [
        "",
        "## Use",
        "",
        "```python",
        "import uniego",
        "",
        'encoder = uniego.load("this-folder")',
        'embedding = encoder.encode("ego.mp4")  # float32 [width]',
        "```",
        "",
        f"Preprocessing: {look['num_frames']} frames, {fits[look['policy']]} at most {seconds:.2f} s; {crop} of "
        f"{look['image_size']} x {look['image_size']}; RGB / 255, then minus {look['mean']}, divided by {look['std']}. "
        f"Tokens are averaged and logits summed over {protocol['views']} x {protocol['crops']} views x crops.",
    ]


def _data(run: Run, config: Mapping[str, Any]) -> list[str]:
    table = run.table()
    splits = ", ".join(f"{number} {name}" for name, number in table.splits.items())
    names = [f"`{_plain(name)}`" for name in config["classes"][:_MOST_CLASSES]]
    more = len(config["classes"]) - len(names)
    return [
        "",
        "## Data",
        "",
        f"Clip table `{_plain(table.path.name)}`: {splits} clips. Trained on `train` alone; nothing was "
        "chosen on `test`.",
        "",
        f"Classes: {', '.join(names)}{f' and {more} more' if more else ''}.",
    ]


def _origin(run: Run, config: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """Of a network that the run did not train."""
    names = ", ".join(f"`{_plain(name)}`" for name in config["classes"][:_MOST_CLASSES])
    return [
        "",
        "## Origin",
        "",
        "Imported from a checkpoint, not trained by this run: its data, recipe and teachers are those of whoever made "
        f"it, and so are their licences; nothing of it was verified. SHA-256 of the file: `{content.get('weights')}`.",
        "",
        f"The run's table calls its {config['geometry']['num_classes']} classes: {names}"
        f"{', …' if len(config['classes']) > _MOST_CLASSES else ''}.",
    ]


def _recipe(run: Run, model: str, teachers: Mapping[str, TeacherConfig]) -> list[str]:
    config, key = run.config, model.partition(":")[2]
    distill = config.distill.as_variant(model) or config.distill
    train = (config.proxies if key else distill).train
    lines = [
        "",
        "## Recipe",
        "",
        f"- Start: {config.student.init or 'random weights'}; seed {config.seed}.",
        f"- Teachers: {', '.join(f'`{name}`' for name in teachers)}." if teachers else "- Trained without teachers.",
    ]
    if not key and teachers:
        way = "Selective Proxy Distillation" if distill.method == "spd" else "Distillation for comparison"
        merged = f"Merge of the proxies: {_settings(config.merge.model_dump())}. " if distill.init == "merged" else ""
        lines.append(f"- {merged}{way}: {_settings({k: v for k, v in distill.model_dump().items() if k != 'train'})}.")
    elif key:
        lines.append(f"- Proxy: {_settings({k: v for k, v in config.proxies.model_dump().items() if k != 'train'})}.")
    lines.append(f"- Training: {_settings({k: v for k, v in train.model_dump().items() if k != 'checkpoint'})}.")
    return lines


def _settings(values: Mapping[str, Any]) -> str:
    """Settings as "name value", those of a section in brackets."""
    shown = (f"{name} ({_settings(v)})" if isinstance(v, dict) else f"{name} {_value(v)}" for name, v in values.items())
    return ", ".join(shown)


def _value(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "/".join(map(str, value))
    return str(value)


def _metrics(run: Run, model: str, weights: str) -> list[str]:
    folder = run.evaluation_folder(model)
    lines = ["", "## Metrics", ""]
    record = folder.record
    if record is None or not folder.done or record["fingerprint"].get("weights") != weights:
        return [*lines, "Not evaluated. `uniego evaluate` in the run does it; export again for the numbers."]
    tasks: Mapping[str, Any] = record["results"]["tasks"]
    told = [told for name, tell in _TOLD.items() if name in tasks and (told := tell(tasks[name]))]
    return [*lines, *(f"- {one}" for one in told)]


_ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}
_RETRIEVAL = {"map": "mAP", "r@1": "R@1", "r@5": "R@5", "r@10": "R@10"}
_SEGMENTATION = {"mof": "MoF", "edit": "Edit", "f1@10": "F1@10", "f1@25": "F1@25", "f1@50": "F1@50"}


def _numbers(results: Mapping[str, Any], names: Mapping[str, str]) -> str:
    shown = [f"{name} {results[key]:.1f} %" for key, name in names.items() if results.get(key) is not None]
    return ", ".join(shown) or "no number"


def _recognition(results: Mapping[str, Any]) -> str:
    protocol = results["protocol"]
    few = f" (top-5: {protocol['top5']})" if "top5" in protocol else ""
    return (
        f"Recognition on the test split, {protocol['views']} x {protocol['crops']} views x crops, {results['clips']} "
        f"clips ({results['failed']} could not be decoded): {_numbers(results, _ACCURACIES)}{few}."
    )


def _retrieval(results: Mapping[str, Any]) -> str:
    found = results.get("ego_to_ego")
    if found is None:
        return ""
    protocol = found["protocol"]
    return (
        f"Retrieval ego to ego, {protocol['query']} against {protocol['gallery']}, {protocol['left_out']} left out, "
        f"relevant are {protocol['relevant']}; {found['queries']} queries: {_numbers(found, _RETRIEVAL)}."
    )


def _segmentation(results: Mapping[str, Any]) -> str:
    protocol = results["protocol"]
    return (
        f"Temporal action segmentation, {protocol['split']}; {protocol['features']}; {protocol['head']}: "
        f"{_numbers(results, _SEGMENTATION)}."
    )


def _probe(results: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {_numbers(found, _ACCURACIES)}"
        for key, name in (("linear", "linear probe"), ("knn", "k-NN"))
        if (found := results.get(key)) is not None
    ]
    return f"Frozen embeddings, fitted on train, measured on test: {'; '.join(parts)}."


_TOLD = {"recognition": _recognition, "retrieval": _retrieval, "segmentation": _segmentation, "probe": _probe}


def _teachers(teachers: Mapping[str, TeacherConfig]) -> list[str]:
    lines = [
        "",
        "## Teachers and licences",
        "",
        "The network learned from these frozen teachers. Whether a teacher's licence binds a network that learned from "
        "it is for you to judge, and so is the licence of the data.",
        "",
        "| teacher | view | network | weights | licence |",
        "|---|---|---|---|---|",
    ]
    for key, config in teachers.items():
        licence = licence_of(config.source)
        name = f"{licence.name}{', NON-COMMERCIAL' if licence.non_commercial else ''}"
        known = TEACHERS.get(key)
        view = known.view if known else config.view or "?"
        place = "trained on the data set" if config.source is None else _place(config)
        lines.append(f"| `{key}` | {view} | {config.network} | {_plain(place)} | {name} |")
    return lines


def _place(config: TeacherConfig) -> str:
    """Where weights come from, without the folders of this machine."""
    source = config.source
    if source is None or source.shipped or source.kind in ("hub", "random"):
        return str(source)
    return f"{source.kind}:{source.location.rstrip('/').rsplit('/', 1)[-1]}"


def _plain(text: str) -> str:
    """Text that ends no cell and no code span of Markdown."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")
