"""ego_dino and exo_dino: a small ViT that teaches itself, on frames of both views, without labels.

    python examples/demo_teachers/train_dino.py /tmp/teacher-clips

DINOv2's own objective needs more than minutes: with batches of 64, its answers drifted towards one for all pictures.
In its place, two crops of a frame have to find each other among the crops of all other frames of the batch (SimCLR,
arXiv 2002.05709). Each batch holds several frames of every clip: telling those apart takes what moves, not the room.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import WEIGHTS, draw, fit, normalise, note, read_clips, save_half, start
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model
from uniego.models.teachers.preprocess import IMAGENET, for_network

NAME, SEED, STEPS, CLIPS, FRAMES, RATE = "dinov2", 14, 900, 20, 4, 1e-3
SIZE, PATCH, STORED, WIDTH = 48, 8, 64, 96
HEAT = 0.15
VIEWS = ("ego", "exo")


def crops(pictures: Tensor, share: tuple[float, float], generator: torch.Generator) -> Tensor:
    """One random square of each picture, its area between the shares, recoloured: float32 [B, 3, SIZE, SIZE]."""
    batch = len(pictures)
    side = torch.empty(batch).uniform_(*share, generator=generator).sqrt()
    matrix = torch.zeros(batch, 2, 3)
    matrix[:, 0, 0] = side
    matrix[:, 1, 1] = side
    matrix[:, :, 2] = torch.empty(batch, 2).uniform_(-1, 1, generator=generator) * (1 - side)[:, None]
    grid = F.affine_grid(matrix, [batch, 1, SIZE, SIZE], align_corners=False)
    values = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    gain = torch.exp(torch.empty(batch, 3, 1, 1).uniform_(-0.35, 0.35, generator=generator))
    bias = torch.empty(batch, 1, 1, 1).uniform_(-0.1, 0.1, generator=generator)
    values = values * gain + bias + 0.02 * torch.randn(values.shape, generator=generator)
    return normalise(values.clamp(0, 1), *IMAGENET)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    prepare = for_network("siglip", STORED, PATCH).frames  # the whole picture, smaller; crops come later
    rows = range(len(clips.captions))
    pictures = torch.stack([clips.pictures(view, prepare, rows) for view in VIEWS], 1)  # [n, 2, 8, 3, h, w]
    settings = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        initializer_range=0.08,  # for this width; the usual 0.02 is for 768
        image_size=SIZE,
        patch_size=PATCH,
    )
    body = Dinov2Model(settings).train()
    # Normalised over the batch, or a narrow network starts with nearly one vector for all.
    head = nn.Sequential(nn.Linear(WIDTH, 192), nn.BatchNorm1d(192), nn.GELU(), nn.Linear(192, 64))

    def found(at: tuple[Tensor, Tensor, Tensor], share: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """The loss of two crops of each picture, and how often a crop's nearest is its partner."""
        values = pictures[at].flatten(0, 1).float() / 255
        both = torch.cat([crops(values, share, generator) for _ in range(2)])
        unit = F.normalize(head(body(pixel_values=both).last_hidden_state[:, 0]), dim=-1)
        likeness = (unit @ unit.T / HEAT).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(both)).roll(len(values))
        return F.cross_entropy(likeness, partner), (likeness.argmax(1) == partner).float().mean()

    def batch(source: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = draw(source, CLIPS, generator)[:, None].expand(-1, frames)
        view = torch.randint(2, (CLIPS, 1), generator=generator).expand(-1, frames)
        order = torch.rand(CLIPS, 8, generator=generator).argsort(1)
        return rows, view, order[:, :frames]

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        loss, right = found(batch(clips.train, FRAMES), (0.45, 1.0))
        return loss, {"found": float(right)}

    seconds = fit("dino", [body, head], chosen.steps, RATE, loss_of)
    with torch.inference_mode():
        right = [float(found(batch(clips.held_out, FRAMES), (0.45, 1.0))[1]) for _ in range(20)]
    body.save_pretrained(WEIGHTS / NAME)
    save_half(load_file(WEIGHTS / NAME / "model.safetensors"), WEIGHTS / NAME / "model.safetensors")
    note(
        NAME,
        {
            "objective": "SimCLR in place of DINO: crops of a frame find each other; no labels; both views",
            "seed": SEED,
            "steps": chosen.steps,
            "seconds": round(seconds),
            f"partner_of_{2 * CLIPS * FRAMES - 1}": round(sum(right) / len(right), 4),
        },
    )


if __name__ == "__main__":
    main()
