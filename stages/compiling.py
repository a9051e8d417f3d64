"""torch.compile for the blocks of a TimeSformer, and what happens where that cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..models import TimeSformer, draw_drop_masks
from ..pipeline.progress import say, warn
from .compute import autocast

Backend = str | Callable[..., Any]


def compile_blocks(model: TimeSformer, batch: int, precision: str, backend: Backend = "inductor") -> bool:
    """Compile the blocks for training in micro-batches of `batch` clips; names and values of the state stay.

    backend: as `torch.compile` takes it. A trial step, which trains nothing, shows whether it works here: where it does
    not, the network is left as it was, with a warning that names the cause. Returns whether it is compiled.
    """
    model.compile_blocks(backend)
    try:
        _try(model, batch, precision)
    except Exception as error:  # whatever a compiler raises, training goes on without it
        model.compile_blocks(None)
        cause = " ".join(line.strip() for line in str(error).splitlines()[:3])
        warn(
            "compute.compile: the network is trained without, since compiling it fails here "
            f"({type(error).__name__}: {cause})"
        )
        return False
    finally:
        model.zero_grad(set_to_none=True)
    say("compute.compile: the network's blocks are compiled")
    return True


def _try(model: TimeSformer, batch: int, precision: str) -> None:
    """A forward and a backward pass of black pictures, with the shapes and the kinds of masks that training has."""
    geometry, rates, device = model.geometry, model.drop_rates, model.cls_token.device
    frames, side = geometry["num_frames"], geometry["image_size"]
    video = torch.zeros(batch, 3, frames, side, side, device=device)
    rows, columns = model.grid(side, side)
    masks = None
    if model.training and any(rates):
        masks = draw_drop_masks(rates, rows * columns, frames, [np.random.default_rng(0)] * batch, device)
    with autocast(device, precision):
        out = model(video, drop_masks=masks)
        total = sum(value.float().sum() for value in (out.logits, *out.projected.values()))
    torch.as_tensor(total).backward()  # type: ignore[no-untyped-call]
