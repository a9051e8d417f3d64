"""How the demo's TimeSformers learn to look: a start for narrow networks, and side tasks on wrists and object.

Patches learn where exactly, and how fast, the wrists and the object are that they show; three of the heads by which
the clip's token attends to patches learn to find them; the token learns to tell their ways through the clip. It begins
with single frames, on which looking is cheap to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from common import Clips, draw, heat, jitter, normalise
from torch import Tensor, nn
from torch.nn import functional as F
from uniego.models import TimeSformer
from uniego.models.teachers.preprocess import KINETICS, for_network

WRISTS = [9, 10]


@dataclass(frozen=True)
class Footage:
    """One view of the clips with the places of wrists and object, and random draws of both."""

    stored: np.ndarray  # uint8 [n, 24, H, W, 3]
    places: Tensor  # [n, 24, 3, 2], from -1 to 1 across the picture
    labels: Tensor
    backwards: Tensor  # the label of each label's action run backwards
    rows: Tensor
    size: int
    patch: int
    generator: torch.Generator

    @classmethod
    def of(cls, clips: Clips, view: str, size: int, patch: int, generator: torch.Generator) -> Footage:
        stored, name = clips[view], {"exo": "fine", "ego": "ego"}[view]
        joints = torch.from_numpy(clips[f"joints_{name}"].copy())
        things = torch.from_numpy(clips[f"object_{name}"].copy())
        places = torch.cat([joints[:, :, WRISTS, :2], things[:, :, None, :2]], 2)
        places = ((places + 0.5) / stored.shape[2] * 2 - 1).clamp(-2, 2)
        return cls(stored, places, clips.labels(), clips.backwards(), clips.train, size, patch, generator)

    def stills(self, batch: int) -> tuple[Tensor, Tensor]:
        """Single frames [B, 1, 3, h, w] of 0..1 and the places in them [B, 1, 3, 2]."""
        times = torch.randint(self.stored.shape[1], (batch, 1), generator=self.generator)
        return self._shown(draw(self.rows, batch, self.generator), times)

    def moving(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Eight frames [B, 8, 3, h, w], places [B, 8, 3, 2] and labels [B]; half of the clips run backwards."""
        rows = draw(self.rows, batch, self.generator)
        times = pick(batch, self.stored.shape[1], self.generator)
        back = torch.rand(batch, generator=self.generator) < 0.5  # run backwards, an action is its opposite
        video, points = self._shown(rows, torch.where(back[:, None], times.flip(1), times))
        labels = self.labels[rows]
        return video, points, torch.where(back, self.backwards[labels], labels)

    def _shown(self, rows: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        prepare = for_network("timesformer", self.size, self.patch).frames
        clip = torch.stack(
            [prepare(torch.from_numpy(self.stored[r][t])) for r, t in zip(rows.tolist(), times.numpy(), strict=True)]
        )
        video, matrix = jitter(clip, self.generator, zoom=0.08, shift=0.06)
        places = self.places[rows[:, None], times]
        return video, (places - matrix[:, None, None, :, 2]) / matrix[:, 0, 0].view(-1, 1, 1, 1)


def pick(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """Eight of the finer frames per clip [B, 8], about the centres of equal parts, half of the clips backwards."""
    stretch = 1 + 0.08 * (torch.rand(batch, 1, generator=generator) * 2 - 1)
    offset = 0.04 * (torch.rand(batch, 1, generator=generator) * 2 - 1)
    phase = 0.5 + stretch * ((torch.arange(8) + 0.5) / 8 - 0.5) + offset
    return (phase * frames).long().clamp(0, frames - 1)


def watch(model: TimeSformer) -> list[Tensor]:
    """A list to which every forward pass adds, of each block but the first, queries, keys and values in space."""
    seen: list[Tensor] = []
    for block in list(model.blocks)[1:]:
        block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(module.qkv(inputs[0])))
    return seen


def missed(qkv: Tensor, target: Tensor, heads: int) -> Tensor:
    """How far the token's first heads look from their points: qkv [B, T, 1 + N, 3D], target [B, N, T, K]."""
    query, key, _ = qkv.view(*qkv.shape[:3], 3, heads, -1)[..., : target.shape[-1], :].unbind(3)  # [B, T, 1 + N, K, d]
    scores = torch.einsum("btkd,btnkd->bntk", query[:, :, 0], key[:, :, 1:]) / query.shape[-1] ** 0.5
    return (target * (target.clamp_min(1e-9).log() - scores.log_softmax(1))).sum(1).mean()


def nearby(told: Tensor, points: Tensor, target: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """How wrong patches [B, N, T, 12] are about points [B, T, 3, 2] on or beside them: their offset and their speed."""
    centre = (torch.arange(side) + 0.5) / side * 2 - 1
    middles = torch.stack([centre.repeat(side), centre.repeat_interleave(side)], -1).view(1, -1, 1, 1, 2)
    offset = (points[:, None] - middles) * (side / 2)  # in patches
    last = points.shape[1] - 1
    before, after = points[:, [0, *range(last)]], points[:, [*range(1, last + 1), last]]
    speed = (20.0 * (after - before))[:, None].expand_as(offset)
    wrong = F.smooth_l1_loss(told.unflatten(-1, (3, 4)), torch.cat([offset, speed], -1), reduction="none", beta=0.2)
    return tuple((part.mean(-1) * target).sum(1).mean() for part in wrong.split(2, -1))  # type: ignore[return-value]


def widen(model: TimeSformer) -> None:
    """Start with weights for this width: the usual 0.02 is for 768, and a narrow network would stay linear for long."""
    for name, weight in model.named_parameters():
        if name.endswith("_embed") or name == "cls_token":
            nn.init.normal_(weight, std=0.25)
        elif weight.ndim > 1 and not name.startswith("head"):
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5 * (0.5 if "temporal_fc" in name else 1.0))
    with torch.no_grad():
        _tell_time(model)


def _tell_time(model: TimeSformer) -> None:
    """Keep the first channels for the time, and let two heads start as the difference of the frames beside each."""
    width, heads = model.cls_token.shape[-1], model.blocks[0].attn.heads
    half, deep = width // 8, width // heads
    step = torch.pi / 8 * torch.arange(1, half + 1)
    angle = torch.arange(model.time_embed.shape[1])[:, None] * step
    first = model.blocks[0]
    model.pos_embed[..., : 2 * half] = 0
    model.time_embed[0, :, : 2 * half] = torch.cat([angle.sin(), angle.cos()], 1)
    for layer in (model.patch_embed.proj, first.temporal_fc, first.attn.proj, first.mlp.fc2):
        layer.weight[: 2 * half] = 0
    for block in list(model.blocks)[1:]:
        query, key, value = block.temporal_attn.qkv.weight.view(3, heads, deep, width)
        block.temporal_attn.proj.weight[:, deep : 2 * deep] = block.temporal_attn.proj.weight[:, :deep]
        value[1] = -value[0]
        for head, sign in ((0, 1.0), (1, -1.0)):
            query[head], key[head] = 0, 0
            key[head, : 2 * half, : 2 * half] = 3 * torch.eye(2 * half)
            query[head, :half, : 2 * half] = 3 * torch.cat([step.cos().diag(), sign * step.sin().diag()], 1)
            query[head, half : 2 * half, : 2 * half] = 3 * torch.cat([-sign * step.sin().diag(), step.cos().diag()], 1)


class Lessons(nn.Module):
    """The network with its side tasks."""

    def __init__(self, model: TimeSformer, side: int, *, relative: bool = False) -> None:
        """`relative`: ways of the points against each other, for a camera that moves."""
        super().__init__()
        self.relative = relative
        self.model, self.side, self.gazes = model, side, watch(model)
        self.heads, width = model.blocks[0].attn.heads, model.cls_token.shape[-1]
        self.ways, self.local = nn.Linear(width, 8 * 3 * 2), nn.Linear(width, 3 * 4)

    def look(self, video: Tensor, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The token [B, D] of pictures [B, T, 3, h, w] of 0..1, and the losses about points [B, T, 3, 2]."""
        self.gazes.clear()
        cls, patches = self.model.encode(normalise(video, *KINETICS).transpose(1, 2).contiguous())
        target = heat(points, self.side)
        looking = torch.stack([missed(gaze, target, self.heads) for gaze in self.gazes]).mean()
        offset, speed = nearby(self.local(self.model.norm(patches)), points, target, self.side)
        token = self.model.norm(cls)
        parts = {"looking": 0.3 * looking, "offset": offset}
        if points.shape[1] > 1:
            if self.relative:
                points = points - points[:, :, [1, 2, 0]]
            way = 5.0 * (points - points.mean(1, keepdim=True))
            moving = F.smooth_l1_loss(self.ways(token).view(way.shape), way, beta=0.2)
            parts |= {"speed": (0.5 if self.relative else 3.0) * speed, "moving": 4.0 * moving}
        return token, parts

    def still(self, footage: Footage, batch: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of single frames."""
        return total(self.look(*footage.stills(batch))[1])

    def moving(self, footage: Footage, batch: int, *, named: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss of clips; `named`: with the cross-entropy of their actions."""
        video, points, labels = footage.moving(batch)
        token, parts = self.look(video, points)
        if not named:
            return total(parts)
        logits = self.model.head(token)
        loss, numbers = total({**parts, "naming": F.cross_entropy(logits, labels, label_smoothing=0.05)})
        return loss, {**numbers, "accuracy": float((logits.argmax(1) == labels).float().mean())}

    def leave(self) -> TimeSformer:
        """The network alone, in eval mode."""
        for block in self.model.blocks:
            block.attn._forward_pre_hooks.clear()
        return self.model.eval()


def total(parts: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """The sum of the losses, and each as a number."""
    return sum(parts.values(), torch.zeros(())), {name: float(part.detach()) for name, part in parts.items()}
