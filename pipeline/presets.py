"""Shipped configurations: the published recipe per data set, and a small one for trying things on a CPU.

Published results of the full recipe (arXiv 2606.20559); retrieval as reported second-hand:

| preset         | classes    | K | w_f / w_l | test views x crops | top-1 | retrieval mAP |
|----------------|------------|---|-----------|--------------------|-------|---------------|
| egoexo_fitness | 12         | 1 | 5 / 1     | 1 x 3              | 84.7  | 0.543         |
| assembly101    | 24 (verbs) | 1 | 5 / 5     | 1 x 3              | 50.7  | 0.253         |
| egoexo4d       | 665        | 2 | 5 / 1     | 10 x 3             | 41.1  | 0.182         |

What they share (SGD 0.005 with Nesterov momentum 0.9, weight decay 1e-4, 15 epochs with steps at 11 and 14,
batches of 64 in micro-batches of 8, tau 4, lambda 1, two epochs of Adam 0.01 for the merge) is the default of
`config`. How the paper's exo_rgb and exo_skl were trained is not published: here the first is trained as the student's
network is, the second as PYSKL trains ST-GCN (80 epochs: it counts 16 of a data set repeated five times).

Every preset has a variant `<name>-release` that computes as the released code does where the default does not:
`RELEASE` lists the fields. `notes` says where each value comes from; these become comments in run.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..models.teachers import default_teachers, tiny_teachers
from .config import (
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExtractConfig,
    OptimizerConfig,
    ProxiesConfig,
    RunConfig,
    ScheduleConfig,
    SkeletonTeacherTraining,
    StudentConfig,
    TrainConfig,
    TrainTeachersConfig,
    VideoTeacherTraining,
)
from .configfile import with_overrides

# The ImageNet weights that the released code starts from (ViT-B/16, pre-trained on ImageNet-21k, fine-tuned
# on ImageNet-1k at 224 pixels), in the hub's conversion. The head is not used.
IMAGE_WEIGHTS = "hub:google/vit-base-patch16-224"


HAND_EDGES = [
    *([6, 5], [7, 6], [0, 7]),
    *([8, 5], [9, 8], [10, 9], [1, 10]),
    *([11, 5], [12, 11], [13, 12], [2, 13]),
    *([14, 5], [15, 14], [16, 15], [3, 16]),
    *([17, 5], [18, 17], [19, 18], [4, 19]),
    [20, 5],
]
"""Assembly101's hand: tips 0 to 4, wrist 5, fingers 6 to 19. The data set's own graph leaves joint 20 out; a tree needs
it, so that it hangs from the wrist."""


def egoexo_fitness() -> RunConfig:
    """EgoExo-Fitness: 12 actions of body-weight exercise."""
    return _published("egoexo_fitness", classes=12, top_k=1, logit_weight=1.0, views=1)


def assembly101() -> RunConfig:
    """Assembly101: 24 verbs of toy assembly; segments last 0.93 s at the median.

    Its skeletons are hands in space, not bodies: exo_skl reads these, and exo_skego sees the whole frame.
    """
    config = _published("assembly101", classes=24, top_k=1, logit_weight=5.0, views=1)
    pool = dict(config.teachers)
    pool["exo_skl"] = pool["exo_skl"].model_copy(update={"edges": HAND_EDGES, "pose_dims": 3})
    pool["exo_skego"] = pool["exo_skego"].model_copy(update={"crop": None})
    return config.model_copy(update={"teachers": pool})


def egoexo4d() -> RunConfig:
    """Ego-Exo4D: 665 keysteps of skilled activity."""
    return _published("egoexo4d", classes=665, top_k=2, logit_weight=1.0, views=10)


def _published(name: str, *, classes: int, top_k: int, logit_weight: float, views: int) -> RunConfig:
    return RunConfig(
        preset=name,
        data=DataConfig(num_classes=classes),
        teachers=default_teachers(),
        student=StudentConfig(init=IMAGE_WEIGHTS),
        distill=DistillConfig(top_k=top_k, feature_weight=5.0, logit_weight=logit_weight),
        evaluate=EvaluateConfig(views=views, crops=3),
    )


def tiny() -> RunConfig:
    """Small, seeded, untrained teachers and a small student: the whole road in seconds, without knowledge."""
    train = TrainConfig(
        epochs=3,
        global_batch=8,
        micro_batch=4,
        schedule=ScheduleConfig(steps=[0.0, 2.0], factors=[1.0, 0.1]),
    )
    short = TrainConfig(
        epochs=3,
        global_batch=4,
        micro_batch=4,
        optimizer=OptimizerConfig(lr=0.05, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="cosine"),
    )
    return RunConfig(
        preset="tiny",
        teachers=tiny_teachers(),
        train_teachers=TrainTeachersConfig(
            video=VideoTeacherTraining(train=short),
            skeleton=SkeletonTeacherTraining(base_width=8, stages=4, inflate=[2, 3], train=short),
        ),
        extract=ExtractConfig(batch_clips=4),
        student=StudentConfig(image_size=32, patch_size=8, num_frames=4, width=48, depth=3, heads=4),
        augment=AugmentConfig(short_side=[36, 44]),
        proxies=ProxiesConfig(train=train),
        distill=DistillConfig(train=train),
        evaluate=EvaluateConfig(views=1, crops=3, single_short_side=36),
        compute=ComputeConfig(device="cpu", threads=1, workers=0),
    )


RELEASE: dict[str, tuple[str, str]] = {
    "sampling.policy": (
        "window",
        "picks over 8.53 s whatever the clip's length, its last frame repeated when it is shorter; the default spreads "
        "them over the clip, since most clips are shorter",
    ),
    "distill.normalise_over": (
        "micro_batch",
        "the released code divides by the clips with a selection of one GPU's micro-batch; by default the objective "
        "depends neither on the number of GPUs nor on accumulation where the count is known",
    ),
    "distill.train.micro_batch": (
        "2",
        "that micro-batch is 2 clips, 8 over 4 GPUs; the default is 8 in one pass, which is faster",
    ),
    "cache.dtype": ("float32", "the released features are float32 files; half of the space loses nothing measurable"),
    "extract.precision": ("fp32", "no reduced precision; by default bf16 on a GPU where features agree to 0.999"),
}
"""Fields of a release variant that differ from the default: value (YAML), and why. Training is fp32 in both."""

RESULTS = {"egoexo_fitness": (84.7, 0.543), "assembly101": (50.7, 0.253), "egoexo4d": (41.1, 0.182)}
"""Reported top-1 accuracy in per cent, and mean average precision of retrieval (second-hand), by preset."""

_RECIPE = "the published recipe (arXiv 2606.20559 and its released code)."
_SOURCES = {
    "seed": _RECIPE,
    "student.image_size": _RECIPE,
    "student.patch_size": f"ViT-B/16, {_RECIPE}",
    "student.num_frames": _RECIPE,
    "student.width": f"ViT-B/16, {_RECIPE}",
    "student.depth": f"ViT-B/16, {_RECIPE}",
    "student.heads": f"ViT-B/16, {_RECIPE}",
    "student.drop_path": _RECIPE,
    "student.init": "The released code starts from ImageNet weights of ViT-B/16; this is the hub's conversion of them.",
    "sampling.policy": "Of this project: the released code has window (docs/differences.md).",
    "sampling.rate": _RECIPE,
    "augment.short_side": _RECIPE,
    "augment.flip": _RECIPE,
    "augment.mean": _RECIPE,
    "augment.std": _RECIPE,
    "proxies.feature_distance": _RECIPE,
    "proxies.feature_weight": f"lambda: {_RECIPE}",
    "merge.level": _RECIPE,
    "merge.epochs": _RECIPE,
    "merge.lr": _RECIPE,
    "distill.top_k": f"K: {_RECIPE}",
    "distill.threshold": f"tau: {_RECIPE}",
    "distill.require_correct": _RECIPE,
    "distill.feature_weight": f"w_f: {_RECIPE}",
    "distill.logit_weight": f"w_l: {_RECIPE}",
    "distill.normalise_over": "Of this project: the released code has micro_batch (docs/differences.md).",
    "evaluate.views": _RECIPE,
    "evaluate.crops": _RECIPE,
    "evaluate.single_short_side": _RECIPE,
    "compute.precision": f"{_RECIPE} On a GPU bf16 is many times faster.",
    "data.num_classes": "Classes of the data set as the paper counts them.",
} | {
    f"{stage}.train.{name}": _RECIPE
    for stage in ("proxies", "distill")
    for name in (
        *("epochs", "global_batch", "micro_batch"),
        *("optimizer.lr", "optimizer.momentum", "optimizer.nesterov", "optimizer.weight_decay"),
        *("schedule.kind", "schedule.steps", "schedule.factors"),
    )
}


def release(config: RunConfig) -> RunConfig:
    """The release variant of a preset."""
    changes = [f"{name}={value}" for name, (value, _) in RELEASE.items()]
    return with_overrides(config.model_copy(update={"preset": f"{config.preset}-release"}), changes)


def _released(make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    return lambda: release(make())


def notes(name: str, config: RunConfig) -> dict[str, str]:
    """Comments for run.yaml by dotted name: where the preset's values come from; none for a value that was changed.

    "" is the result that was published with the recipe. `config` began as the preset of that name.
    """
    base = name.removesuffix("-release")
    if base not in RESULTS:
        return {}
    top1, retrieval = RESULTS[base]
    told = {key: f"Source: {text}" for key, text in _SOURCES.items()}
    if base != name:
        told |= {key: f"As released: {why}." for key, (_, why) in RELEASE.items()}
    start = preset(name)
    told = {key: text for key, text in told.items() if value_of(start, key) == value_of(config, key)}
    told[""] = (
        f"Preset {name}: the paper reports {top1} % top-1 and, second-hand, {retrieval} mAP of retrieval. "
        "Lines that begin with Source say where a value comes from."
    )
    return told


def value_of(config: RunConfig, name: str) -> Any:
    """The value of the field of that dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "egoexo_fitness": egoexo_fitness,
    "assembly101": assembly101,
    "egoexo4d": egoexo4d,
    "tiny": tiny,
}
PRESETS |= {f"{name}-release": _released(make) for name, make in list(PRESETS.items())}


def preset(name: str) -> RunConfig:
    """The shipped configuration of that name; raises `UsageError` for an unknown one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown preset {name!r}{hint}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]()
