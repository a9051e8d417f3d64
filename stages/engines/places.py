"""Where processes that train run: on which device, how many beside each other, with how many threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...pipeline.config import ComputeConfig

CONTEXT = 0.7e9
"""Bytes of a GPU that every process takes for CUDA's context and libraries, whatever it computes."""
_MARGIN = 1.15  # validation and export come later, and the allocator breaks memory into pieces
_USABLE = 0.92  # of a GPU's memory
_MOST_PER_GPU = 9


@dataclass(frozen=True)
class Places:
    """Processes on these `devices` (their names, one per process); with `fill`, more of them on each GPU as soon as the
    first has shown what it needs. `threads`: of the arithmetic of each."""

    devices: Sequence[str]
    threads: int
    fill: bool = False


def places_for(config: ComputeConfig, here: torch.device, jobs: int | None, proxies: int) -> Places | None:
    """Places for so many proxies; None: one after the other in this process is all there is to it.

    `jobs` None: one per visible GPU, and several on one that is large enough; one on a CPU.
    """
    gpus = torch.cuda.device_count() if here.type == "cuda" else 0
    names = [f"cuda:{number}" for number in range(gpus)] if config.device == "auto" and gpus else [str(here)]
    fill = jobs is None and gpus > 0
    wanted = min(jobs or len(names), proxies)
    if wanted < 2 and not (fill and proxies > 1):
        return None
    devices = [names[number % len(names)] for number in range(wanted)]
    return Places(devices, threads_each(config.threads, os.cpu_count() or 1, jobs or len(devices)), fill)


def threads_each(threads: int | None, cores: int, jobs: int) -> int:
    """Threads of each of `jobs` processes: what is configured, or an equal share of the cores."""
    return threads if threads is not None else max(1, cores // jobs)


def fitting(total: float, peak: float) -> int:
    """How many equal trainings fit a GPU of `total` bytes, at least 1 and at most 9.

    `peak`: the most bytes that the allocator of the first has held once its first step was done: weights, gradients,
    momentum and activations are all in it then.
    """
    return max(1, min(_MOST_PER_GPU, int(total * _USABLE / (peak * _MARGIN + CONTEXT))))
