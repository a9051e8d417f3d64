"""What a published recipe costs, by its operation counts: GPU-hours before anything is begun."""

from __future__ import annotations

from ..models.teachers.costs import ViT, timesformer_flops, vit_flops
from .config import RunConfig

H200 = {"fp32": (67e12, 0.6), "bf16": (790e12, 0.45)}
"""Operations per second of one H200 and the share of them assumed: fp32 as in the data sheet, without TF32; bf16 as
measured for a matrix product."""
_FRAMES = 8

# SigLIP So400m at 384, DINOv2-L at 224, Depth Anything-L's encoder at 518: eight frames of either view each
_IMAGES = (
    (ViT(1152, 27, 4304, 14, 0, pooled_by_attention=True), 384),
    (ViT(1024, 24, 4096, 14), 224),
    (ViT(1024, 24, 4096, 14), 518),
)


def stage_flops(config: RunConfig, train: int, test: int) -> dict[str, float]:
    """Operations per stage with the nine published teachers, for that many clips, each of them in a pair.

    A backward pass counts twice a forward pass. `exo_rgb` is trained, too; exo_skl's training is below one per cent.
    """
    net = config.student
    clip = timesformer_flops(net.width, net.depth, net.patch_size, net.image_size, net.num_frames)
    pair = 2 * _FRAMES * sum(vit_flops(shape, side, side) for shape, side in _IMAGES) + clip
    video, proxies, student = config.train_teachers.video.train, config.proxies.train, config.distill.train
    views = config.evaluate.views * config.evaluate.crops
    return {
        "train-teacher": 3.0 * clip * video.epochs * train,
        "extract-teachers": float(pair * (train + test)),
        "train-proxies": clip * (3.0 * proxies.epochs + 1) * len(config.teachers) * train,
        "distill": 3.0 * clip * (config.merge.epochs + student.epochs) * train,
        "evaluate": float(clip * views * test),
    }


def gpu_hours(config: RunConfig, train: int, test: int, precision: str) -> float:
    """Hours of one H200 at the assumed share of its arithmetic in that precision (fp32 or bf16), for all stages."""
    peak, share = H200[precision]
    return sum(stage_flops(config, train, test).values()) / (peak * share) / 3600


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def outlook(config: RunConfig, train: int, test: int) -> str:
    """The cost in a sentence."""
    told = []
    for precision, (peak, share) in H200.items():
        hours = gpu_hours(config, train, test, precision)
        told.append(f"{_hours(hours)} GPU-hours in {precision} ({share:.0%} of {peak / 1e12:.0f} TFLOP/s)")
    return f"cost by operation counts, on one H200: about {' or '.join(told)}, {train} train and {test} test clips"
