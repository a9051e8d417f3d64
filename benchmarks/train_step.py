"""One training step of a proxy against a plain implementation of the published behaviour, on the same batch.

    python benchmarks/train_step.py --batch 1 --rounds 5 --precision fp32 bf16
    python benchmarks/train_step.py --memory 8 --rounds 0 --precision fp32 "fp32 recompute"

The plain step is fp32, softmax attention written out, tokens permuted twice per block (to tubes and to frames), SGD
tensor by tensor, and loss and accuracy read as numbers every step. Both nets hold the same weights, and their outputs
are compared before anything is timed. Rounds are interleaved, medians are given; `cpu_s` is processor time, which a
busy machine disturbs less than `seconds`. On a GPU times are between synchronisations.

Peak memory (`--memory`) is the resident memory of a process of its own, on a CPU: a step of one clip, so that the
optimiser has its state, then a step of the micro-batch. `--rounds 0` measures nothing else, and not the plain step.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import ProxiesConfig
from uniego.stages.batches import Batch
from uniego.stages.loop import autocast
from uniego.stages.proxy_task import ProxyTask
from uniego.stages.supervised import Supervised
from uniego.stages.targets import Targets

CLASSES, TARGET, FRAMES, SIDE = 12, 1024, 8, 224
GFLOP_PER_CLIP = 1175  # forward and backward, 8 frames of 224 x 224
GPU_SHARE = 0.45  # of the peak that the estimate assumes


class PlainAttention(nn.Module):
    """Attention over the tokens of [n, L, D], written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        scores = (query @ key.transpose(-2, -1)) * self.scale
        mixed: Tensor = self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(n, length, width))
        return mixed


class PlainBlock(nn.Module):
    """Divided space-time attention over one sequence of 1 + N*T tokens, T fastest."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.temporal_attn = PlainAttention(width, heads), PlainAttention(width, heads)
        self.temporal_norm1, self.temporal_fc = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def drop_path(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop:
            return x
        keep = 1 - self.drop
        kept = torch.floor(keep + torch.rand((x.shape[0], 1, 1), device=x.device))
        return x / keep * kept

    def forward(self, x: Tensor, frames: int) -> Tensor:
        b, _, d = x.shape
        n = (x.shape[1] - 1) // frames
        patches = x[:, 1:]
        tubes = patches.reshape(b * n, frames, d)
        mixed = self.drop_path(self.temporal_attn(self.temporal_norm1(tubes)))
        patches = patches + self.temporal_fc(mixed.reshape(b, n * frames, d))
        cls = x[:, :1]
        copies = cls.repeat(1, frames, 1).reshape(b * frames, 1, d)
        by_frame = patches.reshape(b, n, frames, d).permute(0, 2, 1, 3).reshape(b * frames, n, d)
        mixed = self.drop_path(self.attn(self.norm1(torch.cat((copies, by_frame), 1))))
        of_cls = mixed[:, 0].reshape(b, frames, d).mean(1, keepdim=True)
        of_patches = mixed[:, 1:].reshape(b, frames, n, d).permute(0, 2, 1, 3).reshape(b, n * frames, d)
        x = torch.cat((cls, patches), 1) + torch.cat((of_cls, of_patches), 1)
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Plain(nn.Module):
    """The published network in its plainest form, with the parameter names of `TimeSformer`."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, drop: float = 0.1) -> None:
        super().__init__()
        patches = (SIDE // 16) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.time_embed = nn.Parameter(torch.zeros(1, FRAMES, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        rates = torch.linspace(0, drop, depth).tolist()
        self.blocks = nn.ModuleList(PlainBlock(width, heads, rate) for rate in rates)
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, CLASSES)
        self.proj_layer = nn.Linear(width, TARGET)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        b, _, frames, *_ = video.shape
        pictures = video.permute(0, 2, 1, 3, 4).reshape(b * frames, 3, SIDE, SIDE)
        x = self.patch_embed["proj"](pictures).flatten(2).transpose(1, 2)  # [B*T, N, D]
        x = torch.cat((self.cls_token.expand(b * frames, -1, -1), x), 1) + self.pos_embed
        cls = x[:b, :1]
        n, d = x.shape[1] - 1, x.shape[2]
        tubes = x[:, 1:].reshape(b, frames, n, d).permute(0, 2, 1, 3).reshape(b * n, frames, d) + self.time_embed
        x = torch.cat((cls, tubes.reshape(b, n * frames, d)), 1)
        for block in self.blocks:
            x = block(x, frames)
        token = self.norm(x)[:, 0]
        return self.head(token), self.proj_layer(token)


class PlainStep:
    """Forward, backward, SGD tensor by tensor, and numbers read every step."""

    def __init__(self, model: TimeSformer, targets: Tensor, labels: Tensor, device: torch.device) -> None:
        self.net = Plain()
        self.net.load_state_dict(model.state_dict())
        self.net.to(device).train()
        self.targets, self.labels = targets.to(device), labels.to(device)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.005, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=False, fused=False
        )
        self.device = device

    def __call__(self, video: Tensor) -> None:
        logits, projected = self.net(video.to(self.device))
        labels, targets = self.labels[: len(video)], self.targets[: len(video)]
        ce = F.cross_entropy(logits, labels)
        feature = (1 - F.cosine_similarity(projected, targets)).mean()
        loss = ce + feature
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        right = (logits.argmax(1) == labels).float().mean()
        self.read = [loss.item(), ce.item(), feature.item(), right.item()]


class OurStep:
    """What `Loop` does in a step of one micro-batch; `how` is a precision, with "recompute" behind it or not."""

    def __init__(self, model: TimeSformer, targets: Tensor, labels: Tensor, device: torch.device, how: str):
        path = Path("none.mp4")
        clips = [Clip(f"c{i}", "train", int(y), path, None, None, None, None, {}, {}) for i, y in enumerate(labels)]
        self.net = TimeSformer(**model.geometry)
        self.net.load_state_dict(model.state_dict())
        precision, _, recompute = how.partition(" ")
        self.net.recompute = bool(recompute)
        held = Targets(targets.to(device), torch.ones(len(labels), dtype=torch.bool, device=device))
        base = Supervised(self.net, clips, seed=0, device=device)
        self.task = ProxyTask("benchmark", "teacher", ProxiesConfig(), base, held)
        self.device, self.precision = device, precision

    def __call__(self, video: Tensor) -> None:
        batch = Batch.of(range(len(video)), video).to(self.device)
        with autocast(self.device, self.precision):
            terms = self.task.loss(batch, 0)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        self.task.optimizer.step()
        self.task.zero_grad()


def timed(step: Callable[[Tensor], None], video: Tensor, device: torch.device) -> tuple[float, float]:
    """Wall-clock and processor seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step(video)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def check_equal(model: TimeSformer, video: Tensor) -> None:
    """Both implementations compute the same."""
    plain = Plain().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits, projected = plain(video)
        out = model.eval()(video)
    torch.testing.assert_close(out.logits, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out.projected["teacher"], projected, rtol=1e-3, atol=1e-4)


def make(name: str, batch: int, device: torch.device) -> tuple[Callable[[Tensor], None], Tensor]:
    """A step by name, "plain" or a precision, and the batch."""
    generator = torch.Generator().manual_seed(0)
    model = TimeSformer(num_classes=CLASSES, projections={"teacher": TARGET})
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".temporal_fc.weight" in key:
                parameter.normal_(std=0.02, generator=generator)
    video = torch.randn(batch, 3, FRAMES, SIDE, SIDE, generator=generator)
    targets = torch.randn(batch, TARGET, generator=generator)
    labels = torch.arange(batch) % CLASSES
    if name == "check":
        check_equal(model, video)
        return lambda _: None, video
    if name == "plain":
        return PlainStep(model, targets, labels, device), video
    return OurStep(model, targets, labels, device, name), video


def peak_memory(name: str, batch: int) -> float:
    """Peak resident MB of a process that makes two steps (on a CPU)."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--child", name, "--batch", str(batch), "--threads", threads]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peaks(name: str, batches: list[int]) -> dict[str, object]:
    """Peak memory at each micro-batch, MB."""
    return {f"peak_mb_batch_{size}": round(peak_memory(name, size)) for size in batches}


def device_name(device: torch.device) -> str:
    """The hardware in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text.replace("\n", " ")]
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads, {' '.join(flags)}"


def main() -> None:
    """Parse, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", type=int, nargs="*", default=[], help="micro-batches whose peak memory is measured")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device, today = torch.device(args.device), datetime.date.today().isoformat()
    torch.set_num_threads(args.threads)
    if args.child:
        step, video = make(args.child, args.batch, device)
        step(video[:1]), step(video)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    if args.rounds:
        make("check", 1, device)
        rows = measure(args, device)
    else:
        rows = [{"step": f"uniego {name}", **peaks(name, args.memory)} for name in args.precision]
    for row in rows:
        row |= {"batch": args.batch, "rounds": args.rounds} if args.rounds else {}
        row |= {"device": device_name(device), "date": today, "load_before": round(os.getloadavg()[0], 1)}
    out = args.out or Path(__file__).parent / "results" / f"train_{'step' if args.rounds else 'memory'}-{today}.csv"
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(out.read_text())
    if device.type != "cuda" and args.rounds:
        estimate = GPU_SHARE * 790e12 / (GFLOP_PER_CLIP * 1e9)
        print(f"GPU: not measured; by the count of operations {estimate:.0f} clips/s at {GPU_SHARE:.0%} of 790 TFLOP/s")


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """A row per implementation: medians of interleaved rounds, ratios to the plain one."""
    names = ["plain", *args.precision]
    steps = {name: make(name, args.batch, device) for name in names}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(args.rounds + 1):
        for name, (step, video) in steps.items():
            found = timed(step, video, device)
            if turn:  # the first warms up
                times[name].append(found)
    del steps
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()
    }
    return [
        {
            "step": "plain fp32" if name == "plain" else f"uniego {name}",
            "seconds": round(medians[name][0], 3),
            "cpu_s": round(medians[name][1], 3),
            "clips_per_s": round(args.batch / medians[name][0], 3),
            "times_faster": round(medians["plain"][0] / medians[name][0], 2),
            "times_faster_cpu": round(medians["plain"][1] / medians[name][1], 2),
            **peaks(name, args.memory),
        }
        for name in names
    ]


if __name__ == "__main__":
    main()
