"""Configurations of the rendered world: the nine small trained teachers, a small student, minutes on two cores."""

from __future__ import annotations

from ..pipeline.config import (
    AugmentConfig,
    ComputeConfig,
    DistillConfig,
    EvaluateConfig,
    OptimizerConfig,
    ProxiesConfig,
    RunConfig,
    ScheduleConfig,
    SegmentationConfig,
    SegmentationHeadConfig,
    StudentConfig,
    TrainConfig,
)
from .actions import ALL_ACTIONS
from .teachers import demo_teachers

PROXY_EPOCHS, STUDENT_EPOCHS = 8, 6
LEARNING_RATE = 0.005


def demo_config(seed: int = 0) -> RunConfig:
    """Student and proxies of 8 frames of 48 x 48 pixels in 16 patches, width 64, three blocks; 16 clips a step."""
    return RunConfig(
        preset="demo",
        seed=seed,
        teachers=demo_teachers(),
        student=StudentConfig(
            image_size=48, patch_size=12, num_frames=8, width=64, depth=3, heads=4, init="demo:start"
        ),
        # Mirroring would turn "the left hand" into the right one, which the actions do not care about.
        augment=AugmentConfig(short_side=[52, 60]),
        proxies=ProxiesConfig(train=training(PROXY_EPOCHS)),
        distill=DistillConfig(feature_weight=1.0, train=training(STUDENT_EPOCHS)),
        evaluate=EvaluateConfig(
            views=1,
            crops=3,
            single_short_side=52,
            segmentation=SegmentationConfig(
                stride=2,
                head=SegmentationHeadConfig(layers=7, refinements=2, refinement_layers=6, epochs=40),
            ),
        ),
        compute=ComputeConfig(threads=1, workers=2),
    )


def evidence_config(seed: int = 0) -> RunConfig:
    """The demo's student and proxies on all twelve actions, eight epochs for each; trainings read stored clips."""
    config = demo_config(seed)
    return config.model_copy(
        update={
            "teachers": demo_teachers(len(ALL_ACTIONS)),
            "clips": config.clips.model_copy(update={"source": "store"}),
            "distill": config.distill.model_copy(update={"train": training(PROXY_EPOCHS)}),
            "compute": config.compute.model_copy(update={"workers": 1}),
        }
    )


def training(epochs: int) -> TrainConfig:
    """SGD as in the published recipe, its steps at the same shares of a shorter training; a warm-up for new heads."""
    return TrainConfig(
        epochs=epochs,
        global_batch=16,
        micro_batch=16,
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        schedule=ScheduleConfig(steps=[0.0, 0.73 * epochs, 0.93 * epochs], factors=[1.0, 0.1, 0.01], warmup_epochs=1.0),
    )
