"""A proxy's outputs over the train split, into the cache: token and logits, one view, centre crop, no flip."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowStatus, fits
from ..errors import CoverageError
from ..models import TimeSformer
from ..pipeline import files
from ..pipeline.clips import Clip
from ..pipeline.progress import Meter, warn
from ..pipeline.rundir import Run
from ..pipeline.signals import StopFlag
from ..pipeline.video import backend_identity
from .batches import SINGLE, Batch, load
from .clip_source import source_fingerprint, training_reader
from .compute import compare_makers, made_with, maker
from .loop import autocast
from .targets import row_keys

_BATCH = 8  # clips
_REASON_NON_FINITE = "non_finite"


def outputs_name(run: Run, teacher: str, weights: str) -> str:
    """Name of the store in the cache: by content, so that runs that share a cache keep their own.

    `weights` is the hash of the proxy's weights file.
    """
    identity = files.hash_bytes(json.dumps(_fingerprint(run, weights), sort_keys=True).encode())
    return f"proxy-{teacher}-{identity[:16]}"


def outputs_complete(run: Run, index: ClipIndex, name: str, rows: npt.NDArray[np.int64]) -> bool:
    """Whether the store of that name holds all train clips; `rows` are theirs."""
    path = run.cache_root / name
    if not path.exists():
        return False
    return not FeatureStore.open(path, index).pending(rows)


def _fingerprint(run: Run, weights: str) -> dict[str, Any]:
    return {
        "weights": weights,
        "sampling": run.config.sampling.model_dump(),
        "single_short_side": run.config.evaluate.single_short_side,
        "normalisation": [run.config.augment.mean, run.config.augment.std],
        "decoder": backend_identity(run.config.video.backend),
        "precision": run.config.compute.precision,
        **source_fingerprint(run.config),
    }


def export_outputs(
    run: Run, teacher: str, index: ClipIndex, model: TimeSformer, weights: str, flag: StopFlag
) -> FeatureStore:
    """Write tokens float32 [N, width] and logits float32 [N, C] of the train clips; continues by shards.

    `model` must be in eval mode on the device of the run, `weights` the hash of its file. Raises `Stopped` between
    two shards, `CoverageError` when fewer clips than `extract.min_coverage` have outputs at the end.
    """
    geometry = model.geometry
    arrays = {
        "tokens": ArraySpec((geometry["width"],), "float32", ("width",), "CLS token after the final norm"),
        "logits": ArraySpec((geometry["num_classes"],), "float32", ("class",), "raw class scores"),
    }
    name = outputs_name(run, teacher, weights)
    made = made_with(run.config, model.cls_token.device, _BATCH)
    attributes = {
        "teacher": teacher,
        "made_by": "proxy",
        "view": "ego",
        "protocol": SINGLE._asdict(),
        "made_with": made,
    }
    fingerprint = _fingerprint(run, weights)
    store = FeatureStore.create(run.cache_root / name, index, arrays, fingerprint, attributes, maker=maker(made))
    compare_makers([store], made, strict=False)
    clips = run.table().split("train")
    by_row = dict(zip(index.rows(row_keys(run, clips)).tolist(), range(len(clips)), strict=True))
    pending = store.pending(np.array(sorted(by_row), dtype=np.int64))
    work = [[row for row in index.shard_rows(shard) if row in by_row] for shard in pending]
    total = sum(len(rows) for rows in work)
    with Meter(f"proxy {teacher}: outputs", len(clips), resumed=len(clips) - total) as meter:
        _Export(run, model, clips, by_row).write(store, dict(zip(pending, work, strict=True)), meter, flag)
    _check_coverage(run, teacher, store, sorted(by_row))
    return store


def _check_coverage(run: Run, teacher: str, store: FeatureStore, rows: list[int]) -> None:
    counts = store.coverage(np.array(rows, dtype=np.int64))
    done, minimum = counts["done"], run.config.extract.min_coverage
    if done < len(rows):
        warn(f"proxy {teacher}: outputs of {done} of {len(rows)} train clips; the others could not be decoded")
    if done < minimum * len(rows) or not done:
        raise CoverageError(
            f"proxy {teacher}: {done} of {len(rows)} train clips have outputs, below extract.min_coverage "
            f"({100 * minimum:.1f} %); mend the clips or lower the minimum"
        )


class _Export:
    """One pass over the shards that are left; decoding runs ahead over shard borders."""

    def __init__(self, run: Run, model: TimeSformer, clips: list[Clip], by_row: dict[int, int]) -> None:
        self.run, self.model, self.clips, self.by_row = run, model, clips, by_row
        self.device = model.cls_token.device

    def write(self, store: FeatureStore, work: dict[int, list[int]], meter: Meter, flag: StopFlag) -> None:
        portions = [
            (shard, rows[at : at + _BATCH]) for shard, rows in work.items() for at in range(0, len(rows), _BATCH)
        ]
        order = [[(-1, self.by_row[row]) for row in rows] for _, rows in portions]
        compute = self.run.config.compute
        pin = self.device.type == "cuda"
        reader = training_reader(self.run)
        stream = load(reader, self.clips, order, protocol=SINGLE, workers=compute.workers, pin_memory=pin)
        done = zip((shard for shard, _ in portions), map(self._forward, stream), strict=True)
        for shard, batches in groupby(done, key=lambda pair: pair[0]):
            self._write_shard(store, shard, [result for _, result in batches])
            meter.advance(len(work[shard]))
            flag.check()

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> tuple[Batch, dict[str, np.ndarray[Any, Any]]]:
        if not batch.rows:
            return batch, {}
        with autocast(self.device, self.run.config.compute.precision):
            out = self.model(batch.videos.to(self.device, non_blocking=True)[:, 0])
        values = {"tokens": out.token, "logits": out.logits}
        return batch, {name: value.float().cpu().numpy() for name, value in values.items()}

    def _write_shard(self, store: FeatureStore, shard: int, results: list[tuple[Batch, dict[str, Any]]]) -> None:
        rows = store.index.shard_rows(shard)
        place = {self.clips[self.by_row[row]].clip_id: row - rows.start for row in rows if row in self.by_row}
        status = np.full(len(rows), RowStatus.PENDING, dtype=np.uint8)
        values = {name: np.full((len(rows), *spec.shape), np.nan, spec.dtype) for name, spec in store.arrays.items()}
        failures = []
        for batch, outputs in results:
            for failure in batch.failures:
                status[place[failure.clip_id]] = RowStatus.FAILED
                failures.append(Failure(*failure))
            for at, clip_id in enumerate(self.clips[i].clip_id for i in batch.rows):
                row = place[clip_id]
                for name, output in outputs.items():
                    values[name][row] = output[at]
                finite = all(fits(output[at : at + 1], "float32")[0] for output in outputs.values())
                status[row] = RowStatus.DONE if finite else RowStatus.FAILED
                if not finite:
                    failures.append(Failure(clip_id, _REASON_NON_FINITE, "the proxy's output is not finite"))
        store.write_shard(shard, values, status, failures)
