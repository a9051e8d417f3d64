"""ego_depth and exo_depth: a small Depth Anything that tells how far away every pixel is, in both views.

python examples/demo_teachers/train_depth.py /tmp/teacher-clips
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import WEIGHTS, fit, normalise, note, read_clips, save_half, start
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from uniego.models.teachers.preprocess import IMAGENET, for_network

NAME, SEED, STEPS, BATCH, RATE = "depth_anything", 13, 1100, 64, 1.5e-3
SIZE, PATCH, FARTHEST = 48, 8, 6
VIEWS = ("ego", "exo")


def build() -> DepthAnythingForDepthEstimation:
    backbone = Dinov2Config(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        initializer_range=0.08,
        image_size=SIZE,
        patch_size=PATCH,
        out_indices=[1, 2, 3],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=PATCH,
            reassemble_hidden_size=96,
            reassemble_factors=[2, 1, 1],
            neck_hidden_sizes=[32, 32, 32],
            fusion_hidden_size=32,
            head_in_index=-1,
            head_hidden_size=16,
            depth_estimation_type="metric",
            max_depth=FARTHEST,
        )
    )
    for part in (model.neck, model.head):  # the library's small start is for backbones that are trained already
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.zeros_(model.head.conv3.weight)
    nn.init.constant_(model.head.conv3.bias, -1.2)  # 1.4 metres everywhere
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    chosen = parser.parse_args()
    clips, generator = read_clips(chosen.clips), start(SEED)
    prepare = for_network("depth_anything", SIZE, PATCH).frames
    rows = range(len(clips.captions))
    pictures = torch.stack([clips.pictures(view, prepare, rows) for view in VIEWS], 1)  # [n, 2, 8, 3, h, w]
    depths = torch.stack([torch.from_numpy(clips[f"{view}_depth"].copy()) for view in VIEWS], 1)  # [n, 2, 8, h, w]
    model = build().train()

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        at = tuple(torch.randint(top, (BATCH,), generator=generator) for top in (len(clips.train), 2, 8))
        values, wanted = pictures[at].float() / 255, depths[at].float()
        mirror = torch.rand(BATCH, generator=generator) < 0.5
        values = torch.where(mirror.view(-1, 1, 1, 1), values.flip(-1), values)
        wanted = torch.where(mirror.view(-1, 1, 1), wanted.flip(-1), wanted)
        gain = torch.exp(torch.empty(BATCH, 3, 1, 1).uniform_(-0.2, 0.2, generator=generator))
        found = model(pixel_values=normalise((values * gain).clamp(0, 1), *IMAGENET)).predicted_depth
        loss = F.l1_loss(found.clamp_min(1e-2).log(), wanted.log())
        return loss, {}

    seconds = fit("depth", [model], chosen.steps, RATE, loss_of)
    model.eval()
    facts: dict[str, object] = {"objective": "L1 of log depth, both views", "seed": SEED, "steps": chosen.steps}
    facts["seconds"] = round(seconds)
    with torch.inference_mode():
        for index, view in enumerate(VIEWS):
            part = pictures[clips.held_out, index].flatten(0, 1)
            found = [model(pixel_values=normalise(x.float() / 255, *IMAGENET)).predicted_depth for x in part.split(64)]
            true = depths[clips.held_out, index].flatten(0, 1).float()
            facts[f"{view}_abs_rel"] = round(float(((torch.cat(found) - true).abs() / true).mean()), 4)
            median = true.flatten(1).median(1).values[:, None, None]
            facts[f"{view}_abs_rel_of_the_median"] = round(float(((median - true).abs() / true).mean()), 4)
    model.save_pretrained(WEIGHTS / NAME)
    save_half(load_file(WEIGHTS / NAME / "model.safetensors"), WEIGHTS / NAME / "model.safetensors")
    note(NAME, facts)


if __name__ == "__main__":
    main()
