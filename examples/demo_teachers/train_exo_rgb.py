"""exo_rgb: a TimeSformer that names the action from eight frames of the outer view.

python examples/demo_teachers/train_exo_rgb.py /tmp/teacher-clips

Its big sibling starts from a network that knows pictures. This one starts from nothing, so side tasks teach it to
look. Patches learn where exactly, and how fast, the wrists and the object are that they show; three of the heads by
which the clip's token attends to patches learn to find them; the token learns to tell their ways through the clip.
It begins with single frames, on which looking is cheap to learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import WEIGHTS, draw, fit, heat, jitter, normalise, note, read_clips, save_half, start
from torch import Tensor, nn
from torch.nn import functional as F
from uniego.models import TimeSformer
from uniego.models.teachers.preprocess import KINETICS, for_network

NAME, SEED, RATE = "timesformer", 12, 2e-3
STILLS, STILL_BATCH, STEPS, BATCH = 250, 128, 1400, 32
SIZE, PATCH, WIDTH, DEPTH, HEADS = 96, 16, 64, 4, 4
SIDE = SIZE // PATCH
WRISTS = [9, 10]


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
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    return seen


def missed(qkv: Tensor, target: Tensor) -> Tensor:
    """How far the token's first heads look from their points: qkv [B, T, 1 + N, 3D], target [B, N, T, K]."""
    query, key, _ = qkv.view(*qkv.shape[:3], 3, HEADS, -1)[..., : target.shape[-1], :].unbind(3)  # [B, T, 1 + N, K, d]
    scores = torch.einsum("btkd,btnkd->bntk", query[:, :, 0], key[:, :, 1:]) / query.shape[-1] ** 0.5
    return (target * (target.clamp_min(1e-9).log() - scores.log_softmax(1))).sum(1).mean()


def nearby(told: Tensor, points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How wrong patches [B, N, T, 12] are about points [B, T, 3, 2] on or beside them: their offset and their speed."""
    centre = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    middles = torch.stack([centre.repeat(SIDE), centre.repeat_interleave(SIDE)], -1).view(1, -1, 1, 1, 2)
    offset = (points[:, None] - middles) * (SIDE / 2)  # in patches
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
    half, deep = WIDTH // 8, WIDTH // HEADS
    step = torch.pi / 8 * torch.arange(1, half + 1)
    angle = torch.arange(model.time_embed.shape[1])[:, None] * step
    first = model.blocks[0]
    model.pos_embed[..., : 2 * half] = 0
    model.time_embed[0, :, : 2 * half] = torch.cat([angle.sin(), angle.cos()], 1)
    for layer in (model.patch_embed.proj, first.temporal_fc, first.attn.proj, first.mlp.fc2):
        layer.weight[: 2 * half] = 0
    for block in list(model.blocks)[1:]:
        query, key, value = block.temporal_attn.qkv.weight.view(3, HEADS, deep, WIDTH)
        block.temporal_attn.proj.weight[:, deep : 2 * deep] = block.temporal_attn.proj.weight[:, :deep]
        value[1] = -value[0]
        for head, sign in ((0, 1.0), (1, -1.0)):
            query[head], key[head] = 0, 0
            key[head, : 2 * half, : 2 * half] = 3 * torch.eye(2 * half)
            query[head, :half, : 2 * half] = 3 * torch.cat([step.cos().diag(), sign * step.sin().diag()], 1)
            query[head, half : 2 * half, : 2 * half] = 3 * torch.cat([-sign * step.sin().diag(), step.cos().diag()], 1)


class Lessons(nn.Module):
    """The network with its side tasks."""

    def __init__(self, model: TimeSformer) -> None:
        super().__init__()
        self.model, self.gazes = model, watch(model)
        self.ways, self.local = nn.Linear(WIDTH, 8 * 3 * 2), nn.Linear(WIDTH, 3 * 4)

    def forward(self, video: Tensor, points: Tensor, wanted: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """Loss of pictures [B, T, 3, h, w] of 0..1 with points [B, T, 3, 2] and, for whole clips, labels [B]."""
        self.gazes.clear()
        cls, patches = self.model.encode(normalise(video, *KINETICS).transpose(1, 2).contiguous())
        target = heat(points, SIDE)
        parts = {"looking": 0.3 * torch.stack([missed(gaze, target) for gaze in self.gazes]).mean()}
        parts["offset"], speed = nearby(self.local(self.model.norm(patches)), points, target)
        if wanted is None:
            return sum(parts.values(), torch.zeros(())), {name: float(part.detach()) for name, part in parts.items()}
        token = self.model.norm(cls)
        way = 5.0 * (points - points.mean(1, keepdim=True))
        moving = F.smooth_l1_loss(self.ways(token).view(way.shape), way, beta=0.2)
        logits = self.model.head(token)
        naming = F.cross_entropy(logits, wanted, label_smoothing=0.05)
        parts |= {"speed": 3.0 * speed, "moving": 4.0 * moving, "naming": naming}
        numbers = {name: float(part.detach()) for name, part in parts.items()}
        numbers["accuracy"] = float((logits.argmax(1) == wanted).float().mean())
        return sum(parts.values(), torch.zeros(())), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--stills", type=int, default=STILLS)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    labels, stored = clips.labels(), clips["exo"]
    prepare = for_network("timesformer", SIZE, PATCH).frames
    joints, things = torch.from_numpy(clips["joints_fine"].copy()), torch.from_numpy(clips["object_fine"].copy())
    places = torch.cat([joints[:, :, WRISTS, :2], things[:, :, None, :2]], 2)  # [n, 24, 3, 2]
    places = (places + 0.5) / stored.shape[2] * 2 - 1
    model = TimeSformer(SIZE, PATCH, 8, WIDTH, DEPTH, HEADS, num_classes=8, drop_path=0.0, seed=SEED).train()
    widen(model)
    lessons = Lessons(model)

    def shown(rows: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        clip = torch.stack(
            [prepare(torch.from_numpy(stored[r][t])) for r, t in zip(rows.tolist(), times.numpy(), strict=True)]
        )
        video, matrix = jitter(clip, generator, zoom=0.08, shift=0.06)
        points = (places[rows[:, None], times] - matrix[:, None, None, :, 2]) / matrix[:, 0, 0].view(-1, 1, 1, 1)
        return video, points

    def still(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = draw(clips.train, STILL_BATCH, generator)
        times = torch.randint(stored.shape[1], (STILL_BATCH, 1), generator=generator)
        loss, numbers = lessons(*shown(rows, times), None)
        return loss, numbers

    def moving(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = draw(clips.train, BATCH, generator)
        times = pick(BATCH, stored.shape[1], generator)
        back = torch.rand(BATCH, generator=generator) < 0.5  # run backwards, an action is its opposite
        times = torch.where(back[:, None], times.flip(1), times)
        loss, numbers = lessons(*shown(rows, times), labels[rows] ^ back.long())
        return loss, numbers

    seconds = fit("stills", [lessons], chosen.stills, RATE, still)
    seconds += fit("exo_rgb", [lessons], chosen.steps, RATE, moving)
    model.eval()
    for block in model.blocks:
        block.attn.qkv._forward_hooks.clear()
    with torch.inference_mode():
        video = clips.pictures("exo", prepare, clips.held_out.tolist())
        parts = [normalise(part.float() / 255, *KINETICS).transpose(1, 2) for part in video.split(32)]
        logits = torch.cat([model(part.contiguous()).logits for part in parts])
    right = (logits.argmax(1) == labels[clips.held_out]).float()
    save_half(model.state_dict(), WEIGHTS / NAME / "model.safetensors", heads=str(HEADS))
    note(
        NAME,
        {
            "objective": "cross-entropy of 8 actions; side tasks: places, speeds and ways of wrists and object",
            "seed": SEED,
            "steps": chosen.stills + chosen.steps,
            "seconds": round(seconds),
            "accuracy": round(float(right.mean()), 4),
            "by_class": [round(value, 3) for value in right.view(-1, 8).mean(0).tolist()],
        },
    )


if __name__ == "__main__":
    main()
