"""Gradients of a step that several processes share: one sum over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import ranks

_BUCKET = 64 * 2**20  # bytes: few sums, and little memory beside the gradients


def sum_gradients(parameters: Sequence[Tensor], filled: Sequence[int]) -> None:
    """Replace each parameter's gradient by its sum over all processes.

    filled: per parameter, how many processes have a gradient of it. One that has none adds zeros; a parameter that
    nobody has a gradient of keeps none, so that the optimiser passes it over as it would in one process.
    """
    reached = [parameter for parameter, count in zip(parameters, filled, strict=True) if count]
    for bucket in _buckets(reached):
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
        flat = ranks.all_sum(torch.cat([part.reshape(-1) for part in parts]))
        for parameter, summed in zip(bucket, torch.split(flat, [part.numel() for part in parts]), strict=True):
            parameter.grad = summed.view_as(parameter)


def mean_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace floating-point tensors of one type by their mean over all processes."""
    if tensors and ranks.world() > 1:
        flat = ranks.all_sum(torch.cat([tensor.reshape(-1) for tensor in tensors])) / ranks.world()
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, up to the size of a bucket or one tensor."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.nbytes > _BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket
