"""Embeddings of many videos into one file: in shards, so that a kill costs one of them, and with the same bytes.

Finished shards lie in `<out>.work` beside the output, a feature store as extraction writes it. When all are there the
output is written from them, its record after it, and the folder goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..cache import ArraySpec, ClipIndex, Failure, FeatureStore, RowKey, RowStatus, fits, suggested_rows
from ..errors import CoverageError, UniegoError
from ..pipeline import files, sources
from ..pipeline.clips import Clip
from ..pipeline.config import ComputeConfig
from ..pipeline.decode import DecodeJob
from ..pipeline.decoders import Decoders
from ..pipeline.handoff import ahead
from ..pipeline.progress import Meter, count, duration, say, size_text, warn
from ..pipeline.rundir import TaskFolder
from ..pipeline.signals import StopFlag
from ..pipeline.video import VideoError, backend_identity
from .batches import Batch, ClipFailure, Sample, collate
from .compute import prepare
from .embeddings import Embeddings, Output
from .encoder import WEIGHTS, Encoder, model_folder
from .encoder import load as load_encoder
from .loop import autocast
from .video_list import VideoList

_PROBES = 2
_SHOWN = 5  # failures that are printed
_AHEAD = 2  # batches that wait for the network


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode. `logits`: class scores and the predicted class beside every embedding. `batch`: clips that go
    through the network together. `workers`: processes that decode; 0: none, and a file that crashes or hangs a
    decoder ends the work. `min_coverage`: least share of the clips, 0 to 1. `timeout_s`: seconds that a decoder has for
    a clip, plus one per megabyte of its file."""

    logits: bool = False
    device: str = "auto"
    precision: str = "fp32"
    batch: int = 8
    workers: int = 2
    threads: int | None = None
    min_coverage: float = 0.0
    overwrite: bool = False
    timeout_s: float = 120.0


def encode(videos: VideoList, out: Path, model: str | Path, options: EncodeOptions) -> dict[str, Any]:
    """Embed every clip and write `out`, whose suffix names the format (see `embeddings`); returns its record.

    Clips that cannot be decoded are left out and listed in `<out>.failures.csv`. The same command continues after a
    stop or a kill, with the same bytes, and does nothing when the output is there. Raises `FingerprintMismatch` where
    the output was made or begun of other clips or under other settings, `CoverageError` when fewer clips than
    `min_coverage` have embeddings, or none has, `Stopped` when asked to stop.
    """
    output = Output.at(out)
    compute = ComputeConfig.model_validate(
        {"device": options.device, "precision": options.precision, "threads": options.threads}
    )
    device = prepare(compute)
    folder = model_folder(model)
    encoder = load_encoder(model)
    clips = videos.clips(encoder.reader.backend, min(1, options.workers))
    keys, content = _identities(clips)
    fingerprint = {
        "weights": files.hash_file(folder / WEIGHTS),
        "clips": content,
        "input": _input(encoder),
        "protocol": encoder.protocol._asdict(),
        "decoder": backend_identity(encoder.reader.backend),
        "precision": options.precision,
        "logits": options.logits,
    }
    if output.finished(fingerprint, overwrite=options.overwrite):
        say(f"encode: {output.path} is finished, nothing to do")
        return _judged(output.record(), options.min_coverage)
    work = TaskFolder(output.work, f"the encoding into {output.path}")
    with StopFlag() as flag, work.work(fingerprint, overwrite=options.overwrite):
        encoder.to(device)
        job = _Job(encoder, _Network(encoder, options), clips, keys, options, output, flag)
        store = job.carry_out(work.path, fingerprint)
        record = _finish(job, store, fingerprint)
    files.remove_tree(work.path)
    return _judged(record, options.min_coverage)


def _identities(clips: Sequence[Clip]) -> tuple[list[RowKey], str]:
    """The clips as rows (another file under the same name is another clip), and a hash of all, in their order."""
    seen = sources.measure(clips)
    keys = [RowKey(clip.clip_id, sources.identity(clip, seen)) for clip in clips]
    labels = [f"{clip.split} {clip.extra.get('label', '')}" for clip in clips]
    return keys, files.hash_bytes("\n".join(f"{a} {b}" for a, b in zip(keys, labels, strict=True)).encode())


def _input(encoder: Encoder) -> dict[str, Any]:
    """What the reader does to a clip that is not augmented."""
    names = ("num_frames", "image_size", "policy", "rate", "mean", "std", "single_short_side")
    return {name: getattr(encoder.reader, name) for name in names}


class _Network:
    """The encoder's forward pass, in portions where the device has not the memory for a batch."""

    def __init__(self, encoder: Encoder, options: EncodeOptions) -> None:
        self._encoder, self._options, self._most = encoder, options, options.batch

    @torch.inference_mode()
    def __call__(self, looks: Tensor) -> dict[str, Tensor]:
        """ "tokens" [b, width] and perhaps "logits" [b, C], float32, of looks [b, V, 3, T, S, S]."""
        parts: list[dict[str, Tensor]] = []
        at = 0
        while at < len(looks):
            try:
                parts.append(self._portion(looks[at : at + self._most]))
                at += self._most
            except torch.OutOfMemoryError as error:
                self._halve(looks, error)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _portion(self, looks: Tensor) -> dict[str, Tensor]:
        with autocast(self._encoder.device, self._options.precision):
            token, logits = self._encoder.forward(looks)
        return {"tokens": token, "logits": logits} if self._options.logits else {"tokens": token}

    def _halve(self, looks: Tensor, error: Exception) -> None:
        device = self._encoder.device
        if self._most == 1:
            raise UniegoError(
                f"one clip ({looks.shape[1]} looks) does not fit the memory of {device}: use --device cpu, --precision "
                "bf16, or a model whose protocol has fewer views and crops"
            ) from error
        self._most = max(1, min(self._most, len(looks)) // 2)
        warn(f"{device} has not the memory for a batch: {count(self._most, 'clip')} at once from now on (--batch)")


@dataclass(frozen=True)
class _Job:
    encoder: Encoder
    network: _Network
    clips: Sequence[Clip]
    keys: Sequence[RowKey]
    options: EncodeOptions
    output: Output
    flag: StopFlag

    def carry_out(self, folder: Path, fingerprint: dict[str, Any]) -> FeatureStore:
        """Encode what is not in the store in `folder` yet."""
        index = ClipIndex.plan(folder, self.keys, min(64, suggested_rows(len(self.keys))))
        store = FeatureStore.create(folder / "clips", index, self._arrays(), fingerprint, {})
        places = dict(zip(index.rows(self.keys).tolist(), range(len(self.clips)), strict=True))
        work = {shard: [places[row] for row in index.shard_rows(shard)] for shard in store.pending()}
        left = [place for places_of in work.values() for place in places_of]
        if left:
            self._announce(left)
            done = len(self.clips) - len(left)
            with Meter("encode", len(self.clips), resumed=done) as meter:
                self._encode(store, work, meter)
        return store

    def _arrays(self) -> dict[str, ArraySpec]:
        geometry = self.encoder.model.geometry
        tokens = ArraySpec((geometry["width"],), "float32", ("width",), "CLS token after the final norm")
        logits = ArraySpec((geometry["num_classes"],), "float32", ("class",), "summed class scores")
        return {"tokens": tokens, **({"logits": logits} if self.options.logits else {})}

    def _announce(self, left: Sequence[int]) -> None:
        """Say what it will take, by a few clips tried."""
        seconds, tried = 0.0, 0
        probes = left[:: max(1, len(left) // _PROBES)][:_PROBES] if len(left) > _PROBES else []
        with self._decoders(probes, min(1, self.options.workers)) as decoders:
            started = time.monotonic()
            for decoded in decoders:
                self.flag.check()
                try:
                    looks = self.encoder.reader.looks(decoded, self.encoder.protocol)
                except VideoError:
                    continue
                read = time.monotonic() - started
                self.network(looks[None])
                network = time.monotonic() - started - read
                seconds, tried = seconds + max(read / max(1, self.options.workers), network), tried + 1
                started = time.monotonic()
        width = sum(spec.shape[0] for spec in self._arrays().values())
        cost = f", about {duration(seconds / tried * len(left))} by {count(tried, 'clip')} tried" if tried else ""
        protocol, options = self.encoder.protocol, self.options
        say(
            f"encode: {len(left)} of {count(len(self.clips), 'clip')}, {protocol.views} x {protocol.crops} views x "
            f"crops, on {self.encoder.device} in {options.precision}, {count(options.workers, 'decoder')}{cost}; "
            f"{size_text(4 * width * len(self.clips))} into {self.output.path}"
        )

    def _encode(self, store: FeatureStore, work: dict[int, list[int]], meter: Meter) -> None:
        portions = [
            (shard, places[at : at + self.options.batch])
            for shard, places in work.items()
            for at in range(0, len(places), self.options.batch)
        ]
        with self._decoders(list(chain.from_iterable(work.values())), self.options.workers) as decoders:
            batches = self._batches(decoders, [places for _, places in portions])
            with closing(ahead(batches, _AHEAD, self.flag.check, decoders.close)) as stream:
                done = zip((shard for shard, _ in portions), self._through(stream, meter), strict=True)
                for shard, results in groupby(done, key=lambda pair: pair[0]):
                    self._write(store, shard, work[shard], [result for _, result in results])
                    self.flag.check()

    def _decoders(self, places: Sequence[int], workers: int) -> Decoders:
        """The clips at these places, decoded in processes that are replaced where they hang or die."""
        reader, protocol = self.encoder.reader, self.encoder.protocol
        jobs: Iterator[DecodeJob] = (reader.job(self.clips[place], protocol) for place in places)
        return Decoders(jobs, workers, timeout_s=self.options.timeout_s)

    def _batches(self, decoders: Decoders, portions: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """What the network gets, out of decoded clips in the order of the portions."""
        pin = self.encoder.device.type == "cuda"
        for places in portions:
            items: list[Sample | ClipFailure] = []
            for place in places:
                try:
                    items.append(Sample(place, self.encoder.reader.looks(next(decoders), self.encoder.protocol)))
                except VideoError as error:
                    items.append(ClipFailure(self.clips[place].clip_id, error.reason, str(error)))
            batch = collate(items)
            yield batch._replace(videos=batch.videos.pin_memory()) if pin and batch.rows else batch

    def _through(self, stream: Iterator[Batch], meter: Meter) -> Iterator[tuple[Batch, dict[str, npt.NDArray[Any]]]]:
        failed = 0
        for batch in stream:
            self.flag.check()
            values = self.network(batch.videos) if batch.rows else {}
            yield batch, {name: value.cpu().numpy() for name, value in values.items()}
            failed += len(batch.failures)
            note = f"{count(failed, 'clip')} failed" if failed else ""
            meter.advance(len(batch.rows) + len(batch.failures), note)

    def _write(
        self,
        store: FeatureStore,
        shard: int,
        places: Sequence[int],
        results: Sequence[tuple[Batch, dict[str, npt.NDArray[Any]]]],
    ) -> None:
        """Write a shard; `places` are its clips, row by row."""
        row_of = {place: row for row, place in enumerate(places)}
        row_of_id = {self.clips[place].clip_id: row for place, row in row_of.items()}
        status = np.full(len(places), RowStatus.PENDING, dtype=np.uint8)
        values = {name: np.full((len(places), *spec.shape), np.nan, spec.dtype) for name, spec in store.arrays.items()}
        failures = []
        for batch, outputs in results:
            for failure in batch.failures:
                status[row_of_id[failure.clip_id]] = RowStatus.FAILED
                failures.append(Failure(*failure))
            for at, place in enumerate(batch.rows):
                row = row_of[place]
                for name, output in outputs.items():
                    values[name][row] = output[at]
                finite = all(fits(output[at : at + 1], "float32")[0] for output in outputs.values())
                status[row] = RowStatus.DONE if finite else RowStatus.FAILED
                if not finite:
                    clip_id = self.clips[place].clip_id
                    failures.append(Failure(clip_id, "non_finite", "the network's output is not finite"))
        store.write_shard(shard, values, status, failures)


def _finish(job: _Job, store: FeatureStore, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Write the output from the store, then its record."""
    rows = store.index.rows(job.keys)
    failures = {failure.clip_id: failure for failure in store.failures()}
    listed = [failures[clip.clip_id] for clip in job.clips if clip.clip_id in failures]
    for failure in listed[:_SHOWN]:
        warn(f"clip {failure.clip_id} left out: {failure.message}")
    if len(listed) > _SHOWN:
        warn(f"and {len(listed) - _SHOWN} more: {job.output.beside('failures.csv')} lists all")
    done = store.status(rows) == RowStatus.DONE
    kept = [clip for clip, there in zip(job.clips, done, strict=True) if there]
    if not kept:
        job.output.write_failures(listed)
        raise CoverageError(
            f"none of the {count(len(job.clips), 'clip')} could be encoded, so that {job.output.path} is not written; "
            f"{job.output.beside('failures.csv')} says why. Mend the files and run again with --overwrite"
        )
    embeddings = Embeddings(tuple(kept), store, rows[done], job.encoder)
    job.output.write(embeddings, listed)
    record = {
        "fingerprint": fingerprint,
        "clips": len(job.clips),
        "encoded": len(kept),
        "failed": len(listed),
        "width": job.encoder.model.geometry["width"],
        "classes": list(job.encoder.classes),
    }
    return job.output.seal(record)


def _judged(record: dict[str, Any], least: float) -> dict[str, Any]:
    """The record of a finished output; `CoverageError` where it holds too few of the clips."""
    say(f"  {record['encoded']} clips encoded, {record['failed']} failed")
    if record["encoded"] < least * record["clips"]:
        raise CoverageError(
            f"{record['encoded']} of {record['clips']} clips are encoded, below --min-coverage ({100 * least:.1f} %); "
            "mend the files and run again with --overwrite, or lower the minimum"
        )
    return record
