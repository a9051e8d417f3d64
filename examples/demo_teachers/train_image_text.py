"""The teachers that read captions: pictures and sentences that belong together get similar vectors.

    python examples/demo_teachers/train_image_text.py /tmp/teacher-clips siglip
    python examples/demo_teachers/train_image_text.py /tmp/teacher-clips clip

`siglip` becomes ego_siglip and exo_siglip: whole frames of both views, SigLIP's sigmoid of every pair (arXiv
2303.15343). `clip` becomes exo_skego: crops round the hands in the outer view, CLIP's softmax over the batch (arXiv
2103.00020). The text towers know the captions' few words only and are dropped after training. Equal captions in a
batch count as belonging together.

Their big siblings saw billions of pictures. For whole frames, in which the things that captions speak of are small, a
side task that is dropped after training has the patches tell where wrists and object are.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from common import PICKS, WEIGHTS, Clips, fit, heat, jitter, normalise, note, read_clips, save_half, start
from poses import estimated
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from uniego.models.teachers import hands
from uniego.models.teachers.preprocess import CLIP, HALF, crop_squares, for_network

SEED, STEPS, BATCH, RATE = 15, 1400, 128, 1.5e-3
SIZE, PATCH, WIDTH = 48, 8, 96
VIT = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 3}


def bags(captions: list[str]) -> Tensor:
    """Which words each caption has: float32 [n, words], those that all have left out, each row of length 1."""
    words = sorted({word for caption in captions for word in caption.split()})
    rows = torch.tensor([[float(word in caption.split()) for word in words] for caption in captions])
    return F.normalize(rows[:, rows.mean(0) < 1], dim=-1)


def reader(count: int) -> nn.Module:
    """The text tower: order tells nothing in such captions, so it sums a vector for each word."""
    return nn.Linear(count, WIDTH, bias=False)


class Siglip(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.image = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**VIT, image_size=SIZE, patch_size=PATCH)
        )
        self.text = reader(count)
        self.scale, self.bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-5.0))

    def forward(self, pictures: Tensor, words: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.image(pixel_values=pictures)
        image = F.normalize(seen.pooler_output, dim=-1)
        text = F.normalize(self.text(words), dim=-1)
        scores = self.scale.exp() * image @ text.T + self.bias
        return -F.logsigmoid(torch.where(same, scores, -scores)).sum(1).mean(), scores, seen.last_hidden_state


class Clip(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.image = transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**VIT, image_size=SIZE, patch_size=PATCH, projection_dim=WIDTH)
        )
        self.text = reader(count)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pictures: Tensor, words: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.image(pixel_values=pictures)
        image = F.normalize(seen.image_embeds, dim=-1)
        text = F.normalize(self.text(words), dim=-1)
        scores = self.scale.exp().clamp(max=100) * image @ text.T
        target = same.float() / same.sum(1, keepdim=True)
        return (
            (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2,
            scores,
            seen.last_hidden_state[:, 1:],
        )


def whole_frames(clips: Clips) -> Tensor:
    """Both views: uint8 [n, 16, 3, h, w]."""
    prepare, rows = for_network("siglip", SIZE, PATCH).frames, range(len(clips.captions))
    return torch.cat([clips.pictures(view, prepare, rows) for view in ("ego", "exo")], 1)


def places(clips: Clips) -> Tensor:
    """Wrists and object in both views, from -1 to 1 across the picture: float32 [n, 16, 3, 2]."""
    both = []
    for view in ("ego", "fine"):
        joints, things = np.array(clips[f"joints_{view}"][:, PICKS]), np.array(clips[f"object_{view}"][:, PICKS])
        both.append(np.concatenate([joints[:, :, 9:11, :2], things[:, :, None, :2]], 2))
    return torch.from_numpy((np.concatenate(both, 1) + 0.5) / clips["ego"].shape[2] * 2 - 1)


def hand_crops(clips: Clips) -> Tensor:
    """Squares round the hands in the outer view: uint8 [n, 8, 3, h, w]."""
    prepare, exo = for_network("clip", SIZE, PATCH).frames, clips["exo"]
    rng, side, rows = np.random.default_rng(SEED), exo.shape[2], []
    for row, points in enumerate(clips["joints"]):
        squares = hands.hand_squares(estimated(points, rng, side), 8, side, side)
        frames = torch.from_numpy(np.array(exo[row][PICKS]))
        rows.append(torch.cat([prepare(square) for square in crop_squares(frames, squares)]))
    return torch.stack(rows)


Channels = tuple[tuple[float, ...], tuple[float, ...]]
KINDS: dict[str, tuple[type[nn.Module], Callable[[Clips], Tensor], Channels, str]] = {
    "siglip": (
        Siglip,
        whole_frames,
        HALF,
        "SigLIP: sigmoid of picture-caption pairs, both views; side task: places of wrists and object",
    ),
    "clip": (Clip, hand_crops, CLIP, "CLIP: softmax of picture-caption pairs, crops round the hands, outer view"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    make, look, channels, objective = KINDS[chosen.kind]
    pictures = look(clips)
    words = bags(clips.captions)
    caption = torch.tensor([sorted(set(clips.captions)).index(text) for text in clips.captions])
    model = make(words.shape[1]).train()
    where, points = nn.Linear(WIDTH, 3), places(clips) if chosen.kind == "siglip" else None

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rows = clips.train[torch.randperm(len(clips.train), generator=generator)[:BATCH]]
        frame = torch.randint(pictures.shape[1], (len(rows),), generator=generator)
        values, matrix = jitter(pictures[rows, frame][:, None], generator)
        same = caption[rows, None] == caption[rows]
        loss, scores, patches = model(normalise(values[:, 0], *channels), words[rows], same)
        numbers = {"retrieval": float(same[torch.arange(len(rows)), scores.argmax(1)].float().mean())}
        if points is None:
            return loss, numbers
        moved = (points[rows, frame] - matrix[:, None, :, 2]) / matrix[:, 0, 0].view(-1, 1, 1)
        target = heat(moved[:, None], SIZE // PATCH)[:, :, 0]  # [B, N, 3]
        missed = (target * (target.clamp_min(1e-9).log() - where(patches).log_softmax(1))).sum(1)
        missed = (missed * (moved.abs() < 1).all(-1)).mean()
        return loss + missed, {**numbers, "naming": float(loss.detach()), "looking": float(missed.detach())}

    seconds = fit(chosen.kind, [model, where], chosen.steps, RATE, loss_of)
    retrieval = held_out_retrieval(model.eval(), clips, pictures, words, caption, channels)
    model.image.save_pretrained(WEIGHTS / chosen.kind)
    save_half(load_file(WEIGHTS / chosen.kind / "model.safetensors"), WEIGHTS / chosen.kind / "model.safetensors")
    note(
        chosen.kind,
        {
            "objective": objective,
            "seed": SEED,
            "steps": chosen.steps,
            "seconds": round(seconds),
            "caption_of_64": round(retrieval, 4),
        },
    )


@torch.inference_mode()
def held_out_retrieval(
    model: nn.Module,
    clips: Clips,
    pictures: Tensor,
    words: Tensor,
    caption: Tensor,
    channels: Channels,
) -> float:
    """How often a held-out frame's nearest of 64 captions is its own (chance: 1 in 64)."""
    right = []
    for rows in clips.held_out.view(-1, 8).T.reshape(-1).split(64):  # 60 people doing the same, and a few more
        for frame in range(pictures.shape[1]):
            values = normalise(pictures[rows, frame].float() / 255, *channels)
            same = caption[rows, None] == caption[rows]
            _, scores, _ = model(values, words[rows], same)
            right.append(same[torch.arange(len(rows)), scores.argmax(1)].float())
    return float(torch.cat(right).mean())


if __name__ == "__main__":
    main()
