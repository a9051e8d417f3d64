"""What Selective Proxy Distillation adds to a training step, against a plain implementation of the published behaviour.

    python benchmarks/distill.py --networks tiny vit-b --rounds 7

A step on the labels alone (forward, backward, SGD) is timed beside the distillation part alone: gathering a batch's
candidates, choosing, both terms, their backward pass down to the student's logits and token, and the counts; what the
cross-entropy takes in the same frame is taken off. The plain part reads a token and a logits file per clip and proxy at
every step, loops over proxies and over K, and reads numbers back. Its losses are compared with ours before anything is
timed, and its files are warm. Rounds are interleaved, medians are given. The bank is loaded out of a cache of `--clips`
clips and nine proxies.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from train_step import device_name
from uniego.cache import ArraySpec, ClipIndex, FeatureStore, RowKey, RowStatus
from uniego.models import TimeSformer, TimeSformerOutput
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import SPDConfig, TrainConfig
from uniego.stages.batches import Batch
from uniego.stages.proxy_bank import ProxyBank, load_candidates
from uniego.stages.student import StudentTask
from uniego.stages.supervised import Supervised, VideoTask

PROXIES, CLASSES, HELD = 9, 12, 64
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "vit-b": ({}, 1),
    "tiny": ({"image_size": 32, "patch_size": 8, "num_frames": 4, "width": 48, "depth": 3, "heads": 4}, 4),
}


def make_stores(folder: Path, clips: int, width: int) -> tuple[list[FeatureStore], Tensor]:
    """Nine proxies' outputs in a cache, mostly right; and the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(clips) % CLASSES
    index = ClipIndex.plan(folder, [RowKey(f"c{i}", "x") for i in range(clips)], rows_per_shard=512)
    specs = {"tokens": ArraySpec((width,), "float32", ("f",)), "logits": ArraySpec((CLASSES,), "float32", ("c",))}
    stores = []
    for proxy in range(PROXIES):
        store = FeatureStore.create(folder / f"proxy{proxy}", index, specs, {"proxy": proxy}, {})
        for shard in range(index.num_shards):
            rows = np.array(list(index.shard_rows(shard)))
            logits = rng.normal(size=(len(rows), CLASSES)).astype(np.float32)
            logits[np.arange(len(rows)), labels[rows]] += 3.0
            values = {"tokens": rng.normal(size=(len(rows), width)).astype(np.float32), "logits": logits}
            store.write_shard(shard, values, np.full(len(rows), RowStatus.DONE, np.uint8), [])
        stores.append(store)
    return stores, torch.from_numpy(labels)


class _Fixed:
    """A task whose network has run already: what is left is the loss."""

    base: Supervised[TimeSformer]

    def forward(self, batch: Batch, epoch: int) -> TimeSformerOutput:
        """Random outputs of the batch's size, to which gradients flow."""
        size, width = len(batch.rows), self.base.model.head.in_features
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(size, CLASSES, generator=generator).to(self.base.device).requires_grad_()
        token = torch.randn(size, width, generator=generator).to(self.base.device).requires_grad_()
        return TimeSformerOutput(logits, token, {"student": token})


class FixedStudent(_Fixed, StudentTask):
    """The distillation task without its network."""


class FixedLabels(_Fixed, VideoTask):
    """Training on labels without its network."""


class PlainPart:
    """A file per clip, proxy and output; loops over proxies; numbers read back."""

    def __init__(self, folder: Path, stores: list[FeatureStore], labels: Tensor, config: SPDConfig) -> None:
        self.folder, self.labels, self.config = folder, labels, config
        folder.mkdir()
        for proxy, store in enumerate(stores):
            for name in ("tokens", "logits"):
                for clip, values in enumerate(store.load(name, np.arange(HELD), np.float32)[0]):
                    np.save(folder / f"{proxy}-{clip}-{name}.npy", values)

    def _read(self, proxy: int, row: int, name: str) -> Tensor:
        return torch.from_numpy(np.load(self.folder / f"{proxy}-{row}-{name}.npy"))

    def __call__(self, batch: Batch, out: TimeSformerOutput) -> Tensor:
        labels = self.labels[list(batch.rows)].to(out.logits.device)
        tokens, logits = (
            [torch.stack([self._read(r, row, name) for row in batch.rows]).to(labels.device) for r in range(PROXIES)]
            for name in ("tokens", "logits")
        )
        own = F.cross_entropy(out.logits, labels, reduction="none").detach()
        keys = []
        for r in range(PROXIES):
            entropy = F.cross_entropy(logits[r], labels, reduction="none")
            valid = (logits[r].argmax(1) == labels) & (entropy < own) & (entropy <= self.config.threshold)
            keys.append(torch.where(valid, entropy, torch.inf))
        best = torch.stack(keys, 1).topk(self.config.top_k, dim=1, largest=False)
        feature = logit = out.logits.sum() * 0
        taught = 0
        for b in range(len(batch.rows)):
            chosen = [r for r, key in zip(best.indices[b].tolist(), best.values[b].tolist(), strict=True) if key < 1e30]
            for r in chosen:
                feature = feature + (1 - F.cosine_similarity(out.token[b], tokens[r][b], dim=0)) / len(chosen)
                target, student = logits[r][b].softmax(0), out.logits[b].log_softmax(0)
                logit = logit + F.kl_div(student, target, reduction="sum") / len(chosen)
            taught += bool(chosen)
        feature, logit = (part / max(taught, 1) for part in (feature, logit))
        self.read = [feature.item(), logit.item()]
        return self.config.feature_weight * feature + self.config.logit_weight * logit


def milliseconds(run: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall-clock time of one call, the mean of so many."""
    started = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) * 1e3 / times


def measure(name: str, rounds: int, device: torch.device, folder: Path, clips: int) -> dict[str, object]:
    """A row of results for one network."""
    geometry, size = NETWORKS[name]
    net = TimeSformer(**geometry, num_classes=CLASSES, projections={"student": geometry.get("width", 768)})
    sizes = net.geometry
    stores, labels = make_stores(folder / "cache", clips, sizes["width"])
    spd, train = SPDConfig(top_k=1, normalise_over="micro_batch"), TrainConfig()
    started = time.perf_counter()
    bank = load_candidates(stores, np.arange(clips), labels, spd)
    load_s = time.perf_counter() - started
    bank = ProxyBank(*(part.to(device) for part in bank))
    none = Path("none.mp4")
    table = [Clip(f"c{i}", "train", int(y), none, None, None, None, None, {}, {}) for i, y in enumerate(labels)]
    base = Supervised(net, table, seed=0, device=device)
    side = sizes["image_size"]
    videos = torch.randn(size, 3, sizes["num_frames"], side, side)
    batches = [Batch.of(range(at, at + size), videos).to(device) for at in range(0, HELD, size)]
    whole = VideoTask("labels", train, base)
    ours, alone = FixedStudent(train, spd, base, bank), FixedLabels("labels", train, base)
    plain = PlainPart(folder / "files", stores, labels, spd)

    def step() -> None:
        whole.loss(batches[0], 0)["loss"].backward()  # type: ignore[no-untyped-call]
        whole.optimizer.step()
        whole.zero_grad()

    def distil() -> None:
        for batch in batches:
            ours.loss(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]
            ours.after_step()

    def labels_alone() -> None:
        for batch in batches:
            alone.loss(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]

    def as_published() -> None:
        for batch in batches:
            plain(batch, ours.forward(batch, 0)).backward()  # type: ignore[no-untyped-call]

    terms = ours.loss(batches[0], 0)
    torch.testing.assert_close(plain(batches[0], ours.forward(batches[0], 0)), terms["feature"] + terms["logit"])
    parts = {"step": step, "distil": distil, "labels": labels_alone, "plain": as_published}
    times: dict[str, list[float]] = {part: [] for part in parts}
    for turn in range(rounds + 1):
        for part, run in parts.items():
            took = milliseconds(run, device) / (1 if part == "step" else len(batches))
            if turn:  # the first warms up
                times[part].append(took)
    median = {part: statistics.median(found) for part, found in times.items()}
    added = median["distil"] - median["labels"]
    return {
        "network": name,
        "micro_batch": size,
        "ce_step_ms": round(median["step"], 2),
        "spd_part_ms": round(added, 3),
        "spd_share": round(added / median["step"], 5),
        "plain_part_ms": round(median["plain"], 3),
        "plain_share": round(median["plain"] / median["step"], 5),
        "times_faster": round(median["plain"] / added, 1),
        "bank_clips": clips,
        "bank_load_s": round(load_s, 2),
        "bank_mb": round(sum(part.nbytes for part in bank) / 1e6, 1),
        "all_outputs_mb": round(clips * PROXIES * (sizes["width"] + CLASSES) * 4 / 1e6, 1),
    }


def main() -> None:
    """Parse, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device, today = torch.device(args.device), datetime.date.today().isoformat()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, args.rounds, device, Path(folder), args.clips)
        rows.append(row | {"rounds": args.rounds, "device": device_name(device), "date": today})
        rows[-1]["load"] = round(os.getloadavg()[0], 1)
    out = args.out or Path(__file__).parent / "results" / f"distill-{today}.csv"
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out.read_text())


if __name__ == "__main__":
    main()
