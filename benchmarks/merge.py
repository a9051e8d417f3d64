"""A step of the merge against a plain training step on the same clips, and the memory that R proxies take.

    python benchmarks/merge.py --vit-rounds 3

Times: forward and backward pass of one micro-batch, then what the step does with its gradients. plain: SGD with
momentum; device: proxies stacked; host: read tensor by tensor from files; autograd: the network called on a weighted
sum that autograd sees, as the released code does it. Rounds are interleaved, medians are given; `cpu_s` is processor
time, which a busy machine disturbs less. Gradients of the three ways are compared first, on the tiny shape.

Memory: the kernel's peak of a process of its own (VmHWM) that makes a step, less what it had after its imports. The
clip is one patch, so that weights and gradients count and activations do not. On a GPU times are between
synchronisations, and memory is that of the device.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from uniego.models import TimeSformer
from uniego.pipeline.clips import Clip
from uniego.pipeline.config import TrainConfig
from uniego.stages.batches import Batch
from uniego.stages.checkpoints import replace_tensors
from uniego.stages.encoder import WEIGHTS
from uniego.stages.loop import Task
from uniego.stages.merge import MergeTask, Soup
from uniego.stages.networks import Networks, WeightsFile
from uniego.stages.supervised import Supervised, VideoTask

CLASSES = 12
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 32, "patch_size": 8, "num_frames": 4, "width": 48, "depth": 3, "heads": 4},
    "vit_b": {"image_size": 224, "patch_size": 16, "num_frames": 8, "width": 768, "depth": 12, "heads": 12},
}
WAYS = ("plain", "device", "host", "autograd")


class AutogradTask(Task):
    """All proxies in memory, and a graph from the weights of the merge through the weighted sum to the loss."""

    def __init__(self, states: list[dict[str, Tensor]], model: TimeSformer, labels: Tensor) -> None:
        self.states, self.model, self.labels = states, model.eval().requires_grad_(False), labels
        self.weights = torch.zeros(len(states), device=labels.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weights], lr=0.01)

    def loss(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        alphas = self.weights.softmax(0)
        merged = {n: sum(a * s[n] for a, s in zip(alphas, self.states, strict=True)) for n in self.states[0]}
        out = functional_call(self.model, merged, (batch.videos,))
        return {"loss": F.cross_entropy(out.logits, self.labels[batch.indices])}

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    def restore(self, tensors: Any) -> None:
        raise NotImplementedError

    def rate(self, epoch: float) -> float:
        return 0.01


def write_proxies(folder: Path, shape: str, count: int) -> None:
    """Files of random networks of one shape."""
    names = {name: p.shape for name, p in network(shape).named_parameters()}
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        state = {name: torch.randn(size, generator=generator).mul_(0.02) for name, size in names.items()}
        (folder / str(number)).mkdir(parents=True)
        replace_tensors(folder / str(number) / WEIGHTS, state)


def network(shape: str) -> TimeSformer:
    return TimeSformer(**SHAPES[shape], num_classes=CLASSES, drop_path=0.1)


def make(way: str, shape: str, folder: Path, clips: int, device: torch.device) -> Task:
    labels = torch.arange(clips, device=device) % CLASSES
    model = network(shape).to(device)
    if way == "plain":
        table = [Clip(str(i), "train", i % CLASSES, Path("x"), None, None, None, None, {}, {}) for i in range(clips)]
        return VideoTask("plain", TrainConfig(), Supervised(model, table, 0, device))
    if way == "autograd":
        states = [load_copy(path / WEIGHTS, device) for path in sorted(folder.iterdir())]
        return AutogradTask(states, model, labels)
    sources = [WeightsFile(path / WEIGHTS) for path in sorted(folder.iterdir())]
    keys = [source.path.parent.name for source in sources]
    networks = Networks.of_files(keys, sources, device, stacked=way == "device")
    return MergeTask(Soup(networks, "model"), model, labels, lr=0.01)


def load_copy(path: Path, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a file, not mapped."""
    return {name: tensor.clone() for name, tensor in load_file(path, device=str(device)).items()}


def step(task: Task, batch: Batch) -> None:
    task.loss(batch, 0)["loss"].backward()
    task.before_step()
    task.optimizer.step()
    task.after_step()
    task.zero_grad()


def timed(act: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter(), time.process_time()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def check_equal(folder: Path, shape: str) -> None:
    """Both places give the same bits on a CPU, and the gradient of the autograd way to rounding."""
    tasks = [make(way, shape, folder, 2, torch.device("cpu")) for way in ("device", "host", "autograd")]
    batch = Batch.of(range(2), clip(shape, 2, tiny=True))
    gradients = []
    for task in tasks:
        task.loss(batch, 0)["loss"].backward()
        task.before_step()
        gradients.append(task.optimizer.param_groups[0]["params"][0].grad.flatten())
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-6)


def clip(shape: str, count: int, *, frames: int | None = None, tiny: bool = False) -> Tensor:
    """Clips of the shape's size with so many frames (None: the shape's), or of one patch."""
    sizes = SHAPES[shape]
    frames, side = (1, sizes["patch_size"]) if tiny else (frames or sizes["num_frames"], sizes["image_size"])
    return torch.randn(count, 3, frames, side, side, generator=torch.Generator().manual_seed(1))


def measure(shape: str, folder: Path, video: Tensor, rounds: int, ways: list[str], device: torch.device) -> list[dict]:
    """A row per way: medians of interleaved rounds, ratios to the plain step."""
    tasks = {way: make(way, shape, folder, len(video), device) for way in ways}
    batch = Batch.of(range(len(video)), video).to(device)
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for task in tasks.values():  # warms up what is made at the first step
        step(task, Batch.of(range(1), clip(shape, 1, tiny=True)).to(device))
    for _ in range(rounds):
        for way, task in tasks.items():
            times[way].append(timed(lambda task=task: step(task, batch), device))
            print(shape, way, times[way][-1], file=sys.stderr, flush=True)
    medians = {way: [statistics.median(column) for column in zip(*found, strict=True)] for way, found in times.items()}
    return [
        {
            "shape": shape,
            "way": way,
            "clips": len(video),
            "frames": video.shape[2],
            "rounds": rounds,
            "seconds": round(medians[way][0], 4),
            "cpu_s": round(medians[way][1], 4),
            "over_plain": round(medians[way][0] / medians["plain"][0], 3),
            "over_plain_cpu": round(medians[way][1] / medians["plain"][1], 3),
        }
        for way in ways
    ]


def peak(way: str, shape: str, folder: Path, device: torch.device) -> None:
    """Print what two steps add to this process's peak, MB (inside a child)."""
    before = high_water()
    task = make(way, shape, folder, 1, device)
    step(task, Batch.of(range(1), clip(shape, 1, tiny=True)).to(device))
    print(torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else high_water() - before)


def high_water() -> float:
    """The kernel's peak of this process's own memory, MB (`ru_maxrss` also counts that of the process it came from)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def device_name(device: torch.device) -> str:
    """The hardware in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def main() -> None:
    """Parse, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=21, help="of the tiny shape")
    parser.add_argument("--vit-rounds", type=int, default=3, help="of ViT-B; 0: only its memory")
    parser.add_argument("--vit-clips", type=int, default=1)
    parser.add_argument("--vit-frames", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="more only wait for each other on a busy machine")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "SHAPE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    device, today = torch.device(args.device), datetime.date.today().isoformat()
    torch.set_num_threads(args.threads)
    if args.child:
        peak(args.child[0], args.child[1], Path(args.child[2]), device)
        return
    load, rows = round(os.getloadavg()[0], 1), []
    with tempfile.TemporaryDirectory() as scratch:
        vit = clip("vit_b", args.vit_clips, frames=args.vit_frames)
        for shape, video, rounds in (("tiny", clip("tiny", 8), args.rounds), ("vit_b", vit, args.vit_rounds)):
            folder = Path(scratch) / shape
            write_proxies(folder, shape, args.proxies)
            if shape == "tiny":
                check_equal(folder, shape)
            peaks = {}
            for way in WAYS:
                command = [sys.executable, __file__, "--child", way, shape, str(folder), "--device", args.device]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks[way] = round(float(done.stdout))
                print(shape, way, f"{peaks[way]} MB", file=sys.stderr, flush=True)
            network_mb = round(sum(p.numel() for p in network(shape).parameters()) * 4 / 1e6, 1)
            found = [{"shape": shape, "way": way} for way in WAYS]
            if rounds:
                ways = [way for way in WAYS if shape == "tiny" or way != "autograd"]  # its nine copies once more
                times = {row["way"]: row for row in measure(shape, folder, video, rounds, ways, device)}
                found = [times.get(row["way"], row) for row in found]
            rows += [{**row, "network_mb": network_mb, "peak_mb": peaks[row["way"]]} for row in found]
    for row in rows:
        row |= {"proxies": args.proxies, "device": device_name(device), "date": today, "load_before": load}
    out = args.out or Path(__file__).parent / "results" / f"merge-{today}.csv"
    with out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), restval="")  # the first row has every column
        writer.writeheader()
        writer.writerows(rows)
    print(out.read_text())


if __name__ == "__main__":
    main()
