"""What the proxies can teach about each clip, as far as the cache alone decides it: computed once, before training.

A proxy's cross-entropy, whether it is right, and the order of the proxies by cross-entropy never change in stage 3.
Under the rule "confident" only the K first of that order can ever teach a clip, and those that do are the first ones
of these, up to the student's own cross-entropy. So the bank keeps S candidates per clip in that order, each with the
limit that the student's cross-entropy must exceed, and a step gathers rows and compares two numbers per slot.

N clips, R proxies, P candidates per clip: S = K (or K per view) where the most confident ones teach, all R where they
are drawn or all teach. D width of the tokens, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cache import FeatureStore
from ..cache.view import Arrays, Part, content_key, resident
from ..pipeline import files
from ..pipeline.config import SPDConfig
from ..pipeline.progress import count
from ..pipeline.rundir import Run
from .batches import Batch
from .spd import able_proxies, choose, gather_slots, slots
from .targets import Bank, output_blocks
from .view import open_view, take


class ProxyBank(NamedTuple):
    """Candidates of N clips.

    tokens: float32 [N, P, D]; log_probs: float32 [N, P, C], log softmax of the logits. Both finite in every slot.
    limit: float32 [N, P]: the slot teaches a student whose cross-entropy is greater. +inf: never; -inf: always.
    proxy: int64 [N, P], which proxy the slot is of.
    present, correct: bool [N, R], whether each proxy has an output, and predicts the label.
    """

    tokens: Tensor
    log_probs: Tensor
    limit: Tensor
    proxy: Tensor
    present: Tensor
    correct: Tensor


class Chosen(NamedTuple):
    """Candidates of a batch: tokens [b, S, D], log_probs [b, S, C], limit [b, S] and proxy [b, S] as in `ProxyBank`."""

    tokens: Tensor
    log_probs: Tensor
    limit: Tensor
    proxy: Tensor


def candidates(outputs: Bank, labels: Tensor, config: SPDConfig) -> ProxyBank:
    """The bank of some clips out of all outputs for them; labels int64 [N]."""
    entropy, able = able_proxies(labels, outputs.logits, outputs.present, config)  # [N,R]
    limit = torch.where(able, -torch.inf if config.select == "all" else entropy, torch.inf)
    if config.select == "random":
        columns = torch.arange(limit.shape[1]).expand(limit.shape)  # drawn at every step
    else:
        columns = choose(limit, config)  # [N,P]
    limit = limit.gather(1, columns)
    able = limit < torch.inf
    return ProxyBank(
        tokens=gather_slots(outputs.tokens, columns, able),
        log_probs=F.log_softmax(gather_slots(outputs.logits, columns, able), dim=-1),
        limit=limit,
        proxy=columns,
        present=outputs.present,
        correct=outputs.present & (outputs.logits.argmax(-1) == labels.unsqueeze(1)),
    )


def load_candidates(
    stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64], labels: Tensor, config: SPDConfig
) -> ProxyBank:
    """The bank of the clips at `rows`, in memory; labels int64 [N]."""
    fill = partial(_fill, stores=stores, rows=rows, labels=labels, config=config)
    arrays = resident(_parts(stores, len(rows), config), fill)
    return ProxyBank(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def training_bank(
    run: Run,
    folder: Path,
    stores: Sequence[FeatureStore],
    rows: npt.NDArray[np.int64],
    labels: Tensor,
    config: SPDConfig,
) -> ProxyBank:
    """`load_candidates`, bit for bit, wherever there is room for it: device, memory, or a file in `folder`.

    It is made some whole shards at a time: beside it, memory holds one block of all proxies' outputs.
    """
    recipe = [json.loads(config.model_dump_json()), files.hash_bytes(labels.numpy().tobytes())]
    key = content_key(stores, rows, ["proxy bank", *recipe])
    fill = partial(_fill, stores=stores, rows=rows, labels=labels, config=config)
    parts = _parts(stores, len(rows), config)
    kept, known = parts["limit"].shape[1], len(stores)
    title = f"proxy bank ({'all' if kept == known else f'the {kept} surest of'} {count(known, 'output')} per clip)"
    return ProxyBank(**open_view(title, folder, key, parts, fill, run.config.compute))


def _parts(stores: Sequence[FeatureStore], clips: int, config: SPDConfig) -> dict[str, Part]:
    proxies = len(stores)
    kept = proxies if config.select == "random" else slots(config, proxies)
    width, classes = (stores[0].arrays[name].shape for name in ("tokens", "logits"))
    return {
        "tokens": Part((clips, kept, *width), "float32"),
        "log_probs": Part((clips, kept, *classes), "float32"),
        "limit": Part((clips, kept), "float32"),
        "proxy": Part((clips, kept), "int64"),
        "present": Part((clips, proxies), "bool"),
        "correct": Part((clips, proxies), "bool"),
    }


def _fill(
    out: Arrays, stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64], labels: Tensor, config: SPDConfig
) -> None:
    for block, outputs in output_blocks(stores, rows):
        for name, values in candidates(outputs, labels[torch.from_numpy(block)], config)._asdict().items():
            out[name][block] = values.numpy()


def chosen(bank: ProxyBank, batch: Batch, columns: Tensor | None = None) -> Chosen:
    """The batch's candidates, on its device. columns: int64 [b, S] on the CPU, which ones of the P; None: all."""
    return Chosen(*(take(getattr(bank, name), batch, columns) for name in Chosen._fields))


def mean_cross_entropy(stores: Sequence[FeatureStore], rows: npt.NDArray[np.int64], labels: Tensor) -> list[float]:
    """Each proxy's mean cross-entropy over the clips that it has an output for; inf for one that has none."""
    total, known = torch.zeros(len(stores), dtype=torch.float64), torch.zeros(len(stores), dtype=torch.int64)
    anyone = SPDConfig(select="all")
    for block, outputs in output_blocks(stores, rows):
        entropy, able = able_proxies(labels[torch.from_numpy(block)], outputs.logits, outputs.present, anyone)
        total += torch.where(able, entropy, 0.0).double().sum(0)
        known += able.sum(0)
    means: list[float] = torch.where(known > 0, total / known.clamp(min=1), torch.inf).tolist()
    return means
