"""Networks. They know nothing of clips, files of a run, or stages."""

from __future__ import annotations

from .droppath import draw_drop_masks, drop_mask_shapes
from .pretrained import ImageWeightsReport, load_image_weights, read_image_weights
from .release import geometry_from_state, read_release_checkpoint
from .stgcn import STGCN, STGCNOutput
from .timesformer import TimeSformer, TimeSformerOutput

__all__ = [
    "STGCN",
    "ImageWeightsReport",
    "STGCNOutput",
    "TimeSformer",
    "TimeSformerOutput",
    "draw_drop_masks",
    "drop_mask_shapes",
    "geometry_from_state",
    "load_image_weights",
    "read_image_weights",
    "read_release_checkpoint",
]
