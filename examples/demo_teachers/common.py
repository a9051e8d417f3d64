"""What the training scripts share: the rendered clips, augmentation, the loop, and how weights are stored."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from uniego import demo
from uniego.demo.actions import ACTIONS, ALL_ACTIONS, opposite

WEIGHTS = Path(os.environ.get("TEACHER_WEIGHTS") or Path(demo.__file__).parent / "weights")
"""Where trained networks go: the package's own folder, or the one that the environment names."""

PICKS = slice(1, None, 3)  # of the finer frames, those at the centres of eight equal parts


@dataclass(frozen=True)
class Clips:
    """The rows of `render.py`, mapped into memory; `train` and `held_out` are row numbers.

    Clip by clip of one subject after the other, each with one clip of each of `actions`.
    """

    folder: Path
    actions: tuple[str, ...]
    captions: list[str]
    train: Tensor
    held_out: Tensor

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def labels(self) -> Tensor:
        return torch.from_numpy(np.array(self["label"]))

    def backwards(self) -> Tensor:
        """The label of what each label's action is when it runs backwards."""
        return torch.tensor([self.actions.index(opposite(action)) for action in self.actions])

    def pictures(self, view: str, prepare: Callable[[Tensor], Tensor], rows: Iterable[int]) -> Tensor:
        """The eight frames of each clip as a teacher's `prepare` gives them: uint8 [n, 8, 3, h, w]."""
        stored = self[view]
        return torch.stack([prepare(torch.from_numpy(np.array(stored[row][PICKS]))) for row in rows])


def read_clips(folder: Path) -> Clips:
    """Open what `render.py` wrote."""
    facts = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
    each = len(facts["captions"]) // (facts["subjects"] + facts["held_out"])
    actions = {len(names): names for names in (ACTIONS, ALL_ACTIONS)}[each]
    first = facts["subjects"] * each
    last = first + facts["held_out"] * each
    return Clips(folder, actions, facts["captions"], torch.arange(first), torch.arange(first, last))


def start(seed: int) -> torch.Generator:
    """Seed everything, take one thread, and give the generator that draws batches and augmentation."""
    random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.Generator().manual_seed(seed)


def fit(
    name: str,
    modules: Iterable[nn.Module],
    steps: int,
    rate: float,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    *,
    decay: float = 0.05,
    after: Callable[[int], None] = lambda step: None,
) -> float:
    """AdamW with a warm-up of a twentieth and a cosine to zero; returns the seconds it took."""
    parameters = [value for module in modules for value in module.parameters() if value.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    began, warm = time.perf_counter(), max(1, steps // 20)
    shown: dict[str, float] = {}
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss, numbers = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        after(step)
        for key, value in {"loss": float(loss.detach()), **numbers}.items():
            shown[key] = value if key not in shown else 0.98 * shown[key] + 0.02 * value
        if (step + 1) % 50 == 0 or step + 1 == steps:
            line = " ".join(f"{key} {value:.4f}" for key, value in shown.items())
            print(f"{name} step {step + 1}/{steps} {line} {time.perf_counter() - began:.0f} s", flush=True)
    return time.perf_counter() - began


def draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows, with repeats."""
    return rows[torch.randint(len(rows), (count,), generator=generator)]


def jitter(
    pictures: Tensor, generator: torch.Generator, zoom: float = 0.12, shift: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Move, scale and recolour each item alike in all its frames: uint8 [B, T, 3, h, w] -> float32 of 0..1.

    Also returns the maps [B, 2, 3] from new to old coordinates, which run from -1 to 1 across the picture.
    """
    batch, frames = pictures.shape[:2]

    def uniform(*shape: int, width: float = 1.0) -> Tensor:
        return (torch.rand(batch, *shape, generator=generator) * 2 - 1) * width

    matrix = torch.zeros(batch, 2, 3)
    scale = torch.exp(uniform(width=zoom))
    matrix[:, 0, 0] = scale
    matrix[:, 1, 1] = scale
    matrix[:, :, 2] = uniform(2, width=shift)
    values = pictures.flatten(0, 1).float() / 255
    grid = F.affine_grid(matrix, [batch, 1, *values.shape[2:]], align_corners=False).repeat_interleave(frames, 0)
    values = F.grid_sample(values, grid, padding_mode="border", align_corners=False)
    values = values.view(batch, frames, *values.shape[1:])
    gain, bias = torch.exp(uniform(1, 3, 1, 1, width=0.2)), uniform(1, 3, 1, 1, width=0.06)
    return (values * gain + bias).clamp(0, 1), matrix


def normalise(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Channels third from last, as `Preprocess.normalise` does for 0..255."""
    return (values - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def heat(points: Tensor, side: int) -> Tensor:
    """Points [B, T, K, 2] of -1..1 as soft places [B, side * side, T, K] that sum to 1 over the patches."""
    centre = (torch.arange(side) + 0.5) / side * 2 - 1
    across = -((points[..., 0, None] - centre) ** 2)  # [B, T, K, side]
    down = -((points[..., 1, None] - centre) ** 2)
    both = (down[..., :, None] + across[..., None, :]).flatten(-2) / (2 * (1.2 / side) ** 2)
    return both.softmax(-1).permute(0, 3, 1, 2)


def stored_as(network: str, clips: Clips) -> str:
    """The name under which a network that learns these clips' actions is stored."""
    return network if clips.actions == ACTIONS else f"{network}{len(clips.actions)}"


def grow(model: nn.Module, network: str) -> None:
    """Start from a stored network that knows the first of the model's actions: its classifier's rows come first."""
    own = model.state_dict()
    with torch.no_grad():
        for name, value in load_file(WEIGHTS / network / "model.safetensors").items():
            part = own[name] if own[name].shape == value.shape else own[name][: len(value)]
            part.copy_(value)


def save_half(state: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Store a state dict as safetensors, floating-point tensors in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, path, {"format": "pt", **metadata})
    path.chmod(0o644)


def note(name: str, facts: dict[str, object]) -> None:
    """Keep what a training run says about itself beside its weights."""
    text = json.dumps(facts, indent=2) + "\n"
    (WEIGHTS / name / "training.json").write_text(text, encoding="utf-8")
    print(text)
